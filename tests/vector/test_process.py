"""Worker processes: the numbers of the loop to the last bit, and no way to leave a process behind."""

import contextlib
import gc
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Dict, Discrete
from probes import Drift, random_params
from process_families import Closing, Failing, Leaky, Noisy, Pid, Succeeding, Unpicklable, WholeAtFirst
from processes import gone, running, workers_of
from tiny_runs import same_params, tiny

import metarl.vector.process
from metarl import cli, random
from metarl.algorithms.maml_trpo import Config
from metarl.policies.spaces import spaces_of
from metarl.rollout import sampler
from metarl.rollout.rollout import Rollout, collect
from metarl.rollout.sampler import Sampler
from metarl.vector import automatic
from metarl.vector.automatic import AutomaticVectorEnv
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv, WorkerError
from metarl.vector.tensor import TensorVectorEnv

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system")

K, E = 3, 2


def tasks_of(family: Any, n: int = K, seed: int = 0) -> dict[str, np.ndarray]:
    return family.sample(n, np.random.default_rng(seed))


def own_files() -> list[str]:
    """The open pipes and nameless files of this process."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(entry))
    return [link for link in links if "pipe:" in link or "memfd:metarl" in link]


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    before = len(own_files())
    yield
    gc.collect()
    assert workers_of(os.getpid()) == []
    assert len(own_files()) <= before


@pytest.fixture
def start() -> Iterator[Callable[..., ProcessVectorEnv]]:
    """Makes process environments that are closed after the test."""
    made: list[ProcessVectorEnv] = []

    def make(family: Any, n_tasks: int = K, episodes: int = E, workers: int = 2, **more: Any) -> ProcessVectorEnv:
        made.append(ProcessVectorEnv(family, n_tasks, episodes, workers, **more))
        return made[-1]

    yield make
    for env in made:
        env.close()
    made.clear()


def play(env: Any, family: Any, seeds: list[int], tasks: Any, steps: int = 9) -> list[Any]:
    """All that an environment returns in an episode of given actions."""
    family.action_space.seed(1)
    out = [env.reset(seed=seeds, options=None if tasks is None else {"tasks": tasks})[0]]
    for _ in range(steps):
        out += env.step(np.array([family.action_space.sample() for _ in range(env.num_envs)]))[:4]
    return out


def assert_equal(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


# ---------------------------------------------------------------------------------------------------------------------
# The numbers are the loop's


def roll(env: Any, family: Any, seed: int) -> Rollout:
    policy = Config(hidden=(5,)).policy(spaces_of(family))
    tasks, seeds = tasks_of(family, seed=seed), random.episode_seeds(seed, 0, 0, K, E)
    return collect(env, tasks, family.horizon, policy, random_params(policy, K), seeds)


def tensors(r: Rollout) -> list[torch.Tensor]:
    return [r.obs, r.act, r.rew, r.mask, r.log_prob, *r.dist]


SPACES = [("float32", "box"), ("float64", "choice"), ("image", "box"), ("int", "choice"), ("discrete", "box")]


@pytest.mark.parametrize(("observation", "action"), SPACES)
def test_rollouts_are_those_of_the_loop_for_any_number_of_workers(observation, action, start):
    family = Noisy(observation, action)
    loop = LoopVectorEnv(family, K, E)
    want = [roll(loop, family, seed) for seed in (0, 1)]
    lengths = want[0].mask.sum(1)
    assert len(lengths.unique()) > 2  # episodes end at different times, or little would be shown
    for workers in (1, 2, 3):
        env = start(family, workers=workers)
        for seed in (0, 1):  # new tasks in the same processes
            assert all(map(torch.equal, tensors(roll(env, family, seed)), tensors(want[seed])))
        env.close()


@pytest.mark.parametrize("action", ["box", "choice", "several"])
def test_every_array_and_its_type_are_those_of_the_loop(action, start):
    family = Noisy(action=action)
    seeds, tasks = list(range(K * E)), tasks_of(family)
    env, loop = start(family), LoopVectorEnv(family, K, E)
    assert_equal(play(env, family, seeds, tasks), play(loop, family, seeds, tasks))
    assert_equal(play(env, family, seeds, None), play(loop, family, seeds, None))  # the same environments again


def test_an_observation_has_the_type_that_the_environments_gave_it(start):
    family = Noisy("int", sloppy=True)
    env, loop = start(family), LoopVectorEnv(family, K, E)
    found = play(env, family, [5] * 6, tasks_of(family))
    assert found[0].dtype == np.float64
    assert_equal(found, play(loop, family, [5] * 6, tasks_of(family)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reset_that_returns_whole_numbers_does_not_cut_off_the_fractions_of_later_steps(workers):
    env = make_vector(WholeAtFirst(), 1, 2, workers=workers)
    first, _ = env.reset(seed=0, options={"tasks": {"end": np.zeros(1), "shift": np.zeros((1, 2))}})
    assert (first == 0).all()
    assert (env.step(np.zeros((2, 2), np.float32))[0] == 0.25).all()
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("reward", [np.array([1.0]), [1.0, 2.0], "a"], ids=str)
def test_a_reward_that_is_not_one_number_is_named(reward, workers):
    env = make_vector(WholeAtFirst(reward), 1, 2, workers=workers)
    env.reset(seed=0, options={"tasks": {"end": np.zeros(1), "shift": np.zeros((1, 2))}})
    with pytest.raises(
        (ValueError, WorkerError), match=rf"(?s)Whole-v0 returned the reward {re.escape(repr(reward))} "
    ):
        env.step(np.zeros((2, 2), np.float32))
    env.close()


def test_actions_keep_the_type_that_they_come_in(start):
    family = Noisy()
    env, loop = start(family), LoopVectorEnv(family, K, E)
    for dtype in (np.float32, np.float64, np.float32):
        outs = []
        for each in (env, loop):
            each.reset(seed=3, options={"tasks": tasks_of(family)})
            outs.append(each.step(np.full((6, 2), 1 / 3, dtype))[1])
        np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("seed", [7, [5, 4, 3, 2, 1, 0], torch.arange(6)], ids=["one", "list", "tensor"])
def test_seeds_are_understood_as_by_the_loop(seed, start):
    family = Noisy()
    outs = [env.reset(seed=seed, options={"tasks": tasks_of(family)})[0]
            for env in (start(family), LoopVectorEnv(family, K, E))]  # fmt: skip
    np.testing.assert_array_equal(*outs)


def test_what_was_returned_does_not_change_later(start):
    family = Noisy()
    env = start(family)
    first = env.reset(seed=0, options={"tasks": tasks_of(family)})[0]
    kept = first.copy()
    second = env.step(np.zeros((6, 2), np.float32))
    copies = [x.copy() for x in second[:4]]
    env.step(np.ones((6, 2), np.float32))
    np.testing.assert_array_equal(first, kept)
    for x, y in zip(second[:4], copies, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_success_is_passed_on_where_one_is_reported(start):
    family = Succeeding()
    env, tasks = start(family, 2, 2), tasks_of(family, 2)
    tasks["shift"][:, 0] = [1, -1]  # the second task reports nothing
    env.reset(seed=0, options={"tasks": tasks})
    infos = [env.step(np.zeros((4, 2), np.float32))[4] for _ in range(5)]
    assert [list(info) for info in infos] == [[], ["success"], ["success"], ["success"], []]
    assert [infos[t]["success"].tolist() for t in (1, 2)] == [[False] * 4, [True, True, False, False]]


def test_a_family_with_tensor_dynamics_runs_in_processes_too(start):
    family = Drift()
    a, b = (roll(env, family, 0) for env in (start(family), TensorVectorEnv(family, K, E)))
    for x, y in zip(tensors(a), tensors(b), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The processes


def test_environments_live_in_as_many_processes_as_asked_for_and_stay_there(start):
    family, made = Pid(), Pid.made
    env = start(family, 4, 2, workers=3)
    first, second = (env.reset(seed=0, options={"tasks": tasks_of(family, 4, s)})[0] for s in (0, 1))
    assert len(set(first[:, 0])) == 3
    assert os.getpid() not in first[:, 0]
    assert first[:, 0].tolist() == second[:, 0].tolist()  # new tasks, the same processes
    assert second[:, 1].max() > first[:, 1].max()  # which did make new environments
    assert Pid.made == made


def test_workers_do_not_import_torch(start):
    assert not start(Pid()).reset(seed=0, options={"tasks": tasks_of(Pid())})[0][:, 2].any()


def test_there_are_no_more_processes_than_environments(start):
    env = start(Pid(), 1, 2, workers=5)
    env.reset(seed=0, options={"tasks": tasks_of(Pid(), 1)})
    assert len(workers_of(os.getpid())) == 2


def test_close_ends_the_processes_and_may_be_called_twice(start):
    env = start(Noisy())
    env.reset(seed=0, options={"tasks": tasks_of(Noisy())})
    assert len(workers_of(os.getpid())) == 2  # the control
    assert any("memfd:metarl" in link for link in own_files())
    env.close()
    assert workers_of(os.getpid()) == []
    env.close()
    with pytest.raises(ValueError, match="closed"):
        env.reset(seed=0, options={"tasks": tasks_of(Noisy())})


@pytest.mark.parametrize("workers", [0, 2])
def test_every_environment_is_closed_once(workers, tmp_path):
    family: Any = Closing(str(tmp_path / "closed"))
    env, tasks, some = make_vector(family, K, E, workers=workers), tasks_of(family), np.arange(K * E) % 3 == 0
    closed = []
    again = {"tasks": dict(tasks)}
    for options in ({"tasks": tasks}, {"tasks": tasks}, {"reset_mask": some}, again, {"reset_mask": some, **again}):
        env.reset(seed=0, options=options)
        closed.append(family.closed())
    env.close()
    assert closed == [0, 0, 0, 6, 8]  # new tasks need new environments, and nothing else does
    assert family.closed() == 8 + 6


def test_at_the_end_workers_go_by_themselves_and_after_an_error_they_are_killed(start, monkeypatch):
    monkeypatch.setattr(metarl.vector.process, "_GRACE", 30.0)  # however busy the machine is
    ends = []
    for trouble in (False, True):
        env = start(Noisy() if not trouble else Failing("step", "raise"))
        env.reset(seed=100, options={"tasks": tasks_of(env.family)})
        workers = list(env._pool.processes)
        with pytest.raises(WorkerError) if trouble else contextlib.nullcontext():
            for _ in range(3):
                env.step(np.zeros((6, 2), np.float32))
        env.close()
        ends.append([worker.returncode for worker in workers])
    assert ends[0] == [0, 0]
    assert -signal.SIGKILL in ends[1]  # the control


def test_the_garbage_collector_ends_the_processes():
    env = ProcessVectorEnv(Noisy(), K, E, 2)
    env.reset(seed=0, options={"tasks": tasks_of(Noisy())})
    assert workers_of(os.getpid())
    del env
    gc.collect()
    assert workers_of(os.getpid()) == []


@pytest.fixture
def interruptible():
    """A job in the background inherits that SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_reaches_the_parent_only_and_the_workers_are_ended(start):
    family = Failing("step", "sleep")
    env = start(family)
    env.reset(seed=0, options={"tasks": tasks_of(family)})
    for pid in workers_of(os.getpid()):
        os.kill(pid, signal.SIGINT)
    env.step(np.zeros((6, 2), np.float32))  # they did not mind
    env.reset(seed=100, options={"tasks": tasks_of(family)})
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in range(5):
            env.step(np.zeros((6, 2), np.float32))
    timer.join()
    assert workers_of(os.getpid()) == []
    env.reset(seed=0, options={"tasks": tasks_of(family)})  # a new start


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong in a worker


