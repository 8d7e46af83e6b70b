"""Files that an earlier version wrote, kept in tests/helpers/old_files, load and go on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from saved_files import OLD

from metarl import AdaptedPolicy, MetaLearner, RecurrentPolicy, cli
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.directory import BEST, LATEST, RunDirectory


def numbers(path: Path, prefix: str = "params/") -> dict[str, torch.Tensor]:
    """What the file holds, without any of the package's code."""
    found = safetensors.torch.load_file(path)
    return {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("file", ["run/latest", "run/best", "rl2/latest", "gymnasium"])
def test_a_learner_has_the_parameters_in_its_file(file):
    path = OLD / f"{file}.safetensors"
    assert equal(MetaLearner.load(path, device="cpu").state.params, numbers(path))


def test_few_shot_learners_load(tmp_path):
    learner = FewShotLearner.load(OLD / "few_shot", Sinusoid(), device="cpu")
    assert equal(learner.state.params, numbers(OLD / "few_shot" / LATEST)) and learner.state.iteration == 2
    shutil.copytree(OLD / "few_shot", tmp_path / "run")
    FewShotLearner.load(tmp_path / "run", Sinusoid(), device="cpu").learn(1, run_dir=tmp_path / "run")
    assert [row["iteration"] for row in RunDirectory(tmp_path / "run").metrics()] == [1, 2, 3]


@pytest.mark.parametrize(("kind", "name"), [(AdaptedPolicy, "policy"), (RecurrentPolicy, "recurrent")])
def test_policies_load_and_act(kind, name):
    policy = kind.load(OLD / name)
    found = numbers(OLD / f"{name}.safetensors", "")
    assert equal(policy.params, {n: x for n, x in found.items() if not n.startswith("memory/")})
    action = policy.predict(np.array([0.1, -0.2], np.float32), deterministic=True)[0]
    assert action.shape == (2,) and (np.abs(action) <= 0.1).all() and action.any()


@pytest.mark.parametrize(("run", "done"), [("run", 2), ("rl2", 1)])
def test_runs_go_on_without_a_word(tmp_path, recwarn, run, done):
    shutil.copytree(OLD / run, tmp_path / "run")
    before = RunDirectory(OLD / run).metrics()
    argv = ["train", "--resume", str(tmp_path / "run"), "--iterations", str(done + 1), "--threads", "1"]
    assert cli.run([*argv, "--no-progress"]) == 0
    rows = RunDirectory(tmp_path / "run").metrics()
    assert [row["iteration"] for row in rows] == [*range(1, done + 2)]
    assert [{name: row[name] for name in before[0]} for row in rows[:done]] == before
    assert MetaLearner.load(tmp_path / "run", device="cpu").state.iteration == done + 1
    assert (tmp_path / "run" / BEST).exists() == (OLD / run / BEST).exists() or run == "rl2"
    assert [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)] == []
