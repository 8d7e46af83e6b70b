"""Files that an earlier version wrote, kept in tests/helpers/old_files, load and go on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from saved_files import OLD
from supervised_twins import SMALL
from tiny_runs import tiny

from metarl import AdaptedPolicy, MetaLearner, RecurrentPolicy, checkpoint, cli
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.directory import BEST, CONFIG, LATEST, RunDirectory


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


def without(run: Path, setting: str) -> None:
    """Take a setting out of the files of a run, as a version before it would have written them."""
    config = json.loads((run / CONFIG).read_text())
    del config["config"][setting]
    (run / CONFIG).write_text(json.dumps(config))
    for path in run.glob("*.safetensors"):
        tensors, meta = checkpoint.load(path)
        meta["config"].pop(setting, None)
        checkpoint.save(path, tensors, meta)


LEARNERS = {
    "MetaLearner": (
        lambda **settings: tiny(inner_optimizer="adam", inner_lr=0.01, **settings),
        lambda run: MetaLearner.load(run, device="cpu"),
    ),
    "FewShotLearner": (
        lambda **settings: FewShotLearner(Sinusoid(), device="cpu", **SMALL, inner_optimizer="adam", **settings),
        lambda run: FewShotLearner.load(run, Sinusoid(), device="cpu"),
    ),
}


@pytest.mark.parametrize("killed", [False, True], ids=["checkpoint", "killed before the first"])
@pytest.mark.parametrize("kind", LEARNERS)
def test_a_run_from_before_a_setting_existed_goes_on_as_it_was(tmp_path, kind, killed):
    make, load = LEARNERS[kind]
    run = tmp_path / "run"
    make(inner_adam_eps=1e-3).learn(0 if killed else 1, run_dir=run)
    without(run, "inner_adam_eps")
    for path in run.glob("*.safetensors") if killed else ():
        path.unlink()
    left = 2 if killed else 1
    found = load(run).learn(left, run_dir=run)
    as_it_was, today = (make(**settings).learn(2).state.params for settings in ({"inner_adam_eps": 1e-3}, {}))
    assert equal(found.state.params, as_it_was)
    assert not equal(found.state.params, today)
    assert json.loads((run / CONFIG).read_text())["config"]["inner_adam_eps"] == 1e-3


def test_an_old_run_of_an_algorithm_without_inner_steps_does_not_get_their_settings():
    assert "inner_adam_eps" not in MetaLearner.load(OLD / "rl2", device="cpu").describe()["config"]
