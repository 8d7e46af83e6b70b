"""What goes wrong in a worker process is an error that says where, and nothing is left behind."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from gymnasium.spaces import Dict, Discrete
from process_episodes import E, K, assert_equal, play, tasks_of
from process_families import Failing, Leaky, Noisy, Unpicklable
from processes import gone, running, workers_of

from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv, WorkerError

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system"),
    pytest.mark.usefixtures("no_process_left"),
]

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
