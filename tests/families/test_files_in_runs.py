"""Runs of a family in a file of the user's: every command finds it, trusts it or says what to type; so do workers."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from tiny_runs import TINY, contents, same_params, tiny
from user_files import REFERENCE, edit, forget_process, imports, write_family

import metarl
from metarl import MetaLearner, cli, source_files
from metarl.checkpoint import CheckpointError
from metarl.families import trusted_files
from metarl.families.saved import origin_of
from metarl.training.directory import CONFIG
from metarl.vector.backends import make_vector
from metarl.vector.process import ProcessVectorEnv, WorkerError

SMALL = ["--n-tasks", "2", "--episodes", "2", "--hidden", "8", "--threads", "1", "--device", "cpu", "--no-progress",
         "--iterations", "1", "--eval-every", "0"]  # fmt: skip
FEW = ["--tasks", "2", "--episodes", "2", "--steps", "1", "--no-figures", "--threads", "1"]


def trained(out: str = "run", reference: str = REFERENCE, *more: str) -> Path:
    assert cli.run(["train", "maml_trpo", reference, *SMALL, "--out", out, *more]) == 0
    return Path(out)


# ---------------------------------------------------------------------------------------------------------------------
# On the command line, and in runs


def test_every_command_knows_the_file_that_was_trained_with(mark, monkeypatch, capsys):
    run = trained("run", REFERENCE, "--family-kwargs", "horizon=3")
    commands = {
        "evaluate": ["evaluate", "run", *FEW],
        "adapt": ["adapt", "run", "--task", "direction=0.5", "--out", "policy"],
        "render": ["render", "run", "--out", "film.gif"],
        "resume": ["train", "--resume", "run", "--iterations", "2", "--threads", "1", "--no-progress"],
        "start": ["train", "maml_trpo", REFERENCE, "--family-kwargs", "horizon=3", *SMALL, "--start-from", "run",
                  "--out", "next"],
    }  # fmt: skip
    for count, argv in enumerate(commands.values(), 2):
        forget_process(monkeypatch)
        assert cli.run(argv) == 0
        assert imports(mark) == count
    assert Path("run/evaluation/adaptation.csv").exists() and Path("film.gif").exists()
    loaded = MetaLearner.load(run, device="cpu")
    expected = tiny(metarl.make(REFERENCE, horizon=3)).learn(2, eval_every=0)
    assert loaded.family.horizon == 3
    assert same_params(loaded.state.params, expected.state.params)


def test_the_run_keeps_the_reference_and_a_hash_and_no_directory(mark, tmp_path, monkeypatch):
    run = trained("run", f"{tmp_path}/project/family.py:make_family")
    made = json.loads((run / CONFIG).read_text())["family"]["made"]
    assert made == {"id": REFERENCE, "kwargs": {}, "sha256": source_files.read(Path("family.py"))}
    assert cli.run(["evaluate", "run", *FEW]) == 0
    assert cli.run(["adapt", "run", "--task", "direction=0.5", "--out", "run/policy"]) == 0
    assert len(contents(run)) == 8
    for name, content in contents(run).items():
        assert str(tmp_path).encode() not in content, name
    Path("sub").mkdir()
    monkeypatch.chdir("sub")
    made = json.loads((trained("run", "../family.py:make_family") / CONFIG).read_text())["family"]["made"]
    assert made["id"] == "../family.py:make_family"  # as it was typed


@pytest.mark.parametrize(
    ("family", "name"),
    [("family.py:make_family", "family-make_family"), ("../project/family.py:family", "family-family"),
     ("/a/b.py:c", "b-c"), ("visible:x/family.py:f", "visible-family-f"), ("gym:P-v1", "gym-P-v1")],
)  # fmt: skip
def test_the_default_directory_is_named_after_file_and_object(family, name):
    assert cli._file_name(family) == name


def test_a_run_is_found_its_file_from_another_folder(mark, tmp_path, monkeypatch):
    trained()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    forget_process(monkeypatch)
    assert cli.run(["evaluate", "../project/run", *FEW]) == 0


def typed(error: BaseException) -> list[str]:
    """The words for the command line that an error names."""
    found = re.search(r"on the command line (--family \S+)", str(error))
    assert found is not None, str(error)
    return shlex.split(found[1])


def test_a_file_that_has_changed_is_not_imported_until_it_is_named(mark, monkeypatch, capsys):
    trained()
    edit(Path("family.py"))
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match="has changed since") as raised:
        cli.run(["evaluate", "run", *FEW])
    assert imports(mark) == 1
    assert cli.run(["evaluate", "run", *FEW, *typed(raised.value)]) == 0
    assert "note: family.py has changed since the run was saved" in capsys.readouterr().err
    assert imports(mark) == 2


def test_so_does_one_that_has_changed_elsewhere(mark, tmp_path, monkeypatch):
    trained()
    edit(Path("family.py"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for allowed in (typed, lambda error: ["--trust"]):
        forget_process(monkeypatch)
        with pytest.raises(CheckpointError, match="has changed since") as raised:
            cli.run(["evaluate", "../project/run", *FEW])
        assert cli.run(["evaluate", "../project/run", *FEW, *allowed(raised.value)]) == 0


def test_a_file_of_the_same_name_in_another_project_does_not_stand_in_for_it(mark, tmp_path, monkeypatch):
    trained()
    other = write_family(tmp_path / "other")
    other.write_text(other.read_text() + "\n# another project's\n")
    monkeypatch.chdir(tmp_path / "other")
    forget_process(monkeypatch)
    trained()
    forget_process(monkeypatch)
    learner = MetaLearner.load("../project/run", device="cpu")
    assert origin_of(learner.family).path == str(tmp_path / "project" / "family.py")
    edit(tmp_path / "project" / "family.py")
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match="has changed since") as raised:
        cli.run(["evaluate", "../project/run", *FEW])
    assert typed(raised.value) == ["--family", f"{tmp_path}/project/family.py:make_family"]


def test_a_changed_file_is_resumed_with_and_the_run_remembers_the_new_one(mark, monkeypatch):
    trained()
    edit(Path("family.py"))
    forget_process(monkeypatch)
    argv = ["train", "--resume", "run", "--iterations", "2", "--threads", "1", "--no-progress"]
    with pytest.raises(CheckpointError, match="has changed since"):
        cli.run(argv)
    assert cli.run([*argv, "--family", REFERENCE]) == 0
    forget_process(monkeypatch)
    assert cli.run(["evaluate", "run", *FEW]) == 0


def test_a_file_that_was_moved_is_named_where_it_is(mark, tmp_path, monkeypatch):
    trained("run", REFERENCE, "--family-kwargs", "horizon=3")
    write_family(tmp_path / "project" / "new", "renamed.py")
    Path("family.py").unlink()
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match=r"no such file in /.*--family PATH/TO/family.py:make_family"):
        cli.run(["evaluate", "run", *FEW])
    argv = ["evaluate", "run", *FEW, "--family", "new/renamed.py:make_family"]
    assert cli.run(argv) == 0  # with the arguments of the run: in other spaces, or with another horizon, it would not


def test_a_run_of_an_object_says_what_to_type_and_remembers_it(mark, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path.cwd())
    pushing = importlib.import_module("family").Pushing
    monkeypatch.delitem(sys.modules, "family")
    MetaLearner("maml_trpo", pushing(), device="cpu", **TINY).learn(1, run_dir="run", eval_every=0)
    commands = [["evaluate", "run", *FEW], ["adapt", "run", "--task", "direction=0.5"], ["render", "run"],
                ["train", "--resume", "run", "--iterations", "2", "--threads", "1", "--no-progress"]]  # fmt: skip
    for argv in commands:
        with pytest.raises(CheckpointError, match=r"'Pushing-v0'.*--family FILE.py:NAME, an object in a Python file"):
            cli.run(argv)
    for argv in commands:
        assert cli.run([*argv, "--family", REFERENCE]) == 0
    assert json.loads(Path("run", CONFIG).read_text())["family"]["made"]["id"] == REFERENCE
    forget_process(monkeypatch)
    assert cli.run(["evaluate", "run", *FEW]) == 0


def test_a_family_of_another_kind_in_the_file_is_refused(mark):
    trained()
    with pytest.raises(CheckpointError, match="another family"):
        cli.run(["evaluate", "run", *FEW, "--family", "family.py:family"])


ALIKE = """
import metarl
from gymnasium.spaces import Box


