"""One process at a time trains in a run's directory; reading it needs no permission."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from supervised_twins import SMALL
from tiny_runs import tiny

from metarl import MetaLearner, cli
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.directory import CONFIG, LATEST, RunDirectory, RunDirectoryError
from metarl.training.lock import LOCK, DirectoryInUseError, DirectoryLock

HOLD = """
import sys
from pathlib import Path
from metarl.training.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


class held:
    """Another process that holds the lock of `path`."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(self.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
        assert self.process.stdout.readline() == b"held\n"
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def few_shot() -> FewShotLearner:
    return FewShotLearner(Sinusoid(), device="cpu", **SMALL)


KINDS = {
    "MetaLearner": (tiny, lambda path: MetaLearner.load(path, device="cpu")),
    "FewShotLearner": (few_shot, lambda path: FewShotLearner.load(path, Sinusoid(), device="cpu")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_process_is_refused_and_may_read(tmp_path, kind):
    make, load = KINDS[kind]
    run = tmp_path / "run"
    make().learn(1, run_dir=run)
    assert not (run / LOCK).exists()  # nothing is left behind
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with held(run):
        again = load(run)
        assert again.state.iteration == 1 and again.evaluate(2)
        with pytest.raises(DirectoryInUseError, match=r"run is in use: another process trains in it\. Wait"):
            again.learn(1, run_dir=run)
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before | {LOCK: b""}
    assert load(run).learn(1, run_dir=run).state.iteration == 2  # it was killed with SIGKILL
    assert not (run / LOCK).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_a_new_run_take_a_directory_where_one_begins(tmp_path, kind):
    make, _ = KINDS[kind]
    with held(tmp_path / "run"), pytest.raises(DirectoryInUseError):
        make().learn(1, run_dir=tmp_path / "run")
    make().learn(1, run_dir=tmp_path / "run")  # what a killed process left is no run


@pytest.mark.parametrize("kind", KINDS)
def test_while_training_the_lock_is_held_and_afterwards_it_is_not(tmp_path, kind):
    make, load = KINDS[kind]
    code = HOLD.replace("lock.acquire()", "try: lock.acquire()\nexcept OSError as error: print(error); sys.exit(3)")

    def other(_: object = None) -> int:
        command = [sys.executable, "-c", code, str(tmp_path / "run")]
        return subprocess.run(command, input=b"", capture_output=True, check=False).returncode

    found = []
    make().learn(1, run_dir=tmp_path / "run", callback=lambda _: found.append(other()))
    assert found == [3] and other() == 0

    def fail(_: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        load(tmp_path / "run").learn(1, run_dir=tmp_path / "run", callback=fail)
    assert other() == 0


def test_a_process_that_the_holder_started_does_not_hold_it(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        lock.release()
        with held(tmp_path):  # the child still has the file open
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_that_outlives_the_killed_holder_does_not_hold_it(tmp_path):
    code = HOLD.replace('print("held"', 'import os\nchild = os.fork()\nif child == 0: import time; time.sleep(600)\n'
                        'print(child, flush=True)\nprint("held"')  # fmt: skip
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        try:
            assert process.stdout.readline() == b"held\n"
            process.kill()
            process.wait()
            os.kill(child, 0)  # it is there
            with held(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_lock_stays_whatever_else_the_process_does_with_the_file(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    (tmp_path / LOCK).read_bytes()  # opened and closed: a record lock would be gone
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    child = os.fork()
    if child == 0:
        lock.release()  # which is not its own
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).exists()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert done.returncode == 1 and b"DirectoryInUseError" in done.stderr
    lock.release()
    with held(tmp_path):
        pass


# ---------------------------------------------------------------------------------------------------------------------
# Within one process


@pytest.mark.parametrize("learner", [tiny, few_shot])
def test_a_second_learner_of_this_process_is_refused_and_the_first_keeps_its_lock(tmp_path, learner):
    path, refused = tmp_path / "run", []

    def others(_: object) -> None:
        for _ in range(2):
            with pytest.raises(DirectoryInUseError, match="another learner of this process trains in it"):
                learner().learn(1, run_dir=path)
        code = ("import sys; from pathlib import Path; from metarl.training.lock import *\ntry: "
                "DirectoryLock(Path(sys.argv[1])).acquire()\nexcept DirectoryInUseError: print('refused')")  # fmt: skip
        out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        refused.append(out.stdout.strip())

    learner().learn(1, run_dir=path, callback=others)
    assert refused == ["refused"]


@pytest.mark.parametrize("learner", [tiny, few_shot])
def test_one_that_cannot_begin_leaves_no_lock(tmp_path, learner, monkeypatch):
    one = learner()
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "open_logger", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full") as kept:  # with its traceback, and all that was going on
            one.learn(1, run_dir=tmp_path / "run")
    one.learn(1, run_dir=tmp_path / "run")
    assert kept and one.state.iteration == 1


def test_a_busy_run_is_one_line_before_anything_is_loaded(tmp_path, capsys):
    path = tmp_path / "run"
    tiny().learn(1, run_dir=path)
    lock = DirectoryLock(path)
    lock.acquire()
    with pytest.raises(DirectoryInUseError):
        cli.run(["train", "--resume", str(path), "--iterations", "3", "--threads", "1", "--no-progress"])
    assert capsys.readouterr() == ("", "")  # no note that sends the user back to --resume
    lock.release()
    assert cli.run(["train", "--resume", str(path), "--iterations", "3", "--threads", "1", "--no-progress"]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# A directory that another run has taken


def test_a_run_that_took_the_place_of_a_deleted_one_is_not_overwritten(tmp_path):
    path, other = tmp_path / "run", tiny(seed=1)

    def replaced(stats: dict[str, Any]) -> None:
        shutil.rmtree(path)
        other.learn(1, run_dir=path)

    with pytest.raises(RunDirectoryError, match="another run is there now: the present state is not saved"):
        tiny().learn(3, run_dir=path, callback=replaced, checkpoint_every=1)
    assert MetaLearner.load(path, device="cpu").seed == 1


def test_nor_is_one_that_is_about_to_begin_there(tmp_path):
    path, locks = tmp_path / "run", []

    def replaced(stats: dict[str, Any]) -> None:
        shutil.rmtree(path)
        locks.append(DirectoryLock(path))
        locks[0].acquire()  # its settings are about to be written

    with pytest.raises(RunDirectoryError, match="another run is there now"):
        tiny().learn(3, run_dir=path, callback=replaced, checkpoint_every=1)
    assert not (path / CONFIG).exists() and not (path / LATEST).exists()