TROUBLE = {
    "raise": r"raised in .*ZeroDivisionError: the simulator broke",
    "sleep": r"has not answered for 2 seconds in .*in fail",
    "exit": r"raised in .*SystemExit: 7",
    "kill": r"was ended by SIGKILL in .*\(it left none\)",
    "crash": r"was ended by SIGSEGV in .*in fail",
}
PLACE = {
    "make": r"make of episode [01] of task 1 = .*shift.*0\.25",
    "reset": r"reset of episode 1 of task 1 = .*shift.*0\.25",
    "step": r"step 2 of episode 1 of task 1 = .*shift.*0\.25",
}


@pytest.mark.parametrize("where", PLACE)
@pytest.mark.parametrize("trouble", ["raise", "sleep", "kill"])
def test_a_worker_in_trouble_is_an_error_that_says_where(where, trouble, start):
    check_trouble(where, trouble, start)


@pytest.mark.parametrize("trouble", ["exit", "crash"])
def test_so_it_is_in_other_ways(trouble, start):
    check_trouble("step", trouble, start)


def check_trouble(where: str, trouble: str, start: Callable[..., ProcessVectorEnv]) -> None:
    family = Failing(where, trouble)
    env = start(family, timeout=2.0 if trouble == "sleep" else 60.0)
    began = time.monotonic()
    with pytest.raises(WorkerError) as caught:  # noqa: PT012
        env.reset(seed=100, options={"tasks": tasks_of(family)})
        for _ in range(5):
            env.step(np.zeros((6, 2), np.float32))
    assert time.monotonic() - began < 30
    text = " ".join(str(caught.value).split())
    assert text.startswith("Failing-v0: ")
    assert re.search(TROUBLE[trouble], text), text
    assert re.search(PLACE[where], text), text
    assert workers_of(os.getpid()) == []
    assert gone(lambda: running(f"sleep\x0098{os.getpid()}"))
    with pytest.raises(ValueError, match="reset"):
        env.step(np.zeros((6, 2), np.float32))


