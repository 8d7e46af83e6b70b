"""Policies from stable-baselines3: the same action distributions here, and learners that start from them."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary
from probes import TwoArms
from sb3_policies import (
    ACTIONS,
    SCALE,
    SPACES,
    VECTOR,
    Still,
    assert_close,
    assert_same_distributions,
    observations,
    ours,
    theirs,
)
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_runs import point, same_params, tiny
from torch import nn

from metarl import MetaLearner
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.sb3 import from_sb3, to_sb3


def theirs_on(kind: Any, obs: Any, act: Any, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    """A model with weights as no initialisation has them."""
    model = kind(policy, Still(obs, act), device="cpu", seed=0, **kwargs)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def theirs_on_point(**policy_kwargs: Any) -> Any:
    family = point()
    return theirs_on(PPO, family.observation_space, family.action_space, policy_kwargs=policy_kwargs)


@pytest.mark.parametrize("spaces", SPACES, ids=str)
def test_their_model_has_the_same_distributions_here(spaces, tmp_path):
    model = theirs_on(PPO, *SPACES[spaces], policy_kwargs={"net_arch": {"pi": [9, 4, 3], "vf": [2]}})
    policy = from_sb3(model)
    assert isinstance(policy.policy, MLPPolicy) and policy.policy.hidden == (9, 4, 3)
    assert_same_distributions(policy, model)
    assert_same_distributions(policy, to_sb3(policy, device="cpu"))
    model.save(tmp_path / "model")
    assert same_params(from_sb3(tmp_path / "model").params, policy.params)


@pytest.mark.parametrize(
    ("kwargs", "kind"),
    [
        ({"activation_fn": nn.ReLU}, MLPPolicy),
        ({"activation_fn": nn.ELU}, MLPPolicy),
        ({"net_arch": []}, MLPPolicy),
        ({"log_std_init": -8.0}, MLPPolicy),  # below our usual floor
        ({"activation_fn": nn.GELU}, ModulePolicy),
        ({"activation_fn": nn.Sigmoid, "share_features_extractor": False}, ModulePolicy),
    ],
    ids=str,
)
def test_every_network_of_theirs_has_the_same_distributions_here(kwargs, kind, tmp_path):
    model = theirs_on(A2C, VECTOR, ACTIONS, policy_kwargs=kwargs)
    policy = from_sb3(model.policy)
    assert type(policy.policy) is kind
    np.testing.assert_allclose(ours(policy, observations(VECTOR))[1][0], model.policy.log_std.exp().detach(), rtol=1e-5)
    for a, b in zip(ours(policy, observations(VECTOR)), theirs(model.policy, observations(VECTOR)), strict=True):
        assert_close(a, b)


IMAGE = Box(0, 255, (36, 40, 3), np.uint8)


@pytest.mark.parametrize("act", [ACTIONS, Discrete(3), MultiBinary(2)], ids=["box", "discrete", "bits"])
def test_their_cnn_has_the_same_distributions_here(act):
    model = theirs_on(
        PPO, IMAGE, act, "CnnPolicy", n_steps=8, policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}}
    )
    assert model.observation_space.shape == (3, 36, 40)
    obs = observations(IMAGE, 5)
    policy = from_sb3(model, env=Still(IMAGE, act))
    assert isinstance(policy.policy, ModulePolicy) and policy.policy.batched
    for a, b in zip(ours(policy, obs), theirs(model.policy, obs.transpose(0, 3, 1, 2)), strict=True):
        assert_close(a, b)
    first = from_sb3(model)  # without env: images with the channels in front, as the model takes them
    assert_close(ours(first, obs.transpose(0, 3, 1, 2))[0], ours(policy, obs)[0])
    back = to_sb3(policy, device="cpu")
    for a, b in zip(ours(policy, obs), theirs(back.policy, obs.transpose(0, 3, 1, 2)), strict=True):
        assert_close(a, b)


def test_observations_that_a_wrapper_normalised_are_taken_as_they_are():
    env = VecNormalize(DummyVecEnv([lambda: Still(VECTOR, ACTIONS)]), epsilon=0.5)
    env.obs_rms.mean, env.obs_rms.var = np.array([1.0, -2.0, 0.3]), np.array([4.0, 0.25, 1.0])
    model = PPO("MlpPolicy", env, device="cpu", seed=0)
    raw = observations(VECTOR)
    assert (np.abs(env.normalize_obs(raw)) < 10).all()  # none is clipped
    for policy in (from_sb3(model), from_sb3(model.policy, vec_normalize=env)):
        assert_close(ours(policy, raw)[0], theirs(model.policy, env.normalize_obs(raw))[0])


def test_a_deterministic_actor_gets_a_standard_deviation():
    model = theirs_on(TD3, VECTOR, ACTIONS, policy_kwargs={"net_arch": [8]})
    policy = from_sb3(model, std=0.2)
    obs = observations(VECTOR)
    assert_close(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    np.testing.assert_allclose(ours(policy, obs)[1][0], 0.2 * SCALE, rtol=1e-6)


def test_action_bounds_that_are_none():
    """PPO acts in the environment's units; TD3 would scale its actions to 3e38."""
    most = float(np.finfo(np.float32).max)
    actions, obs = Box(-most, most, (2,), np.float32), observations(VECTOR)
    model = theirs_on(PPO, VECTOR, actions)
    policy = from_sb3(model)
    assert_close(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert_close(to_sb3(policy).predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    with pytest.raises(ValueError, match=r"TD3 and DDPG scale their actions to the bounds, and Box\(-3\.4"):
        from_sb3(theirs_on(TD3, VECTOR, actions, policy_kwargs={"net_arch": [8]}), std=0.2)


@pytest.mark.parametrize(
    ("make", "keywords", "message"),
    [
        (lambda: theirs_on(TD3, VECTOR, ACTIONS, policy_kwargs={"net_arch": [8]}), {}, "std="),
        (lambda: theirs_on(SAC, VECTOR, ACTIONS, policy_kwargs={"net_arch": [8]}), {}, "SACPolicy cannot be converted"),
        (lambda: theirs_on(PPO, VECTOR, ACTIONS, use_sde=True), {}, "use_sde"),
        (lambda: theirs_on(PPO, VECTOR, ACTIONS), {"std": 0.0}, "std must be positive, got 0"),
        (lambda: theirs_on(PPO, VECTOR, ACTIONS), {"env": point()}, r"observation space Box\(-inf, inf, \(3,\)"),
        (lambda: 3, {}, "a path, got int"),
    ],
)
def test_what_cannot_be_converted_from_them_is_refused(make, keywords, message):
    with pytest.raises(ValueError, match=message):
        from_sb3(make(), **keywords)


def test_meta_training_and_adaptation_start_from_their_model(tmp_path):
    family = point()
    model = theirs_on_point(activation_fn=nn.ReLU, net_arch=[6])
    start = from_sb3(model)
    learner = MetaLearner("maml_trpo", family, policy=start, device="cpu", n_tasks=2, episodes=2)
    assert same_params(learner.state.params, start.params)
    assert (learner.config.hidden, learner.config.activation) == ((6,), "relu")
    unmoved = learner.adapt({"goal": [0.1, 0.2]}, step_sizes=(1e-12,))
    obs = observations(family.observation_space)
    assert_close(unmoved.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    learner.learn(1).save(tmp_path / "learner")
    assert not same_params(learner.state.params, start.params)
    assert same_params(MetaLearner.load(tmp_path / "learner").learn(1).state.params, learner.learn(1).state.params)


def test_a_learner_has_a_copy_of_the_policy_that_it_starts_from():
    start = from_sb3(theirs_on_point())
    learner = MetaLearner("maml_trpo", point(), policy=start, device="cpu", n_tasks=2, episodes=2)
    before = {name: value.clone() for name, value in start.params.items()}
    for value in start.params.values():
        value.add_(1)
    assert same_params(learner.state.params, before) and not same_params(start.params, before)


def test_a_learner_that_started_from_a_policy_with_statistics_goes_on_normalising(tmp_path):
    start = tiny(normalize_obs=True).learn(2, eval_every=0).adapt({"goal": [0.3, -0.2]}, steps=1)
    learner = MetaLearner("maml_trpo", point(), policy=start, device="cpu", n_tasks=2, episodes=2)
    assert learner.config.normalize_obs and same_params(learner.state.obs_stats, start.obs_stats)
    assert all(learner.state.obs_stats[n] is not x for n, x in start.obs_stats.items())
    obs = observations(point().observation_space)
    unmoved = learner.adapt({"goal": [0.1, 0.2]}, step_sizes=(1e-12,))
    assert_close(unmoved.predict(obs, deterministic=True)[0], start.predict(obs, deterministic=True)[0])
    learner.learn(1, eval_every=0).save(tmp_path / "learner")
    steps = 2 * 2 * 2 * 5  # tasks, episodes, rollouts, horizon
    assert int(learner.state.obs_stats["count"]) == int(start.obs_stats["count"]) + steps
    again = MetaLearner.load(tmp_path / "learner", device="cpu")
    assert same_params(again.state.obs_stats, learner.state.obs_stats)
    assert same_params(again.learn(1).state.params, learner.learn(1).state.params)
    with pytest.raises(ValueError, match="normalize_obs=False contradicts"):
        MetaLearner("maml_trpo", point(), policy=start, normalize_obs=False)


def test_a_learner_that_started_from_a_module_loads_with_it(tmp_path):
    family = point()
    model = theirs_on_point(activation_fn=nn.GELU, net_arch=[6])
    start = from_sb3(model, std=0.5)
    learner = MetaLearner("maml_trpo", family, policy=start, device="cpu", n_tasks=2, episodes=2)
    assert same_params(learner.state.params, start.params)
    learner.learn(1).save(tmp_path / "learner")
    again = MetaLearner.load(tmp_path / "learner", policy=from_sb3(model, std=0.5))
    assert same_params(again.state.params, learner.state.params)


def test_a_start_that_does_not_fit_is_refused():
    family = point()
    model = theirs_on_point()
    with pytest.raises(ValueError, match=r"hidden=\(8,\) contradicts"):
        MetaLearner("maml_trpo", family, policy=from_sb3(model), hidden=(8,))
    with pytest.raises(ValueError, match="observation space"):
        MetaLearner("maml_trpo", TwoArms(), policy=from_sb3(model))
