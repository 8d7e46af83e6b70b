"""The record of files that a user has trained with, and what a file from somebody else may import: nothing else."""

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TINY, same_params, tiny
from user_files import become_somebody_else, edit, forget_process, imports, write_family

import metarl
from metarl import MetaLearner, checkpoint, cli
from metarl.checkpoint import CheckpointError
from metarl.families import files, trusted_files
from metarl.source_files import Origin

REFERENCE = "family.py:make_family"
FEW = ["--tasks", "2", "--episodes", "2", "--steps", "1", "--no-figures", "--threads", "1"]


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """A folder with a run and the file of its family, from somebody else; the file that grows when that is imported."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv(trusted_files.VARIABLE, str(tmp_path / "theirs.json"))
    write_family(tmp_path / "shared")
    monkeypatch.chdir(tmp_path / "shared")
    forget_process(monkeypatch)
    MetaLearner("maml_trpo", REFERENCE, device="cpu", **TINY).learn(1, run_dir="run", eval_every=1, eval_tasks=2)
    become_somebody_else(monkeypatch, tmp_path / "mine.json")
    (tmp_path / "mark").unlink()
    return tmp_path / "mark"


def small() -> MetaLearner:
    return MetaLearner("maml_trpo", "PointNavigation-v0", device="cpu", **TINY)


LOADS: dict[str, Callable[[], Any]] = {
    "run": lambda: MetaLearner.load("run", device="cpu"),
    "checkpoint": lambda: MetaLearner.load("run/best.safetensors", device="cpu"),
    "start_from": lambda: small().start_from("run"),
    "resume": lambda: cli.run(["train", "--resume", "run", "--iterations", "2"]),
    "evaluate": lambda: cli.run(["evaluate", "run", *FEW]),
    "adapt": lambda: cli.run(["adapt", "run", "--task", "direction=0.5"]),
    "render": lambda: cli.run(["render", "run"]),
    "train": lambda: cli.run(["train", "maml_trpo", "PointNavigation-v0", "--start-from", "run", "--out", "next"]),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_file_from_somebody_else_is_not_imported(mark, load):
    said = "asks to import 'family.py:make_family', which you have not trained with before.*trust=True.*--trust"
    with pytest.raises(CheckpointError, match=said):
        load()
    assert imports(mark) == 0


@pytest.mark.parametrize("name", ["run", "resume"])
def test_nor_is_it_if_the_run_was_killed_before_its_first_checkpoint(mark, name):
    for state in ("latest", "previous", "best"):
        Path(f"run/{state}.safetensors").unlink(missing_ok=True)
    Path("run/metrics.csv").unlink()
    with pytest.raises(CheckpointError, match=r"config.json asks to import 'family.py:make_family'"):
        LOADS[name]()
    assert imports(mark) == 0


@pytest.mark.parametrize("words", [["--trust"], ["--family", REFERENCE]])
def test_it_is_on_the_command_line_if_the_user_says_so_each_time(mark, monkeypatch, words):
    assert cli.run(["evaluate", "run", *FEW, *words]) == 0
    assert imports(mark) == 1
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match="not trained with before"):  # to evaluate is not to train
        cli.run(["evaluate", "run", *FEW])


@pytest.mark.parametrize("allowed", [{"trust": True}, {"family": REFERENCE}], ids=["trust", "family"])
def test_and_in_python(mark, allowed):
    assert MetaLearner.load("run", device="cpu", **allowed).family.id == "Pushing-v0"


def test_what_is_imported_already_by_its_name_is_used(mark):
    metarl.make(REFERENCE)
    assert MetaLearner.load("run", device="cpu").family.id == "Pushing-v0"


def test_once_the_user_trains_with_it_it_is_remembered(mark, monkeypatch):
    cli.run(["train", "--resume", "run", "--iterations", "2", "--threads", "1", "--no-progress", "--trust"])
    forget_process(monkeypatch)
    assert cli.run(["evaluate", "run", *FEW]) == 0


def test_a_learner_that_was_only_made_is_not_remembered(mark, monkeypatch):
    MetaLearner("maml_trpo", REFERENCE, device="cpu", **TINY)
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match="not trained with before"):
        MetaLearner.load("run", device="cpu")


# ---------------------------------------------------------------------------------------------------------------------
# What a header may say about a file that the user has trained with


def header(id: str, sha256: Any = "own", kwargs: Any = None, path: str = "forged") -> str:
    """A checkpoint whose header names another object, content or arguments."""
    tensors, meta = checkpoint.load(Path("run/latest.safetensors"))
    made = meta["family"]["made"]
    made |= {"id": id, "kwargs": kwargs or {}}
    if sha256 is None:
        del made["sha256"]
    elif sha256 != "own":
        made["sha256"] = sha256
    checkpoint.save(Path(path), tensors, meta)
    return path


@pytest.fixture
def mine(mark, monkeypatch) -> Path:
    """The user has trained with `make_family` of the file."""
    tiny(metarl.make(REFERENCE)).learn(1, eval_every=0)
    forget_process(monkeypatch)
    return mark


def test_the_control_loads(mine):
    assert MetaLearner.load(header(REFERENCE), device="cpu").family.id == "Pushing-v0"


@pytest.mark.parametrize("id", ["family.py:system", "family.py:Pushing", "visible:family.py:system"])
def test_no_other_object_of_the_file_is_touched(mine, id):
    with pytest.raises(CheckpointError, match="which you have not trained with before"):
        MetaLearner.load(header(id, kwargs={"command": "touch the_mark"}), device="cpu")
    assert imports(mine) == 1


@pytest.mark.parametrize("id", ["family.py:os.system", "family.py:Pushing.make", "gym:family.py:system", "family.py:",
                                "family.py", "../shared/family.py"])  # fmt: skip
def test_what_is_no_reference_is_none(mine, id, monkeypatch):
    monkeypatch.setattr(files, "hint", lambda word: pytest.fail(f"{word} is looked into"))
    with pytest.raises(CheckpointError):
        MetaLearner.load(header(id), device="cpu")
    assert imports(mine) == 1


def test_another_file_of_that_name_is_not_trusted(mine, tmp_path, monkeypatch):
    forged = Path(header(REFERENCE)).resolve()
    write_family(tmp_path / "evil").write_text("import pathlib; pathlib.Path('evil').touch()\nmake_family = None\n")
    monkeypatch.chdir(tmp_path / "evil")
    assert MetaLearner.load(forged, device="cpu").family.id == "Pushing-v0"  # the user's own, found by its content
    forget_process(monkeypatch)
    for sha256 in (None, "0" * 64, 3):
        monkeypatch.chdir(tmp_path / "shared")
        forged = Path(header(REFERENCE, sha256)).resolve()
        monkeypatch.chdir(tmp_path / "evil")
        with pytest.raises(CheckpointError, match="not trained with before"):
            MetaLearner.load(forged, device="cpu")
    assert not Path("evil").exists()


def test_what_the_file_imports_comes_from_where_the_user_trained(mine, tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    for name in ("pushing_helpers.py", "json.py", "scipy.py"):
        (tmp_path / "evil" / name).write_text("import pathlib; pathlib.Path('evil').touch()\nSCALE = 1\n")
    forged = Path(header(REFERENCE)).resolve()
    monkeypatch.chdir(tmp_path / "evil")
    assert MetaLearner.load(forged, device="cpu").family.id == "Pushing-v0"
    Path(tmp_path / "shared" / "pushing_helpers.py").unlink()
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match="No module named 'pushing_helpers'"):
        MetaLearner.load(forged, device="cpu")
    assert not Path("evil").exists()


def test_its_arguments_are_checked_as_those_of_other_families(mine):
    with pytest.raises(CheckpointError, match="the file or address flavour='/etc/passwd'"):
        MetaLearner.load(header(REFERENCE, kwargs={"flavour": "/etc/passwd"}), device="cpu")
    with pytest.raises(CheckpointError, match="the file or address flavour="):
        MetaLearner.load(header(REFERENCE, kwargs={"flavour": "/etc/passwd"}), REFERENCE, device="cpu")


def test_what_is_to_be_typed_can_be_pasted_into_a_shell(mark):
    with pytest.raises(CheckpointError) as raised:
        MetaLearner.load(header("$(touch mark).py:f"), device="cpu")
    assert "--family PATH/TO/'$(touch mark).py:f'," in str(raised.value)
    Path("a b;c.py").touch()
    with pytest.raises(CheckpointError) as raised:
        MetaLearner.load(header("a b;c.py:f"), device="cpu")
    assert "--family 'a b;c.py:f' or" in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------------
# The record


def entry(n: int = 0) -> Origin:
    return Origin(f"/a/{n}.py", "make", "0" * 64, "/a")


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "state" / "record.json"
    monkeypatch.setenv(trusted_files.VARIABLE, str(path))
    return path


def test_the_record_is_the_users_alone_and_says_what_it_holds(record):
    before = os.umask(0)
    try:
        trusted_files.add(entry())
    finally:
        os.umask(before)
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700
    assert json.loads(record.read_text()) == {"version": 1, "files": [
        {"path": "/a/0.py", "name": "make", "sha256": "0" * 64, "folder": "/a"}]}  # fmt: skip
    assert trusted_files.known() == [entry()]


def test_the_record_lies_where_other_programs_keep_such_files(tmp_path, monkeypatch):
    monkeypatch.delenv(trusted_files.VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert trusted_files.record() == tmp_path / ".local/state/metarl/trusted_files.json"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, says the specification
    assert trusted_files.record() == tmp_path / ".local/state/metarl/trusted_files.json"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert trusted_files.record() == tmp_path / "state/metarl/trusted_files.json"


def test_an_entry_is_there_once_and_the_newest_stay(record, monkeypatch):
    monkeypatch.setattr(trusted_files, "MOST", 3)
    for n in (0, 0, 1, 2, 3, 3):
        trusted_files.add(entry(n))
    assert trusted_files.known() == [entry(1), entry(2), entry(3)]


def test_commands_that_start_together_all_stay_in_the_record(record):
    threads = [threading.Thread(target=trusted_files.add, args=(entry(n),)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(x.path for x in trusted_files.known()) == sorted(entry(n).path for n in range(16))


def test_a_record_that_cannot_be_replaced_keeps_its_content_and_training_goes_on(record, monkeypatch, tmp_path, mark):
    monkeypatch.setenv(trusted_files.VARIABLE, str(record))
    trusted_files.add(entry())
    family = metarl.make(REFERENCE)

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.warns(UserWarning, match=r"later commands will ask for --family"):
        learner = tiny(family).learn(1, eval_every=0)
    monkeypatch.undo()
    monkeypatch.setenv(trusted_files.VARIABLE, str(record))
    assert same_params(learner.state.params, tiny(family).learn(1, eval_every=0).state.params)
    assert entry() in trusted_files.known()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": [3, {"path": "x"}]}'])
@pytest.mark.filterwarnings("ignore:the record")
def test_a_damaged_record_trusts_nothing(mine, content):
    trusted_files.record().write_text(content)
    with pytest.raises(CheckpointError, match="not trained with before"):
        MetaLearner.load("run", device="cpu")


def test_a_damaged_record_is_reported(record):
    record.parent.mkdir()
    record.write_text("{")
    with pytest.warns(UserWarning, match="the record of files that you have trained with cannot be used"):
        assert trusted_files.known() == []


def test_a_record_that_others_can_write_to_trusts_nothing(mine):
    trusted_files.record().chmod(0o622)
    with pytest.warns(UserWarning, match="other users can write to it"), pytest.raises(CheckpointError):
        MetaLearner.load("run", device="cpu")
    trusted_files.record().chmod(0o600)
    assert MetaLearner.load("run", device="cpu").family.id == "Pushing-v0"


def test_the_content_counts_that_is_there_when_it_is_imported(mine):
    edit(Path("family.py"))
    with pytest.raises(CheckpointError, match="has changed since"):
        MetaLearner.load("run", device="cpu")
    assert imports(mine) == 1
    assert files.asked_for(REFERENCE, None, trust=True).path == str(Path("family.py").resolve())