def test_what_an_environment_started_does_not_hide_the_end_of_its_worker(start):
    # A child with copies of the worker's pipes would keep them open, and the parent would wait for an answer.
    env = start(Leaky(), timeout=10.0)
    env.reset(seed=0, options={"tasks": tasks_of(Leaky())})
    try:
        with pytest.raises(WorkerError, match="was ended by SIGKILL in step 0"):
            env.step(np.zeros((6, 2), np.float32))
        children = running(f"sleep\x0097{os.getpid()}")
        assert children  # the control: it is still there
    finally:
        for child in running(f"sleep\x0097{os.getpid()}"):
            os.kill(child, signal.SIGKILL)


def test_a_worker_that_is_killed_between_two_steps_is_an_error_too(start):
    env = start(Noisy())
    env.reset(seed=0, options={"tasks": tasks_of(Noisy())})
    env.step(np.zeros((6, 2), np.float32))
    os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"ended by SIGKILL .*wait for its next command"):
        env.step(np.zeros((6, 2), np.float32))
    assert workers_of(os.getpid()) == []


def test_after_an_error_new_tasks_start_anew(start):
    family = Failing("step", "raise")
    env = start(family)
    with pytest.raises(WorkerError):
        play(env, family, list(range(100, 106)), tasks_of(family))
    with pytest.raises(ValueError, match="first reset"):
        env.reset(seed=0)
    loop = LoopVectorEnv(family, K, E)
    assert_equal(play(env, family, [1] * 6, tasks_of(family)), play(loop, family, [1] * 6, tasks_of(family)))