def make(g=15.0):
    return metarl.from_gymnasium("Pendulum-v1", {"g": Box(5.0, g)}, horizon=4)


def point():
    return metarl.make("PointNavigation-v0", horizon=5)
"""


@pytest.mark.parametrize(
    ("family", "other", "told"),
    [
        (["alike.py:make"], "other.py:make", "with tasks in Dict('g': Box(5.0, 15.0, (), float32)), and cannot go on "
                                             "with alike.py:make with tasks in Dict('g': Box(5.0, 16.0"),
        (["PointNavigation-v0", "--family-kwargs", "horizon=5"], "alike.py:point",
         "PointNavigation-v0 made with {'horizon': 5}, and cannot go on with alike.py:point: a run keeps its family"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("damaged", [False, True])
def test_a_resumed_run_keeps_its_family_and_says_so_alone(mark, family, other, told, damaged, capsys):
    Path("alike.py").write_text(ALIKE)
    Path("other.py").write_text(ALIKE.replace("15.0", "16.0"))
    assert cli.run(["train", "maml_trpo", *family, *SMALL, "--out", "run"]) == 0
    if damaged:
        Path("run", CONFIG).write_text("[]")
    before, known = contents(Path("run")), trusted_files.known()
    capsys.readouterr()
    with pytest.raises(CheckpointError) as raised:
        cli.run(["train", "--resume", "run", "--iterations", "2", "--threads", "1", "--family", other])
    assert told in str(raised.value)
    assert "".join(capsys.readouterr()) == ""  # no warning that contradicts it
    assert (contents(Path("run")), trusted_files.known()) == (before, known)
    with pytest.warns(UserWarning, match="training and evaluation go on"):
        learner = MetaLearner.load("run", other, device="cpu")
    learner.evaluate(2, steps=1)  # which mixes nothing
    with pytest.raises(CheckpointError, match="a run keeps its family"):
        learner.learn(1, run_dir="run", eval_every=0)
    assert contents(Path("run")) == before


def test_an_error_in_the_named_file_is_no_damage_of_the_run(mark, capsys):
    trained()
    Path("broken.py").write_text("1 / 0\n")
    for word in ("broken.py:x", "nowhere.py:x", "Nowhere-v0"):
        with pytest.raises(CheckpointError, match="cannot be loaded with the family") as raised:
            cli.run(["train", "--resume", "run", "--iterations", "2", "--family", word])
        assert type(raised.value) is CheckpointError


# ---------------------------------------------------------------------------------------------------------------------
# Worker processes


def rollout(env: gym.vector.VectorEnv, tasks: Any) -> list[np.ndarray]:
    out = [np.asarray(env.reset(seed=list(range(env.num_envs)), options={"tasks": tasks})[0])]
    for _ in range(3):
        obs, reward, *_ = env.step(np.full((env.num_envs, 1), 0.5, np.float32))
        out += [np.asarray(obs), np.asarray(reward)]
    env.close()
    return out


@pytest.mark.parametrize("name", ["make_family", "Pushing", "family"])
def test_workers_step_what_was_read_whatever_the_file_holds_by_then(mark, name):
    family = metarl.make(f"family.py:{name}")
    tasks = family.sample(2, np.random.default_rng(0))
    expected = rollout(make_vector(family, 2, 2, workers=0), tasks)
    Path("family.py").write_text("raise RuntimeError('edited meanwhile')\n")
    for a, b in zip(expected, rollout(ProcessVectorEnv(family, 2, 2, workers=2), tasks), strict=True):
        np.testing.assert_array_equal(a, b)
    assert imports(mark) == 3  # here, and in each worker: the file is imported, not pickled piece by piece


def test_without_being_told_the_file_a_worker_cannot_find_it(mark, monkeypatch):
    family = metarl.make(REFERENCE)
    monkeypatch.setattr(source_files, "registered", list)
    with pytest.raises(WorkerError, match="ModuleNotFoundError"):
        rollout(ProcessVectorEnv(family, 2, 2, workers=1), family.sample(2, np.random.default_rng(0)))


def test_training_with_workers_is_the_same(mark):
    run = trained("run", REFERENCE, "--workers", "2")
    assert same_params(MetaLearner.load(run).state.params, MetaLearner.load(trained("other")).state.params)


def test_other_processes_get_the_code_with_the_pickle(mark, tmp_path):
    (tmp_path / "pickle").write_bytes(cloudpickle.dumps(metarl.make(REFERENCE, horizon=3)))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'pickle')!r}, 'rb')).make({{'direction': 1.0}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "Push" in done.stdout, done.stderr
