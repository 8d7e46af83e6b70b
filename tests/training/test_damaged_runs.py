"""Runs that were killed early, lost a file or met a full disk: what can go on goes on, and says what it did."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import contents, rows_without_time, tiny

from metarl import MetaLearner, checkpoint, cli
from metarl.checkpoint import CheckpointError, DamagedError
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.directory import BEST, CONFIG, LATEST, METRICS, PREVIOUS, RunDirectory, RunDirectoryError

TOTAL = 4
SCHEDULE: dict[str, Any] = {"eval_every": 2, "eval_tasks": 2, "checkpoint_every": 1}
TRAIN = ["train", "maml_trpo", "PointNavigation-v0", "--family-kwargs", "horizon=5", "--n-tasks", "2",
         "--episodes", "2", "--hidden", "8", "--iterations", "4", "--eval-every", "2", "--eval-tasks", "2",
         "--checkpoint-every", "1",
         "--threads", "1", "--no-progress"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    tiny().learn(TOTAL, run_dir=path, **SCHEDULE)
    return path


@pytest.fixture
def half(tmp_path, whole) -> Path:
    """The same run, stopped after iteration 3."""
    path = tmp_path / "half"
    tiny().learn(TOTAL, run_dir=path, callback=lambda stats: stats["iteration"] < 3, **SCHEDULE)
    return path


def resume(run: Path, *more: str) -> int:
    return cli.run(["train", "--resume", str(run), "--threads", "1", "--no-progress", *more])


def assert_same_run(run: Path, whole: Path) -> None:
    assert (run / LATEST).read_bytes() == (whole / LATEST).read_bytes()
    assert (run / BEST).read_bytes() == (whole / BEST).read_bytes()
    assert rows_without_time(run) == rows_without_time(whole)


# ---------------------------------------------------------------------------------------------------------------------
# Before the first checkpoint


@pytest.fixture
def stillborn(tmp_path, whole) -> Path:
    """What a kill before the first checkpoint leaves: settings, and temporary files."""
    path = tmp_path / "stillborn"
    path.mkdir()
    config = json.loads((whole / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps(config))
    for name in (CONFIG, METRICS, LATEST):
        (path / f".{name}.{'0' * 32}").write_bytes(b"half")
    (path / METRICS).write_bytes(b"")
    (path / "events.out.tfevents.1.x").write_bytes(b"")
    return path


def test_it_can_be_resumed(stillborn, whole):
    assert resume(stillborn) == 0
    assert_same_run(stillborn, whole)
    assert [path.name for path in stillborn.iterdir() if path.name.startswith(".")] == []


def test_it_can_be_started_again(stillborn, whole):
    assert cli.run([*TRAIN, "--out", str(stillborn)]) == 0
    assert_same_run(stillborn, whole)
    assert [path.name for path in stillborn.iterdir() if path.name.startswith(".")] == []


def test_even_with_nothing_but_a_temporary_file(tmp_path, whole):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".{CONFIG}.{'1' * 32}").write_bytes(b"{")
    assert cli.run([*TRAIN, "--out", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("name", ["notes.txt", LATEST, PREVIOUS, BEST, ".hidden"])
def test_anything_else_in_it_is_never_overwritten(stillborn, name):
    (stillborn / name).write_bytes(b"mine")
    before = contents(stillborn)
    with pytest.raises(ValueError, match="is not empty"):
        cli.run([*TRAIN, "--out", str(stillborn)])
    assert contents(stillborn) == before


def test_rows_without_a_checkpoint_are_results_too(stillborn, half):
    shutil.copy(half / METRICS, stillborn / METRICS)
    with pytest.raises(ValueError, match="is not empty"):
        cli.run([*TRAIN, "--out", str(stillborn)])
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        resume(stillborn)


def test_a_start_from_another_learner_has_to_be_started_again(stillborn):
    config = json.loads((stillborn / CONFIG).read_text())
    (stillborn / CONFIG).write_text(json.dumps(config | {"started_from": {"path": "x"}}))
    with pytest.raises(CheckpointError, match="start it again the way it was started"):
        resume(stillborn)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(b""), Path.unlink], ids=["bit", "empty", "gone"]
)
def test_the_previous_checkpoint_stands_in_for_the_latest(half, whole, capsys, damage):
    damage(half / LATEST)
    assert resume(half) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "note:" in said and f"Instead of it {half / PREVIOUS} is used, of iteration" in said
    assert_same_run(half, whole)


def test_the_damaged_one_never_takes_the_place_of_the_previous(half, monkeypatch):
    flip(half / LATEST)
    good = (half / PREVIOUS).read_bytes()
    with pytest.warns(UserWarning, match="Instead of it"):
        learner = MetaLearner.load(half, device="cpu")
    assert (half / LATEST).exists()  # loading changes nothing
    monkeypatch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        learner.learn(1, run_dir=half)
    assert (half / PREVIOUS).read_bytes() == good and (half / "latest.damaged.safetensors").exists()


def test_when_both_are_damaged_the_latest_is_named_and_nothing_changes(half):
    flip(half / LATEST), flip(half / PREVIOUS)
    before = contents(half)
    with pytest.raises(DamagedError, match=r"latest\.safetensors is damaged"):
        resume(half)
    assert contents(half) == before


def test_few_shot_runs_have_a_previous_checkpoint_too(tmp_path):
    run = tmp_path / "run"
    FewShotLearner(Sinusoid(), device="cpu", n_tasks=2).learn(2, run_dir=run, checkpoint_every=1)
    flip(run / LATEST)
    with pytest.warns(UserWarning, match="Instead of it"):
        FewShotLearner.load(run, Sinusoid(), device="cpu").learn(1, run_dir=run)
    assert FewShotLearner.load(run, Sinusoid(), device="cpu").state.iteration == 3


CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "list": lambda c: [], "null": lambda c: None, "empty": lambda c: {}, "number": lambda c: 3,
    "no iterations": lambda c: {k: v for k, v in c.items() if k != "iterations"},
    "no schedule": lambda c: {k: v for k, v in c.items() if k != "schedule"},
    "words": lambda c: c | {"iterations": "many"}, "config": lambda c: c | {"config": None},
}  # fmt: skip


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_config_is_written_anew_when_the_total_is_said(half, change):
    (half / CONFIG).write_text(json.dumps(change(json.loads((half / CONFIG).read_text()))))
    with pytest.raises(DamagedError, match=f"config.json is damaged: .*--resume {half} --iterations TOTAL"):
        resume(half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert resume(half, "--iterations", "4") == 0
    assert MetaLearner.load(half, device="cpu").state.iteration == 4
    assert resume(half) == 0  # it has done its 4 iterations


@pytest.mark.parametrize(
    ("part", "match"),
    [({"seed": 5}, "says seed=5, the checkpoint beside it 0"), ({"algorithm": "promp"}, "says algorithm='promp'"),
     ({"config": {"gamma": 0.5}}, "says gamma=0.5"), ({"config": {"magic": 1}}, "the setting 'magic', which this"),
     ({"schedule": {"often": 3}}, r"the schedule \['often'\], which this version does not know")],
)  # fmt: skip
def test_a_config_that_contradicts_the_checkpoint_is_shown_beside_it(half, part, match):
    config = json.loads((half / CONFIG).read_text())
    for name, value in part.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (half / CONFIG).write_text(json.dumps(config))
    before = contents(half)
    with pytest.raises(CheckpointError, match=match):
        resume(half)
    assert contents(half) == before


@pytest.mark.parametrize(
    ("damage", "rows", "match"),
    [(lambda text: text.split("\n", 1)[1], [4], "has no header"), (lambda text: "\0" * 50, [4], "lacks the rows"),
     (lambda text: text.replace("\n2,", "\n2,x", 1), [1, 3, 4], "row 2 cannot be read"),
     (lambda text: text + text.split("\n")[1] + "\n", [1, 2, 3, 4], "row 4 is of iteration 1 again")],
    ids=["header", "nothing", "cell", "twice"],
)  # fmt: skip
def test_damaged_metrics_are_kept_and_what_can_be_read_goes_on(half, whole, capsys, damage, rows, match):
    before = damage((half / METRICS).read_text())
    (half / METRICS).write_text(before)
    assert resume(half) == 0
    assert match in " ".join(capsys.readouterr().err.split())
    assert (half / "metrics.damaged.csv").read_text() == before
    assert [row["iteration"] for row in RunDirectory(half).metrics()] == rows
    assert (half / LATEST).read_bytes() == (whole / LATEST).read_bytes()


def test_a_row_torn_inside_its_last_cell_is_no_row(half):
    text = (half / METRICS).read_text()
    (half / METRICS).write_text(text[:-3])
    assert [row["iteration"] for row in RunDirectory(half).metrics()] == [1, 2]
    (half / METRICS).write_text(text)  # the control
    assert [row["iteration"] for row in RunDirectory(half).metrics()] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Disks, directories, numbers


def test_a_full_disk_loses_nothing_that_was_saved(half, whole, monkeypatch):
    fsync, full = os.fsync, [False]

    def sync(descriptor: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    learner = MetaLearner.load(half, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        step = learner._step
        patch.setattr(learner, "_step", lambda state: (full.__setitem__(0, True), step(state))[1])
        with pytest.raises(OSError, match="No space left on device"):
            learner.learn(1, run_dir=half, **SCHEDULE)
    before = {name: (half / name).read_bytes() for name in (LATEST, PREVIOUS, BEST)}
    assert all(checkpoint.load(half / name)[1]["state"]["iteration"] in (2, 3) for name in before)
    assert [path.name for path in half.iterdir() if path.name.startswith(".")] == []
    assert resume(half) == 0
    assert_same_run(half, whole)


def test_the_error_names_the_file_and_says_that_it_is_intact(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "x", {"a": torch.zeros(1)}, {})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot write .*x: No space left on device; what it held before is intact"):
        checkpoint.save(tmp_path / "x", {"a": torch.ones(1)}, {})
    with pytest.raises(OSError, match="nothing was written"):
        checkpoint.save(tmp_path / "y", {"a": torch.ones(1)}, {})
    assert checkpoint.load(tmp_path / "x")[0]["a"].item() == 0 and list(contents(tmp_path)) == ["x"]


@pytest.mark.parametrize("how", ["deleted", "emptied", "moved"])
def test_a_directory_that_goes_away_ends_the_training_with_an_error_and_the_state_saved(tmp_path, whole, how):
    run, away = tmp_path / "run", tmp_path / "away"

    def lose(stats: dict[str, Any]) -> None:
        if stats["iteration"] == 2:
            if how == "moved":
                run.rename(away)
            elif how == "deleted":
                shutil.rmtree(run)
            else:
                [path.unlink() for path in run.iterdir()]

    with pytest.raises(RunDirectoryError, match=r"was deleted or moved .*metarl train --resume"):
        tiny().learn(TOTAL, run_dir=run, callback=lose, **SCHEDULE)
    with pytest.warns(UserWarning, match="lacks the rows"):
        MetaLearner.load(run, device="cpu").learn(1, run_dir=run, **SCHEDULE)
    assert (run / LATEST).read_bytes() == (whole / LATEST).read_bytes()
    if how == "moved":
        assert MetaLearner.load(away, device="cpu").state.iteration == 2


def test_numbers_that_are_not_finite_end_the_training_and_never_replace_a_checkpoint(half, monkeypatch):
    learner, before = MetaLearner.load(half, device="cpu"), (half / LATEST).read_bytes()
    step = learner._step

    def broken(state: Any) -> tuple[Any, dict[str, Any]]:
        new, stats = step(state)
        new.params["w0"][0, 0] = float("nan")
        return new, stats

    monkeypatch.setattr(learner, "_step", broken)
    with pytest.raises(CheckpointError, match=r"iteration 4 made 'params/w0' not finite"):
        learner.learn(1, run_dir=half, **SCHEDULE)
    assert (half / LATEST).read_bytes() == before and learner.state.iteration == 3
    assert [row["iteration"] for row in RunDirectory(half).metrics()] == [1, 2, 3]


def test_nor_does_save(tmp_path):
    learner = tiny()
    learner.save(tmp_path / "l")
    before = (tmp_path / "l").read_bytes()
    learner.state.params["b0"][0] = float("inf")
    with pytest.raises(
        CheckpointError, match="'params/b0' has values that are not finite; what it held before is kept"
    ):
        learner.save(tmp_path / "l")
    assert (tmp_path / "l").read_bytes() == before


def test_a_full_disk_is_told_in_a_few_lines_with_the_way_on(tmp_path):
    code = (
        "import resource; from metarl.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY)); main()"
    )
    argv = [word if word != "4" else "400" for word in TRAIN]
    done = subprocess.run([sys.executable, "-c", code, *argv, "--out", "run"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "note: the last checkpoint is intact. Go on with metarl train --resume run" in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert resume(tmp_path / "run", "--iterations", "12") == 0
