"""Kill the process that trains, with no chance to tidy up: nothing that it started goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_families import Noisy, Stuck
from processes import gone, running, workers_of

from metarl.vector.process import ProcessVectorEnv, WorkerError
from metarl.vector.survival import Guardian

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

HELPERS = Path(__file__).parents[1] / "helpers"

PARENT = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from process_families import Stuck
from metarl.vector import process, survival, worker
{before}
family = Stuck({how!r})
env = process.ProcessVectorEnv(family, 2, 1, 2)
env.reset(seed=0, options={{"tasks": family.sample(2, np.random.default_rng(0))}})
print("ready", flush=True)
while True:
    env.step(np.zeros((2, 2), np.float32))
"""


def family_of(parent: int) -> list[int]:
    """The workers of a process, their guardian, and what their environments started."""
    return workers_of(parent) + running(f"metarl-guardian\0{parent}\0") + running(f"sleep\00096{parent}")


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen]]:
    started: list[subprocess.Popen] = []

    def start(how: str = "slow", before: str = "", wait: bool = True) -> subprocess.Popen:
        code = PARENT.format(tests=str(HELPERS), how=how, before=before)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(process)
        if wait:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for left in family_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def stop(process: subprocess.Popen) -> None:
    for worker in workers_of(process.pid):
        os.kill(worker, signal.SIGSTOP)


@pytest.mark.parametrize(
    ("how", "first"), [("slow", None), ("lock", None), ("slow", stop)], ids=["stepping", "hanging in C", "stopped"]
)
def test_a_killed_parent_takes_workers_guardian_and_their_environments_processes_along(launch, how, first):
    process = launch(how)
    assert len(family_of(process.pid)) == 2 + 1 + 2
    time.sleep(0.3)  # by now they hang
    if first is not None:
        first(process)
    process.kill()
    process.wait()
    assert gone(lambda: family_of(process.pid), 20.0), family_of(process.pid)


def test_without_the_guardian_an_environments_processes_would_go_on(launch):
    # The control: the kernel ends the workers, and nobody else's children.
    stub = "process.Guardian = lambda groups: None"
    process = launch("lock", before=stub)
    process.kill()
    process.wait()
    assert gone(lambda: workers_of(process.pid), 20.0)
    assert len(family_of(process.pid)) == 2


@pytest.mark.slow
def test_without_the_kernels_help_the_guardian_ends_workers_too(launch):
    process = launch("lock", before="process.started_by_main_thread = lambda: False")
    process.kill()
    process.wait()
    assert gone(lambda: family_of(process.pid), 20.0), family_of(process.pid)


def killed_after(launch: Callable[..., subprocess.Popen], seconds: float) -> None:
    process = launch(wait=False)
    time.sleep(seconds)
    process.kill()
    process.wait()
    assert gone(lambda: family_of(process.pid), 20.0), (seconds, family_of(process.pid))


def test_at_whatever_moment_the_parent_is_killed_nothing_goes_on(launch):
    for seconds in np.random.default_rng(15).uniform(0.5, 5.0, 2).tolist():
        killed_after(launch, seconds)


@pytest.mark.slow
def test_at_thirty_moments(launch):
    for seconds in np.random.default_rng(16).uniform(0.2, 6.0, 30).tolist():
        killed_after(launch, seconds)


# ---------------------------------------------------------------------------------------------------------------------
# While the parent lives


def test_a_worker_that_was_started_by_another_thread_outlives_that_thread():
    import threading

    family, found = Noisy(), []
    env = ProcessVectorEnv(family, 2, 1, 1)
    tasks = family.sample(2, np.random.default_rng(0))
    thread = threading.Thread(target=lambda: found.append(env.reset(seed=0, options={"tasks": tasks})))
    thread.start()
    thread.join()
    time.sleep(0.5)
    env.step(np.zeros((2, 2), np.float32))  # the kernel would have killed it when the thread ended
    env.close()
    assert found


def test_the_guardian_goes_with_its_workers_and_ends_nobody_else():
    before = running(f"metarl-guardian\0{os.getpid()}\0")  # those of pools that other tests left open
    other = subprocess.Popen(["sleep", "100"], start_new_session=True)
    guardian = Guardian([other.pid])
    deadline = time.monotonic() + 10.0  # for a moment after it was started a process has no command line yet
    while set(running(f"metarl-guardian\0{os.getpid()}\0")) != {*before, guardian.pid}:
        assert time.monotonic() < deadline, "the guardian is not there"
        time.sleep(0.01)
    guardian.dismiss()
    assert running(f"metarl-guardian\0{os.getpid()}\0") == before
    assert other.poll() is None
    other.kill()
    other.wait()


def reset(family: Any, timeout: float) -> ProcessVectorEnv:
    env = ProcessVectorEnv(family, 2, 1, 2, timeout=timeout)
    env.reset(seed=0, options={"tasks": family.sample(2, np.random.default_rng(0))})
    return env


def test_a_stopped_worker_is_reported_and_ended_in_bounded_time():
    before = set(workers_of(os.getpid()))
    env = reset(Noisy(), 30.0)
    env.timeout = 1.0
    os.kill(next(pid for pid in workers_of(os.getpid()) if pid not in before), signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match="has not answered for 1 seconds"):
        env.step(np.zeros((2, 2), np.float32))
    assert time.monotonic() - begin < 20.0
    assert set(workers_of(os.getpid())) <= before


@pytest.mark.parametrize(
    ("how", "message"),
    [("lock", r"has not answered for 1 seconds in step 0 of episode 0 of task \d(?s:.*)in step"),
     ("pipe", "has closed its pipe to the parent and goes on in step 0 of episode 0 of task")],
    ids=["hanging in C", "without its pipe"],
)  # fmt: skip
def test_a_worker_that_hangs_is_reported_with_its_place_in_bounded_time(how, message, monkeypatch):
    monkeypatch.setattr("metarl.vector.process._REAPING", 1.0)
    before = set(family_of(os.getpid()))
    env = reset(Stuck(how), 30.0)
    env.timeout = 1.0
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=message):
        env.step(np.zeros((2, 2), np.float32))
    assert time.monotonic() - begin < 20.0
    assert set(family_of(os.getpid())) <= before
