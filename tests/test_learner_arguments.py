"""MetaLearner's arguments that make no sense are refused, with the value."""

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Text
from probes import Stops
from tiny_runs import TINY, Walk, module, point, tiny

from metarl import MetaLearner
from metarl.algorithms import maml_trpo
from metarl.learner import make_config


class TextActions(Stops):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Text(3)


class Sentences(Stops):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Text(10)


class Endless(Stops):
    horizon = math.inf  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"algorithm": "maml_trop"}, "no algorithm is called 'maml_trop'; did you mean 'maml_trpo'"),
     ({"family": "PointNavigatoin-v0"}, "family is called 'PointNavigatoin-v0'; did you mean 'PointNavigation-v0'"),
     ({"family": TextActions()}, r"StopsProbe-v0 has the action space Text\(1, 3.*; supported are Box"),
     ({"family": Sentences()}, r"StopsProbe-v0 has the observation space Text.*FlattenObservation"),
     ({"seed": -3}, "seed must not be negative, got -3"),
     ({"inner_lrr": 0.1}, "maml_trpo has no setting 'inner_lrr'; did you mean 'inner_lr'"),
     ({"device": "gpu"}, "device must be auto, cpu or cuda, got 'gpu'"),
     ({"device": "meta"}, "device must be auto, cpu or cuda, got 'meta'"),
     ({"algorithm": None}, "no algorithm is called None; known are"), ({"policy": "mlp"}, "policy is .* got 'mlp'"),
     ({"device": None}, "device must be auto, cpu or cuda, got None"),
     ({"seed": True}, "seed must be a whole number, got True"), ({"workers": True}, "workers must .* got True"),
     ({"family": None}, "None is not a task family, it has no id, horizon, .*make: pass a family's id or an object"),
     ({"family": Stops}, r"Stops is a class: pass a family made of it, Stops\(\)"),
     ({"family": Walk()}, "is not a task family, it has no id, .*metarl.from_gymnasium makes one of an environment"),
     ({"family": Endless()}, "the horizon of StopsProbe-v0 must be a whole number, got inf"),
     ({"policy": module(outputs=3)}, r"the module must map \[N, 2\] to \[N, 2\]; for N = 3 it gave \(3, 3\)")],
)  # fmt: skip
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaLearner(**{"algorithm": "maml_trpo", "family": point(), "device": "cpu", **TINY, **arguments})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": -1}, "steps must not be negative, got -1"), ({"seed": -1}, "seed must not be negative, got -1"),
     ({"episodes": 1.5}, "episodes must be a whole number, got 1.5"), ({"seed": 0.5}, "seed must be a whole number"),
     ({"steps": 2, "step_sizes": [0.1]}, "steps=2 contradicts the 1 step_sizes"),
     ({"episodes": 0}, "episodes must be at least 1, got 0"),
     ({"step_sizes": [0.0]}, r"positive and finite, got \[0.0\]")],
)  # fmt: skip
def test_evaluations_and_adaptations_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        tiny().evaluate(1, **options)
    with pytest.raises(ValueError, match=message):
        tiny().adapt({"goal": [0.3, -0.2]}, **options)


def test_a_horizon_that_makes_no_sense():
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        tiny().adapt(Walk(), horizon=0)
    with pytest.raises(ValueError, match="horizon must be a whole number"):
        tiny().adapt(Walk(), horizon=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"iterations": 1.5}, {"iterations": True}, {"eval_every": "1"}, {"eval_tasks": 2.5}, {"checkpoint_every": None},
     {"progress_bar": "no"}, {"eval_step_sizes": 0.1}],
    ids=str,
)  # fmt: skip
def test_training_with_arguments_of_another_type_is_refused_before_it_begins(options):
    learner = tiny()
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*got {value!r}"):
        learner.learn(**{"iterations": 1, **options})
    assert learner.state.iteration == 0


def test_numpys_numbers_are_as_good_as_pythons(tmp_path):
    options = {"n_tasks": np.int64(2), "inner_lr": np.float32(0.5), "hidden": np.array([4]), "first_order": np.True_}
    learner = tiny(seed=np.int64(3), **options).learn(np.int64(1), eval_every=np.int64(0))  # type: ignore[arg-type]
    learner.save(tmp_path / "l")  # JSON knows none of NumPy's numbers
    assert MetaLearner.load(tmp_path / "l", device="cpu").config == learner.config
    assert learner.config == maml_trpo.Config(**{**TINY, "n_tasks": 2, "inner_lr": 0.5, "hidden": (4,),
                                                 "first_order": True})  # fmt: skip


def test_lists_become_tuples_in_a_configuration():
    assert make_config("maml_trpo", {"hidden": [3, 4]}) == maml_trpo.Config(hidden=(3, 4))