def test_the_time_limit_is_for_one_call_and_not_for_all_of_them(start):
    class Slow(Noisy):
        def make(self, task):
            time.sleep(0.4)
            return super().make(task)

    env = start(Slow(), 4, 2, workers=1, timeout=2.0)
    env.reset(seed=0, options={"tasks": tasks_of(Slow(), 4)})  # 3.2 seconds


def test_a_family_that_cannot_be_sent_is_refused_with_the_reason():
    family = Unpicklable()
    with pytest.raises(ValueError, match=r"Noisy-.* cannot be sent to worker processes.*lock.*workers=0"):
        ProcessVectorEnv(family, K, E, 2)


def test_a_family_that_workers_cannot_import_is_an_error_that_says_so(start, monkeypatch):
    module = type(sys)("metarl_test_nowhere")
    family = type("Nowhere", (Noisy,), {"__module__": module.__name__})
    module.Nowhere = family  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    env = start(family())
    with pytest.raises(WorkerError, match=r"(?s)import of the family.*metarl_test_nowhere.*sys.path"):
        env.reset(seed=0, options={"tasks": tasks_of(Noisy())})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.reset(seed=0), "first reset"),
        (lambda env: env.reset(seed=0, options={"tasks": tasks_of(Noisy(), 4)}), "3 tasks, got 4"),
        (lambda env: env.reset(seed=[1], options={"tasks": tasks_of(Noisy())}), "6 environments, got 1"),
        (lambda env: env.step(np.zeros((6, 2))), "reset"),
    ],
)
def test_nonsense_is_refused_before_a_process_starts(call, message, start):
    with pytest.raises(ValueError, match=message):
        call(start(Noisy()))
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "workers >= 1 and timeout > 0, got 0 and 60"),
        ({"timeout": 0.0}, "got 2 and 0.0"),
        ({"timeout": float("nan")}, "got 2 and nan"),
        ({"observation_space": Dict({"a": Discrete(2)})}, r"has the observation space Dict.*workers=0"),
        ({"action_space": Dict({"a": Discrete(2)})}, r"has the action space Dict.*workers=0"),
    ],
    ids=["workers", "timeout", "no number", "observation", "action"],
)
def test_settings_and_spaces_that_do_not_work_are_refused_at_once(change, message):
    family, options = Noisy(), {"workers": 2, "timeout": 60}
    for name, value in change.items():
        if name in options:
            options[name] = value
        else:
            setattr(family, name, value)
    with pytest.raises(ValueError, match=message):
        ProcessVectorEnv(family, K, E, **options)


