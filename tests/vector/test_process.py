"""Worker processes: the numbers of the loop to the last bit, and no way to leave a process behind."""

import contextlib
import gc
import os
import re
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch
from probes import Drift, random_params
from process_episodes import E, K, assert_equal, play, tasks_of
from process_families import Closing, Failing, Noisy, Pid, Succeeding, WholeAtFirst
from processes import own_files, workers_of

import metarl.vector.process
from metarl import random
from metarl.algorithms.maml_trpo import Config
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import Rollout, collect
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv, WorkerError
from metarl.vector.tensor import TensorVectorEnv

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system"),
    pytest.mark.usefixtures("no_process_left"),
]


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
# The benchmark


def test_what_was_refused_can_be_closed():
    # Some of Gymnasium's versions do so when they collect it.
    ProcessVectorEnv.__new__(ProcessVectorEnv).close_extras()
