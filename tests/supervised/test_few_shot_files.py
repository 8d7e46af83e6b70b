"""FewShotLearner: its files, modules of one's own, and what is refused."""

import json

import numpy as np
import pytest
import torch
from supervised_twins import SMALL, tiny
from tiny_runs import same_params
from torch import nn

from metarl import checkpoint
from metarl.checkpoint import CheckpointError
from metarl.supervised import FewShotLearner, Sets, Sinusoid
from metarl.training.train import LATEST


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


# ---------------------------------------------------------------------------------------------------------------------
# A module of one's own; saving and loading


def test_a_module_is_trained_and_left_alone(tmp_path):
    own = module()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    learner = FewShotLearner(Sinusoid(), network=own, device="cpu").learn(2)
    assert same_params(before, own.state_dict())
    assert not torch.equal(learner.state.params["module.0.weight"], before["0.weight"])
    learner.save(tmp_path / "x")
    loaded = FewShotLearner.load(tmp_path / "x", Sinusoid(), network=module(), device="cpu")
    assert same_params(loaded.learn(1).state.params, learner.learn(1).state.params)
    with pytest.raises(CheckpointError, match="pass that module as network="):
        FewShotLearner.load(tmp_path / "x", Sinusoid())


class Renamed:
    """Another family of the same name."""

    id, x_shape, outputs, loss = Sinusoid().id, (1,), 2, "mse"

    def sample(self, n: int, rng: np.random.Generator, split: str, shots: int, queries: int) -> Sets:
        x, y = (np.zeros((n, shots, size), np.float32) for size in (1, 2))
        return Sets(x, y, x, y)


@pytest.mark.parametrize(
    ("family", "options", "shown"),
    [
        (Sinusoid(phase=(0.0, 1.0)), {}, "was trained on the family"),
        (Renamed(), {}, "'outputs': 1.*this one is .*'outputs': 2"),
        (Sinusoid(), {"network": module()}, "leave network= out"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, family, options, shown):
    tiny().save(tmp_path / "x")
    with pytest.raises(CheckpointError, match=shown):
        FewShotLearner.load(tmp_path / "x", family, **options)


def test_a_policy_learner_s_checkpoint_is_refused(tmp_path):
    checkpoint.save(tmp_path / "x", {"w": torch.zeros(1)}, {"kind": "learner"})
    with pytest.raises(CheckpointError, match="holds a learner, not a few-shot learner"):
        FewShotLearner.load(tmp_path / "x", Sinusoid())


@pytest.mark.parametrize(
    ("family", "options", "error", "shown"),
    [
        (Sinusoid(), {"inner_rl": 0.1}, ValueError, "no setting 'inner_rl'.*inner_lr"),
        (Sinusoid(), {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        (Sinusoid(), {"activation": "sin"}, ValueError, "activation must be one of"),
        (Sinusoid(), {"hidden": (0,)}, ValueError, "at least one unit"),
        (Sinusoid(), {"network": nn.Linear(2, 1)}, ValueError, "cannot be multiplied"),
        (Sinusoid(), {"network": nn.Linear(1, 2)}, ValueError, r"\[N, 1\] to \[N, 1\]; for N = 3 it gave \(3, 2\)"),
        ({"a": 1}, {}, TypeError, "dict is not a family of sets"),
    ],
)
def test_what_makes_no_learner_is_refused(family, options, error, shown):
    with pytest.raises(error, match=shown):
        FewShotLearner(family, device="cpu", **options)


@pytest.mark.parametrize(
    ("options", "shown"),
    [({"iterations": -1}, "iterations must not be negative, got -1"),
     ({"iterations": 1, "checkpoint_every": 0}, "need checkpoint_every >= 1 and eval_every >= 0, got 0 and 0"),
     ({"iterations": 1, "eval_steps": 2, "eval_step_sizes": [0.1]}, "contradicts")],
)  # fmt: skip
def test_a_training_that_makes_no_sense_is_refused(options, shown):
    with pytest.raises(ValueError, match=shown):
        tiny().learn(**options)


def test_it_runs_on_every_device(device):
    learner = FewShotLearner(Sinusoid(), device=device, **(SMALL | {"learned_lr": "per_parameter"})).learn(2)
    assert learner.state.params["w0"].device.type == device
    assert np.isfinite(learner.evaluate(5, steps=2).losses).all()
    assert learner.adapt([[0.0]], [[1.0]]).predict([[0.0]]).shape == (1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# The document


def test_a_run_killed_before_its_first_checkpoint_begins_again_from_its_settings(tmp_path):
    whole = tiny(seed=3, inner_lr=0.02)
    whole.learn(2, run_dir=tmp_path / "whole")
    tiny(seed=3, inner_lr=0.02).learn(0, run_dir=tmp_path / "run")
    (tmp_path / "run" / LATEST).unlink()
    for path in (tmp_path / "run").glob("previous*"):
        path.unlink()
    found = FewShotLearner.load(tmp_path / "run", Sinusoid(), device="cpu")
    assert found.state.iteration == 0 and found.config == whole.config
    found.learn(2, run_dir=tmp_path / "run")
    assert same_params(found.state.params, whole.state.params)
    assert (tmp_path / "run" / LATEST).read_bytes() == (tmp_path / "whole" / LATEST).read_bytes()
    (tmp_path / "run" / LATEST).unlink()  # but a run that got farther is not begun again
    (tmp_path / "run" / "previous.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        FewShotLearner.load(tmp_path / "run", Sinusoid(), device="cpu")


def test_settings_of_a_killed_run_that_are_damaged_are_named(tmp_path):
    tiny().learn(0, run_dir=tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    found = json.loads((tmp_path / "config.json").read_text())
    del found["network"]
    (tmp_path / "config.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=r"config.json is damaged: it lacks 'network'"):
        FewShotLearner.load(tmp_path, Sinusoid(), device="cpu")