def test_actions_of_another_shape_are_refused(start):
    env = start(Noisy())
    env.reset(seed=0, options={"tasks": tasks_of(Noisy())})
    with pytest.raises(ValueError, match=r"\(6, 2\)"):
        env.step(np.zeros((6, 1)))
    env.step(np.zeros((6, 2)))  # no harm done


# ---------------------------------------------------------------------------------------------------------------------
# The parent's end, and its main module


SCRIPT = """
import os, sys, time
import numpy as np
from process_families import Noisy, Failing
from metarl.vector.process import ProcessVectorEnv

print("main runs", flush=True)

class Mine(Noisy):
    def make(self, task):
        assert task["shift"].shape == (2,)
        return super().make(task)

def go(family, **more):
    env = ProcessVectorEnv(family, 3, 2, 2, **more)
    env.reset(seed=100, options={"tasks": family.sample(3, np.random.default_rng(0))})
    env.step(np.zeros((6, 2), np.float32))
    return env
"""


def script(tail: str, folder: Path, way: str = "file", **more: Any) -> subprocess.Popen:
    text = SCRIPT + textwrap.dedent(tail)
    places = os.pathsep.join(filter(None, [str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": places, "PYTHONWARNINGS": "default"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    if way == "stdin":
        process = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, **pipes)
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        return process
    path = folder / "script.py"
    path.write_text(text)
    return subprocess.Popen([sys.executable, *(["-c", text] if way == "-c" else [str(path)])], **pipes, **more)


@pytest.mark.parametrize("way", ["file", "stdin", "-c"])
def test_a_script_without_a_guard_and_with_its_own_family_works(way, tmp_path):
    process = script("""
        env = go(Mine())
        print("done", env.reset(seed=0)[0].shape)
    """, tmp_path, way)  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (out.splitlines(), err, process.returncode) == (["main runs", "done (6, 3)"], "", 0)
    assert workers_of(process.pid) == []  # though nobody called close


def test_an_exception_at_the_top_of_a_script_leaves_no_process(tmp_path):
    process = script("env = go(Noisy())\nraise SystemExit(3)\n", tmp_path)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (3, "")
    assert workers_of(process.pid) == []


@pytest.mark.parametrize(
    "tail",
    [
        "env = go(Noisy()); print('ready', flush=True); time.sleep(1000)",
        "env = go(Failing('step', 'sleep')); print('ready', flush=True)\nwhile True: env.step(np.zeros((6, 2), 'f4'))",
    ],
    ids=["idle", "busy"],
)
def test_workers_end_when_their_parent_is_killed(tail, tmp_path):
    process = script(tail, tmp_path)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)] == ["main runs", "ready"]
    time.sleep(0.5)
    assert len(workers_of(process.pid)) == 2
    process.kill()
    assert gone(lambda: workers_of(process.pid))
    assert gone(lambda: running(f"sleep\x0098{process.pid}"))
    process.communicate()


def test_a_forked_copy_of_the_parent_leaves_the_workers_alone(tmp_path):
    process = script("""
        env = go(Noisy())
        child = os.fork()
        if child == 0:
            env.close()
            sys.exit()
        os.waitpid(child, 0)
        env.step(np.zeros((6, 2), np.float32))
        print("still there")
    """, tmp_path)  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (out.splitlines(), process.returncode) == (["main runs", "still there"], 0), err


def test_no_shared_memory_has_a_name(start):
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    start(Noisy()).reset(seed=0, options={"tasks": tasks_of(Noisy())})
    assert not os.path.isdir("/dev/shm") or {x for x in os.listdir("/dev/shm") if "metarl" in x} <= before


