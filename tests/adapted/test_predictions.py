"""What an adapted policy predicts: actions in the environment's units, for one observation or a batch."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary
from probes import Locks, Stops, TwoArms
from scipy.stats import norm
from tiny_runs import tiny

import metarl
from metarl import AdaptedPolicy


@pytest.fixture
def policy() -> AdaptedPolicy:
    return tiny().adapt({"goal": [0.3, -0.2]})


def test_one_observation_gives_one_action_and_a_batch_gives_a_batch(policy):
    observations = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    batch, _ = policy.predict(observations, deterministic=True)
    assert batch.shape == (3, 2)
    for observation, action in zip(observations, batch, strict=True):
        single, _ = policy.predict(observation, deterministic=True)
        assert single.shape == (2,)
        np.testing.assert_allclose(single, action, rtol=1e-5)
    assert len({tuple(action) for action in batch}) == 3


def test_a_deterministic_action_is_the_mean_in_the_environments_units(policy):
    obs = np.array([0.4, -0.7], np.float32)
    dist = policy.policy.distribution({n: v[None] for n, v in policy.params.items()}, torch.from_numpy(obs)[None, None])
    expected = (0.1 * dist.mean[0, 0]).clamp(-0.1, 0.1).numpy()
    np.testing.assert_allclose(policy.predict(obs, deterministic=True)[0], expected, rtol=1e-6)


def test_samples_scatter_about_the_mean_and_lie_in_the_action_space():
    policy = tiny(init_std=1.0).adapt({"goal": [0.3, -0.2]}, steps=0)
    obs = np.full((4000, 2), 0.5, np.float32)
    actions, _ = policy.predict(obs)
    mean, _ = policy.predict(obs[0], deterministic=True)
    assert all(policy.policy.spaces.action.contains(action) for action in actions)
    np.testing.assert_allclose(np.median(actions, 0), mean, atol=0.01)  # the bounds do not move a median
    within = norm.cdf(1 - mean / 0.1) - norm.cdf(-1 - mean / 0.1)
    np.testing.assert_allclose((np.abs(actions) < 0.1).mean(0), within, atol=0.03)


def test_samples_differ_from_call_to_call_and_not_from_policy_to_policy(policy):
    other = tiny().adapt({"goal": [0.3, -0.2]})
    obs = np.zeros(2, np.float32)
    first, second = (policy.predict(obs)[0] for _ in range(2))
    assert (first != second).all()
    assert (other.predict(obs)[0] == first).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_discrete_actions(deterministic):
    policy = tiny(TwoArms()).adapt({"good": 1}, steps=1)
    action, _ = policy.predict(np.ones(1, np.float32), deterministic=deterministic)
    assert Discrete(2).contains(action)
    batch, _ = policy.predict(np.ones((50, 1), np.float32), deterministic=deterministic)
    assert batch.shape == (50,)
    assert set(batch.tolist()) == ({int(batch[0])} if deterministic else {0, 1})


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("family", [Locks(), Locks(MultiBinary(2))], ids=["several", "binary"])
def test_actions_of_several_choices(family, deterministic):
    task = {name: value[0] for name, value in family.sample(1, np.random.default_rng(0)).items()}
    policy, space = tiny(family).adapt(task, steps=1), family.action_space
    action, _ = policy.predict(space.sample(), deterministic=deterministic)
    assert space.contains(action)
    assert action.dtype == space.dtype
    batch, _ = policy.predict(np.stack([family.start] * 60), deterministic=deterministic)
    assert batch.shape == (60, 2)
    assert len(np.unique(batch, axis=0)) == (1 if deterministic else family.sizes.prod())


def test_discrete_observations():
    family = metarl.make("TabularMDP-v0", horizon=3)
    learner = tiny(family)
    task = {name: value[0] for name, value in family.sample(1, np.random.default_rng(0)).items()}
    policy = learner.adapt(task, steps=1)
    n = int(family.observation_space.n)
    batch, _ = policy.predict(np.arange(n), deterministic=True)
    assert batch.tolist() == [int(policy.predict(i, deterministic=True)[0]) for i in range(n)]


def test_actions_lie_in_a_space_of_doubles():
    # -0.1 in float32 is less than -0.1 in float64.
    family = Stops()
    family.action_space = Box(-0.1, 0.1, (2,), np.float64)
    policy = tiny(family).adapt({"steps": 3}, steps=1)
    actions, _ = policy.predict(np.zeros((50, 2), np.float32))
    assert all(family.action_space.contains(action) for action in actions)
    assert np.abs(actions).max() > 0.0999999  # some were clipped


def test_a_state_is_handed_back(policy):
    assert policy.predict(np.zeros(2), state="kept", episode_start=True)[1] == "kept"


@pytest.mark.parametrize("shape", [(3,), (), (2, 3), (4, 2, 2)])
def test_observations_of_another_shape_are_refused(policy, shape):
    with pytest.raises(ValueError, match=r"observations have the shape \(2,\) or are a batch of such, got \(.*\)"):
        policy.predict(np.zeros(shape))
