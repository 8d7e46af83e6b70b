"""What `predict` takes, and what it says about anything else."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from tiny_runs import point, tiny

import metarl
from metarl import MetaLearner
from metarl.adapted.observations import batch_of
from metarl.policies.spaces import Spaces

VECTOR = Spaces(Box(-1.0, 1.0, (3,), np.float32), Discrete(2))
CHOICE = Spaces(Discrete(4, start=2), Discrete(2))
CHOICES = Spaces(MultiDiscrete([2, 3]), Discrete(2))


@pytest.mark.parametrize(
    "value",
    [[0.0, 1.0, 2.0], (0, 1, 2), np.arange(3), torch.arange(3.0), (np.float32(0), 1.0, 2)],
    ids=["list", "tuple", "ints", "tensor", "mixed numbers"],
)
def test_one_observation_in_many_forms(value):
    obs, single = batch_of(VECTOR, value)
    assert single
    np.testing.assert_array_equal(obs, [[0, 1, 2]])


def test_a_batch_of_observations():
    obs, single = batch_of(VECTOR, np.ones((5, 3)))
    assert not single
    assert obs.shape == (5, 3)
    assert batch_of(VECTOR, torch.ones(2, 3, requires_grad=True))[0].shape == (2, 3)


def test_one_choice_and_many():
    assert batch_of(CHOICE, 2)[0].tolist() == [2]
    assert batch_of(CHOICE, np.array([5.0, 2.0]))[0].tolist() == [5, 2]
    assert batch_of(CHOICES, [1, 2])[0].tolist() == [[1, 2]]


REFUSED: list[tuple[Spaces, Any, list[str]]] = [
    (VECTOR, {"position": 1, "gear": 2}, ["dict with the keys ['position', 'gear']", "family.wrap(env)", "Flatten"]),
    (VECTOR, (np.zeros(2), 1), ["got a tuple", "family.wrap(env)"]),
    (VECTOR, (np.zeros(3), {}), ["env.reset() returns (observation, info)"]),
    (VECTOR, np.zeros(4), ["(3,)", "got (4,)"]),
    (VECTOR, np.zeros((2, 2, 3)), ["got (2, 2, 3)"]),
    (VECTOR, 1.0, ["got ()"]),
    (VECTOR, None, ["numbers", "None"]),
    (VECTOR, ["a", "b", "c"], ["numbers", "['a', 'b', 'c']"]),
    (VECTOR, [[1.0, 2.0, 3.0], [1.0]], ["no array"]),
    (VECTOR, [0.0, np.nan, 1.0], ["finite", "nan at index (1,)"]),
    (VECTOR, [[0.0, 1.0, 1.0], [0.0, 1.0, -np.inf]], ["finite", "-inf at index (1, 2)"]),
    (CHOICE, 1, ["Discrete(4, start=2)", "got 1"]),
    (CHOICE, 6, ["got 6"]),
    (CHOICE, 2.5, ["got 2.5"]),
    (CHOICES, [1, 3], ["MultiDiscrete([2 3])", "got [1, 3]"]),
]


@pytest.mark.parametrize(("spaces", "value", "parts"), REFUSED, ids=[repr(value)[:30] for _, value, _ in REFUSED])
def test_anything_else_is_refused_with_the_remedy(spaces, value, parts):
    with pytest.raises(ValueError, match=r"predict takes|observations have") as raised:
        batch_of(spaces, value)
    assert [part for part in parts if part not in str(raised.value)] == []
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2"])
def test_both_kinds_of_policies_say_so(algorithm):
    settings = {"maml_trpo": {"episodes": 2}, "rl2": {"minibatches": 1, "hidden": 8}}[algorithm]
    policy = MetaLearner(algorithm, point(), n_tasks=2, device="cpu", **settings).adapt({"goal": [0.3, -0.2]})
    with pytest.raises(ValueError, match=r"family\.wrap"):
        policy.predict({"position": np.zeros(2)})
    with pytest.raises(ValueError, match="nan at index"):
        policy.predict(np.array([0.0, np.nan]))
    assert policy.predict(np.zeros(2))[0].shape == (2,)


class Gears(gym.Env):
    """Dict observations."""

    observation_space = Dict(position=Box(-1.0, 1.0, (2,), np.float32), gear=Discrete(3))
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {"position": np.zeros(2, np.float32), "gear": 0}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return {"position": np.zeros(2, np.float32), "gear": 1}, self.gain * float(action[0]), False, False, {}


def test_the_remedy_works():
    family = metarl.from_gymnasium(Gears, {"gain": Box(0.5, 2.0)}, horizon=3)
    policy = tiny(family).adapt(Gears())
    obs, _ = Gears().reset(seed=0)
    with pytest.raises(ValueError, match=r"family\.wrap"):
        policy.predict(obs)
    obs, _ = family.wrap(Gears()).reset(seed=0)
    assert policy.predict(obs)[0].shape == (2,)
