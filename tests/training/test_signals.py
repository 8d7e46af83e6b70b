"""Ctrl-C, SIGTERM, a closed terminal: the run is saved, and a second request ends it at once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import iterations_logged

from metarl import MetaLearner, cli
from metarl.training.directory import LATEST
from metarl.training.train import in_one_piece
from metarl.vector.survival import STOPPING

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

HELPERS = Path(__file__).parents[1] / "helpers"
RUN = ["train", "maml_trpo", "PointNavigation-v0", "--family-kwargs", "horizon=5", "--n-tasks", "2", "--episodes", "2",
       "--hidden", "8", "--threads", "1", "--iterations", "1000000", "--eval-every", "0", "--checkpoint-every",
       "1000000"]  # fmt: skip

STUBBORN = """
import time
from metarl.rollout.sampler import Sampler
collect, count = Sampler.collect, [0]
def stubborn(*args, **more):
    count[0] += 1
    if count[0] > 6:
        print("stuck", flush=True)
    while count[0] > 6:  # a simulator that catches every exception and tries again
        try:
            time.sleep(60)
        except BaseException:
            print("caught", flush=True)
    return collect(*args, **more)
Sampler.collect = stubborn
"""


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `metarl` in a process of its own, with the signals as a shell leaves them."""
    started: list[subprocess.Popen] = []

    def start(*argv: str, before: str = "", ignored: tuple[int, ...] = (), **options: Any) -> subprocess.Popen:
        def signals() -> None:
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        code = before + "\nfrom metarl.cli import main; main()"
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        started.append(subprocess.Popen([sys.executable, "-c", code, *argv], text=True, preexec_fn=signals, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def trained(out: Path, process: subprocess.Popen, rows: int) -> None:
    """Wait until this many iterations are logged."""
    end = time.monotonic() + 120
    while iterations_logged(out) < rows and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert iterations_logged(out) >= rows


def assert_saved(out: Path) -> None:
    done = MetaLearner.load(out).state.iteration
    assert done >= iterations_logged(out) - 1 >= 1


def test_a_hang_up_saves_the_run_as_a_polite_kill_does(tmp_path, launch):
    out = tmp_path / "run"
    process = launch(*RUN, "--no-progress", "--out", str(out))
    trained(out, process, 2)
    process.send_signal(signal.SIGHUP)
    text, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "which is saved. Go on with" in text
    assert_saved(out)


def test_a_run_whose_terminal_is_closed_is_saved(tmp_path, launch):
    # With progress shown: all that is written from then on fails.
    out, (terminal, inside) = tmp_path / "run", os.openpty()
    process = launch(*RUN, "--out", str(out), stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
                     before="import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)")  # fmt: skip
    os.close(inside)
    os.set_blocking(terminal, False)
    end = time.monotonic() + 120
    while iterations_logged(out) < 2 and process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        time.sleep(0.02)
    os.close(terminal)
    assert process.wait(60) == 130
    assert_saved(out)


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path, launch):
    out = tmp_path / "run"
    process = launch(*RUN, "--no-progress", "--out", str(out), ignored=(signal.SIGHUP,))
    trained(out, process, 2)
    process.send_signal(signal.SIGHUP)
    trained(out, process, iterations_logged(out) + 3)
    process.send_signal(signal.SIGTERM)  # the control
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_second_ctrl_c_ends_a_run_that_does_not_end_at_once_with_130_and_files_that_are_whole(tmp_path, launch):
    out = tmp_path / "run"
    process = launch(*RUN[:-1], "1", "--no-progress", "--out", str(out), before=STUBBORN)
    trained(out, process, 3)
    assert process.stdout is not None
    while "stuck" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    while "caught" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGINT)  # the same request, as from a wrapper that passes the terminal's on
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped at once" in errors and "Traceback" not in errors
    assert MetaLearner.load(out).state.iteration == 3
    assert [p.name for p in out.iterdir() if p.name.startswith(f".{LATEST}")] == []


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_what_must_not_be_interrupted_is_not(number):
    handlers = {each: signal.getsignal(each) for each in STOPPING}
    done = []
    for each in STOPPING:  # what started the tests may ignore them, as `nohup` and a shell's background jobs do
        signal.signal(each, signal.SIG_DFL)
    try:
        cli.stop_on_signals()

        def interrupted() -> None:
            with in_one_piece():
                signal.raise_signal(number)
                done.append(True)

        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert done == [True]