# ---------------------------------------------------------------------------------------------------------------------
# The choice


def test_make_vector_takes_what_is_asked_for():
    kinds = {None: AutomaticVectorEnv, 0: LoopVectorEnv, 2: ProcessVectorEnv}
    assert {w: type(make_vector(Noisy(), K, E, workers=w)) for w in kinds} == kinds
    assert type(make_vector(Drift(), K, E)) is TensorVectorEnv
    assert type(make_vector(Drift(), K, E, workers=0)) is LoopVectorEnv
    with pytest.raises(ValueError, match=r"workers.*-1"):
        make_vector(Noisy(), K, E, workers=-1)
    with pytest.raises(ValueError, match=r"workers.*-1"):
        Sampler(Noisy(), workers=-1)


@pytest.fixture
def eager(monkeypatch):
    """Every rollout takes long enough, and there are two cores."""
    monkeypatch.setattr(automatic, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(automatic, "ROLLOUT_SECONDS", 0.0)
    monkeypatch.setattr(automatic, "cores", lambda: 2)


def test_the_automatic_choice_moves_between_rollouts_and_changes_no_number(eager):
    family, workers = Noisy(), []
    env, loop = AutomaticVectorEnv(family, K, E), LoopVectorEnv(family, K, E)
    for seed in range(3):
        case = [seed + i for i in range(6)], tasks_of(family, seed=seed)
        assert_equal(play(env, family, *case), play(loop, family, *case))
        workers.append(env.workers)
    assert workers == [0, 2, 2]
    env.close()
    assert workers_of(os.getpid()) == []


def test_the_automatic_choice_stays_where_only_a_rollout_without_new_tasks_follows(eager):
    family = Noisy()
    env = AutomaticVectorEnv(family, K, E)
    play(env, family, [0] * 6, tasks_of(family))
    play(env, family, [0] * 6, None)
    assert env.workers == 0


@pytest.mark.parametrize(
    ("step", "rollout", "cores", "want"), [(0, 0, 2, 2), (1e9, 0, 2, 0), (0, 1e9, 2, 0), (0, 0, 1, 0)]
)
def test_the_automatic_choice_follows_its_rule(step, rollout, cores, want, monkeypatch):
    monkeypatch.setattr(automatic, "STEP_SECONDS", float(step))
    monkeypatch.setattr(automatic, "ROLLOUT_SECONDS", float(rollout))
    monkeypatch.setattr(automatic, "cores", lambda: cores)
    family = Noisy()
    env = AutomaticVectorEnv(family, K, E)
    for _ in range(2):
        play(env, family, [0] * 6, tasks_of(family), steps=2)
    assert env.workers == want
    env.close()


def test_the_automatic_choice_closes_what_it_leaves_behind(eager, tmp_path):
    family: Any = Closing(str(tmp_path / "closed"))
    env = AutomaticVectorEnv(family, K, E)
    play(env, family, [0] * 6, tasks_of(family))
    assert (env.workers, family.closed()) == (0, 0)
    env.reset(options={"tasks": tasks_of(family)})
    assert (env.workers, family.closed()) == (2, 6)
    env.close()
    assert family.closed() == 12


@pytest.mark.parametrize(("steps", "resets", "want"), [(2, 0, 2), (9, 0, 0), (9, 2, 2)])
def test_the_automatic_choice_counts_the_time_of_every_step_and_reset(steps, resets, want, monkeypatch):
    # A clock by which each call takes a second: 1 + 2 seconds in 2 steps are more than 1.2 a step, 1 + 9 in 9 are not.
    ticks = iter(range(1000))
    monkeypatch.setattr(automatic, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(automatic, "STEP_SECONDS", 1.2)
    monkeypatch.setattr(automatic, "cores", lambda: 2)
    family = Noisy()
    env = AutomaticVectorEnv(family, K, E)
    env.reset(seed=0, options={"tasks": tasks_of(family)})
    for _ in range(steps):
        env.step(np.zeros((6, 2), np.float32))
    for _ in range(resets):
        env.reset(seed=0, options={"reset_mask": np.arange(K * E) == 1})
    env.reset(seed=0, options={"tasks": tasks_of(family)})
    assert env.workers == want
    env.close()


def test_the_automatic_choice_never_breaks_what_runs_one_by_one(eager):
    family = Unpicklable()
    env, loop = AutomaticVectorEnv(family, K, E), LoopVectorEnv(family, K, E)
    case = [0] * 6, tasks_of(family)
    play(env, family, *case)
    with pytest.warns(RuntimeWarning, match=r"one by one.*cannot be sent"):
        found = play(env, family, *case)
    assert_equal(found, play(loop, family, *case))
    assert_equal(play(env, family, *case), found)  # and does not warn again


def test_cores_are_at_most_pytorch_s_threads():
    assert automatic.cores() == 1  # tests have one thread
    torch.set_num_threads(64)
    assert automatic.cores() == len(os.sched_getaffinity(0))


# ---------------------------------------------------------------------------------------------------------------------
# Passed down


def test_a_learner_learns_the_same_with_and_without_processes():
    params = {}
    for workers in (0, 2):
        with tiny(Noisy(), workers=workers) as learner:
            learner.learn(2, eval_every=0)
            params[workers] = learner.state.params
            assert len(workers_of(os.getpid())) == workers
            assert learner.describe() == tiny(Noisy()).describe()
        assert workers_of(os.getpid()) == []
    assert same_params(params[0], params[2])
    learner.evaluate(2, steps=1)  # a closed learner can still be used
    learner.close()


def test_the_command_line_passes_workers_down(tmp_path, monkeypatch):
    asked = []

    def noting(family, n_tasks, episodes, device="cpu", workers=None):
        asked.append(workers)
        return make_vector(family, n_tasks, episodes, device)

    monkeypatch.setattr(sampler, "make_vector", noting)
    run = str(tmp_path / "run")
    small = ["--family-kwargs", "horizon=3", "--n-tasks", "2", "--episodes", "2", "--hidden", "4", "--threads", "1"]
    common = ["--iterations", "1", "--no-progress", "--eval-every", "0", *small]
    assert cli.run(["train", "maml_trpo", "PointNavigation-v0", *common, "--out", run, "--workers", "3"]) == 0
    assert cli.run(["train", "--resume", run, "--iterations", "2", "--no-progress", "--workers", "2"]) == 0
    assert cli.run(["evaluate", run, "--tasks", "2", "--no-figures", "--workers", "4", "--steps", "1"]) == 0
    assert asked == [3, 2, 4]


# ---------------------------------------------------------------------------------------------------------------------
# The benchmark


def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = Path(__file__).parents[2] / "experiments" / "benchmarks"
    if not folder.exists():
        pytest.skip("the benchmarks are not part of this copy")
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("process_backend")


def test_the_benchmark_measures_every_way_and_reports_those_that_fail(monkeypatch, tmp_path):
    benchmark = load_benchmark(monkeypatch)
    real = benchmark.start

    def start(way, *more):
        if way == "subproc":
            raise OSError("too many processes")
        return real(way, *more)

    monkeypatch.setattr(benchmark, "start", start)
    benchmark.main(["--only", "cheap", "--sizes", "3", "--repeats", "1", "--seconds", "0.01", "--out", str(tmp_path)])
    rows = {row["way"]: row for row in json.loads((tmp_path / "process_backend.json").read_text())["rows"]}
    assert list(rows) == ["automatic", "loop", "processes", "sync", "async", "subproc"]
    assert rows.pop("subproc")["failed"] == "OSError: too many processes"
    for row in rows.values():
        assert row["failed"] is None
        assert row["env-steps per second"] == pytest.approx(3000 / row["ms per step"])
        assert row["ratio"] == pytest.approx(row["ms per step"] / rows["automatic"]["ms per step"])


def test_the_benchmark_s_environments_never_end(monkeypatch):
    benchmark = load_benchmark(monkeypatch)
    env = benchmark.OneTask("CartPole-v1").make()
    env.reset(seed=0)
    steps = [env.step(1) for _ in range(50)]  # always to the right: it falls after ten
    assert not any(terminated or truncated for _, _, terminated, truncated, _ in steps)
    assert all(env.observation_space.contains(obs) for obs, *_ in steps)


def test_what_was_refused_can_be_closed():
    # Some of Gymnasium's versions do so when they collect it.
    ProcessVectorEnv.__new__(ProcessVectorEnv).close_extras()
