"""Policies with and without a memory act through one interface."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny

import metarl
from metarl.adapted.predictor import Predictor
from metarl.adapted.recurrent_policy import RecurrentPolicy
from metarl.policies.gru import GRUPolicy
from metarl.policies.spaces import spaces_of
from metarl.report.render import _play

FAMILY = metarl.make("PointNavigation-v0", horizon=6)


def policy_of(kind: str) -> Any:
    if kind == "without a memory":
        return tiny().adapt({"goal": [0.3, -0.2]})
    policy = GRUPolicy(spaces_of(FAMILY), 5)
    return RecurrentPolicy(policy, policy.init(torch.Generator().manual_seed(0)))


def episode(policy: Predictor) -> list[np.ndarray]:
    """The actions of one episode, by the loop of `Predictor`."""
    env = FAMILY.make({"goal": np.array([0.3, -0.2])})
    obs, state, over, actions = env.reset(seed=0)[0], None, False, []
    while not over:
        action, state = policy.predict(obs, state, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        state = policy.observe(state, reward)
        over = terminated or truncated
        actions.append(action)
    return actions


@pytest.mark.parametrize("kind", ["without a memory", "with one"])
def test_one_loop_plays_any_of_them(kind):
    policy = policy_of(kind)
    actions = episode(policy)
    assert len(actions) == 6
    assert all(np.array_equal(x, y) for x, y in zip(episode(policy), actions, strict=True))  # nothing stays behind


def test_without_a_memory_the_state_is_handed_on():
    policy, state = policy_of("without a memory"), object()
    assert policy.observe(state, 1.0) is state and policy.observe(None, np.ones(3)) is None
    assert policy.predict(np.zeros(2), state)[1] is state
    assert policy.fresh() is policy


def test_with_a_memory_a_reward_changes_it():
    policy = policy_of("with one")
    _, state = policy.predict(np.zeros(2, np.float32))
    one, other = (policy.observe(state, reward) for reward in (1.0, 2.0))
    assert any(not np.array_equal(x, y) for x, y in zip(one, other, strict=True))


class Teller:
    """Notes the rewards that it is told, and knows nothing of either class."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, float]] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        return np.zeros(2, np.float32), (0 if state is None else state) + 1

    def observe(self, state: Any, reward: Any) -> Any:
        self.told.append((state, float(reward)))
        return state + 100

    def fresh(self) -> "Teller":
        return Teller()


def test_a_film_tells_every_policy_its_rewards():
    env: Any = FAMILY.make({"goal": np.array([0.3, -0.2])})
    env.render = lambda: np.zeros((2, 2, 3), np.uint8)
    policy = Teller()
    _, returns = _play(env, policy, 3, 0, True)
    assert [state for state, _ in policy.told] == [1, 102, 203]
    np.testing.assert_allclose(np.cumsum([reward for _, reward in policy.told]), returns[1:])
