"""To and from stable-baselines3: equal action distributions, families as its environments, its callbacks."""

import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from documents import ROOT, blocks
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from probes import Drift, Locks, PointGoal, Stops, TwoArms
from process_families import Noisy
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common import callbacks as sb3_callbacks
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from tiny_runs import point, rows_without_time, same_params, tiny
from torch import nn

from metarl import AdaptedPolicy, MetaLearner, RecurrentPolicy, random
from metarl.families.registry import make
from metarl.params import expand
from metarl.policies import normalize
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import spaces_of
from metarl.sb3 import as_vec_env, from_sb3, to_sb3
from metarl.tasks import task_at
from metarl.training.callbacks import Hooks
from metarl.vector.loop import LoopVectorEnv

LOW, HIGH = np.array([-0.5, -1.0], np.float32), np.array([0.5, 3.0], np.float32)
CENTRE, SCALE = np.array([0.0, 1.0]), np.array([0.5, 2.0])
VECTOR, ACTIONS = Box(-np.inf, np.inf, (3,), np.float32), Box(LOW, HIGH)
SPACES = {
    "box to box": (VECTOR, ACTIONS),
    "discrete to box": (Discrete(4), ACTIONS),
    "box to discrete": (VECTOR, Discrete(3)),
    "matrix to matrix": (Box(-1, 1, (2, 2), np.float32), Box(LOW.reshape(1, 2), HIGH.reshape(1, 2))),
    "box to several": (VECTOR, MultiDiscrete([3, 2, 4])),
    "several to bits": (MultiDiscrete([2, 3]), MultiBinary(3)),
    "bits to several": (MultiBinary((2, 3)), MultiDiscrete([2, 2])),
}


def adapted(obs: Any, act: Any, policy: Any = None, seed: int = 0, **settings: Any) -> AdaptedPolicy:
    """A policy with parameters as no initialisation has them; the second action's deviation lies below its floor."""
    spaces = spaces_of(SimpleNamespace(id="Test", observation_space=obs, action_space=act))
    policy = MLPPolicy(spaces, **({"hidden": (7, 5), "min_std": 0.1} | settings)) if policy is None else policy(spaces)
    g = torch.Generator().manual_seed(seed)
    params = {name: x + 0.4 * torch.randn(x.shape, generator=g) for name, x in policy.init(g).items()}
    if not spaces.discrete:
        params["log_std"] = torch.tensor([-0.3, -5.0])
    return AdaptedPolicy(policy, params)


def observations(space: Any, n: int = 50) -> np.ndarray:
    rng = np.random.default_rng(1)
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=n)
    if isinstance(space, MultiDiscrete | MultiBinary):
        return rng.integers(getattr(space, "nvec", 2), size=(n, *space.shape))
    if space.dtype == np.uint8:
        return rng.integers(256, size=(n, *space.shape)).astype(np.uint8)
    return rng.normal(size=(n, *space.shape)).astype(np.float32)


def ours(policy: AdaptedPolicy, obs: np.ndarray) -> list[np.ndarray]:
    """Mean and standard deviation in the environment's units, by the bounds written down above; or probabilities."""
    x = normalize.scaler(policy.obs_stats)(policy.policy.spaces.encode(obs)[None])
    dist: Any = policy.policy.distribution(expand(policy.params, 1), x)
    if isinstance(policy.policy.spaces.action, MultiBinary):  # the probability of a one
        return [torch.softmax(dist.logits[0].reshape(len(obs), -1, 2), -1)[..., 1].numpy()]
    if isinstance(policy.policy.spaces.action, MultiDiscrete):
        return [torch.softmax(x, -1).numpy() for x in dist.logits[0].split(list(dist.sizes), -1)]
    if policy.policy.spaces.discrete:
        return [torch.softmax(dist.logits[0], -1).numpy()]
    return [CENTRE + SCALE * dist.mean[0].numpy(), SCALE * dist.log_std[0].exp().numpy() + 0 * dist.mean[0].numpy()]


def theirs(policy: Any, obs: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        dist = policy.get_distribution(policy.obs_to_tensor(obs)[0]).distribution
    if isinstance(dist, list):
        return [choice.probs.numpy() for choice in dist]
    return [dist.probs.numpy()] if hasattr(dist, "probs") else [dist.mean.numpy(), dist.stddev.numpy()]


def assert_close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def assert_same_distributions(policy: AdaptedPolicy, model: Any, obs: np.ndarray | None = None) -> None:
    obs = observations(policy.policy.spaces.observation) if obs is None else obs
    for a, b in zip(ours(policy, obs), theirs(model.policy, obs), strict=True):
        assert a.shape == b.shape and a.std() > 0.01
        assert_close(a, b)
    mine, its = (p.predict(obs, deterministic=True)[0] for p in (policy, model))
    assert_close(mine, its)
    one, its_one = (p.predict(obs[0], deterministic=True)[0] for p in (policy, model))
    assert_close(one, its_one)


class Still(gym.Env):
    """An environment with any spaces, in which nothing happens."""

    def __init__(self, obs: Any, act: Any):
        self.observation_space, self.action_space = obs, act

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


# ---------------------------------------------------------------------------------------------------------------------
# Policies to stable-baselines3


@pytest.mark.parametrize("spaces", SPACES, ids=str)
def test_a_converted_policy_has_the_same_distributions(spaces):
    policy = adapted(*SPACES[spaces])
    model = to_sb3(policy, device="cpu")
    assert_same_distributions(policy, model)
    assert type(model) is PPO and type(model.policy.features_extractor).__name__ == "FlattenExtractor"


@pytest.mark.parametrize("settings", [{"activation": "relu"}, {"activation": "elu"}, {"hidden": ()}], ids=str)
def test_every_architecture_has_the_same_distributions(settings):
    policy = adapted(VECTOR, ACTIONS, **settings)
    model = to_sb3(policy, A2C, device="cpu")
    assert_same_distributions(policy, model)
    assert type(model) is A2C


def test_the_floor_of_the_standard_deviation_is_in_the_model():
    model = to_sb3(adapted(VECTOR, ACTIONS), device="cpu")
    np.testing.assert_allclose(model.policy.log_std.exp().detach(), [0.5 * np.exp(-0.3), 2 * 0.1], rtol=1e-6)


class Net(nn.Module):
    """A network that no stacked MLP is."""

    def __init__(self, n: int, m: int):
        super().__init__()
        self.a, self.b = nn.Linear(n, 6), nn.Linear(6, m)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.sin(self.a(x)))


@pytest.mark.parametrize(
    "spaces", ["box to box", "box to discrete", "discrete to box", "several to bits", "bits to several"]
)
def test_a_policy_of_ones_own_has_the_same_distributions(spaces, tmp_path):
    policy = adapted(*SPACES[spaces], lambda s: ModulePolicy(s, Net(s.obs_dim, s.act_dim), min_std=0.1))
    model = to_sb3(policy, device="cpu")
    assert_same_distributions(policy, model)
    model.save(tmp_path / "model")
    assert_same_distributions(policy, PPO.load(tmp_path / "model", device="cpu"))


STATS = {
    "count": torch.tensor(8.0, dtype=torch.float64),
    "mean": torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64),
    "m2": torch.tensor([32.0, 2.0, 8e-4], dtype=torch.float64),  # standard deviations 2, 0.5 and 0.01
}


@pytest.mark.parametrize("act", [ACTIONS, Discrete(3), MultiBinary(2)], ids=["box", "discrete", "bits"])
def test_a_policy_that_normalises_observations_does_so_there_too(act, tmp_path):
    plain = adapted(VECTOR, act)
    policy = AdaptedPolicy(plain.policy, plain.params, obs_stats=STATS)
    obs = observations(VECTOR)
    cut = np.abs((obs - STATS["mean"].numpy()) / [2, 0.5, 0.01]) > 10
    assert cut[:, 2].any() and not cut[:, 2].all() and not cut[:, :2].any()
    model = to_sb3(policy, device="cpu", policy_kwargs={"net_arch": {"vf": [3]}})
    assert_same_distributions(policy, model, obs)
    model.save(tmp_path / "model")
    assert_same_distributions(policy, PPO.load(tmp_path / "model", device="cpu"), obs)
    assert not np.allclose(ours(plain, obs)[0], ours(policy, obs)[0], atol=0.01)  # the control: it matters


def test_the_statistics_are_the_models_own_and_stay_as_they_are():
    learner = tiny(normalize_obs=True).learn(2, eval_every=0)
    own = AdaptedPolicy(learner.policy, learner.state.params, obs_stats=learner.state.obs_stats)
    obs = observations(learner.family.observation_space)
    model = to_sb3(learner, env=as_vec_env(learner.family, 2), n_steps=8, batch_size=16, device="cpu")
    mine, its = (p.predict(obs, deterministic=True)[0] for p in (own, model))
    assert_close(mine, its)
    before = {n: x.clone() for n, x in model.policy.state_dict().items()}
    model.learn(16)
    after = model.policy.state_dict()
    for name in ("count", "mean", "m2"):
        key = f"pi_features_extractor.obs_{name}"
        assert torch.equal(after[key], before[key]) and torch.equal(after[key], learner.state.obs_stats[name])
        after[key].add_(1)  # must not reach the learner
    assert any(
        not torch.equal(after[n], x) for n, x in before.items() if n.startswith("pi_features") and "obs" not in n
    )
    assert_close(own.predict(obs, deterministic=True)[0], mine)


def test_bits_have_the_difference_of_two_logits():
    policy = adapted(VECTOR, MultiBinary(2))
    params = {name: torch.zeros_like(x) for name, x in policy.params.items()}
    params["b2"] = torch.tensor([0.0, float(np.log(3.0)), 1.0, 1.0])
    model = to_sb3(AdaptedPolicy(policy.policy, params), device="cpu")
    np.testing.assert_allclose(theirs(model.policy, observations(VECTOR, 4))[0], [[0.75, 0.5]] * 4, rtol=1e-6)


def test_a_saved_model_loads_in_a_fresh_process_without_this_package(tmp_path):
    policy = adapted(VECTOR, ACTIONS)
    to_sb3(policy, device="cpu").save(tmp_path / "model")
    obs = observations(VECTOR, 2)
    path, one = tmp_path / "model", obs[0].tolist()
    code = (f"import sys; from stable_baselines3 import PPO; m = PPO.load(r'{path}', device='cpu');"
            f"print(m.predict({one}, deterministic=True)[0].tolist(), 'metarl' in sys.modules)")  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    got = np.array([float(word.strip("[],")) for word in out[:2]])
    np.testing.assert_allclose(got, policy.predict(obs[0], deterministic=True)[0], rtol=1e-5)
    assert out[2] == "False"


def test_their_evaluation_of_the_model_is_the_return_of_the_policy():
    learner, family = tiny(point(20), seed=3, output_gain=1.0), point(20)
    env = family.make({"goal": np.array([0.3, -0.2], np.float32)})
    policy = learner.adapt({"goal": [0.3, -0.2]}, steps=1)
    mean, _ = evaluate_policy(to_sb3(policy, device="cpu"), Monitor(env), 1)
    (obs, _), total, over = env.reset(seed=0), 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.predict(obs, deterministic=True)[0])
        total, over = total + reward, terminated or truncated
    assert mean == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_a_converted_learner_trains_on(algorithm, tmp_path):
    learner = tiny()
    env = as_vec_env(learner.family, 4)
    model = to_sb3(learner, algorithm, env, n_steps=5, device="cpu", seed=0)
    before = model.policy.action_net.weight.clone()
    np.testing.assert_allclose(before.detach(), 0.1 * learner.state.params["w1"].T, rtol=1e-6)
    model.learn(40)
    assert not torch.equal(before, model.policy.action_net.weight) and model.num_timesteps == 40
    model.save(tmp_path / "m")
    again = type(model).load(tmp_path / "m", env=as_vec_env(learner.family, 2), device="cpu").learn(10)
    assert again.num_timesteps == 10


def test_a_converted_learner_of_several_choices_trains_on():
    learner = tiny(Locks())
    env = as_vec_env(learner.family, 2)  # its choices are counted from 0, the family's are not
    model = to_sb3(learner, env=env, n_steps=8, batch_size=16, device="cpu").learn(16)
    assert model.num_timesteps == 16 and model.action_space == MultiDiscrete([3, 2])


def test_an_environment_can_be_set_later():
    learner = tiny()
    model = to_sb3(learner, n_steps=16, batch_size=16, device="cpu")
    model.set_env(as_vec_env(learner.family, 1))
    assert model.learn(32).num_timesteps == 32


@pytest.mark.parametrize(
    ("spaces", "keywords", "message"),
    [
        ((VECTOR, Box(-np.inf, 1, (2,), np.float32)), {}, "finite bounds"),
        ((Discrete(3, start=2), ACTIONS), {}, r"counts choices from 0.*start=2"),
        ((VECTOR, MultiDiscrete([2, 2], start=[0, 1])), {}, r"counts choices from 0"),
        ((VECTOR, MultiDiscrete([[2, 2]])), {}, "choices of one axis only, this policy's action space"),
        ((VECTOR, MultiBinary((1, 2))), {}, "choices of one axis only, this policy's action space"),
        ((MultiDiscrete([[2, 2]]), ACTIONS), {}, "choices of one axis only, this policy's observation space"),
        ((VECTOR, MultiDiscrete([2, 3])), {"env": Still(VECTOR, MultiDiscrete([3, 2]))}, "env has"),
        ((VECTOR, ACTIONS), {"algorithm": "sac"}, "'sac' can be used here"),
        ((VECTOR, ACTIONS), {"algorithm": SAC}, "got SAC"),
        ((VECTOR, ACTIONS), {"use_sde": True}, "use_sde follows from the policy"),
        ((VECTOR, ACTIONS), {"policy_kwargs": {"activation_fn": nn.ReLU}}, "activation_fn follows"),
        ((VECTOR, ACTIONS), {"policy_kwargs": {"net_arch": [3]}}, r"except for dict\(vf"),
        ((VECTOR, ACTIONS), {"env": "Pendulum-v1"}, r"action space Box\(\[-0.5 -1. \].*env has"),
    ],
)
def test_what_cannot_be_converted_to_them_is_refused(spaces, keywords, message):
    with pytest.raises(ValueError, match=message):
        to_sb3(adapted(*spaces), **keywords)


def test_normalised_observations_are_refused():
    learner = tiny()
    with pytest.raises(ValueError, match="norm_obs=False"):
        to_sb3(learner, env=VecMonitor(VecNormalize(as_vec_env(learner.family))))


# ---------------------------------------------------------------------------------------------------------------------
# Policies from stable-baselines3


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


# ---------------------------------------------------------------------------------------------------------------------
# Families as their environments


class Numbered(TwoArms):
    """Choices that are not counted from zero, in observations and actions."""

    horizon = 3

    def __init__(self) -> None:
        super().__init__()
        self.observation_space, self.action_space = Discrete(3, start=4), Discrete(2, start=7)

    def observe(self, state: Any, task: Any) -> torch.Tensor:
        return 4 + task["good"]

    def step(self, state: Any, action: torch.Tensor, task: Any, draws: torch.Tensor) -> Any:
        reward = (action == 7 + task["good"]).to(draws.dtype)
        return state, reward, None


class Short(Drift):
    """Some episodes end, others are cut off."""

    horizon = 6


def plain(cls: Any) -> Any:
    """The same family without its fast vector environment."""
    family = cls()
    if hasattr(family, "make_vector"):
        family.make_vector = lambda n, e, device="cpu": LoopVectorEnv(family, n, e)
    return family


TASK = {"steps": 5, "push": np.array([0.3, -0.2], np.float32)}


@pytest.mark.parametrize(
    ("family", "task"),
    [
        (Short(), "resample"),
        (Short(), TASK),
        (Short(), [{**TASK, "steps": n} for n in (8, 3, 5, 7)]),
        (plain(Short), "resample"),
        (Stops(), "resample"),
        (Numbered(), "resample"),
        (Locks(), "resample"),
    ],
    ids=["tensor", "one task", "a task each", "loop", "gymnasium", "numbered", "several"],
)
def test_a_vec_env_equals_plain_environments(family, task):
    n, seed, rng = 4, 11, np.random.default_rng(0)
    env = as_vec_env(family, n, task, seed=seed, split="test")
    shift_obs, shift_act = (np.asarray(getattr(s, "start", 0)) for s in (family.observation_space, family.action_space))
    obs = env.reset()
    episode, singles, ends = [0] * n, [None] * n, [0, 0]

    def begin(i: int) -> Any:
        now = env.get_attr("task", i)[0]
        if task == "resample":
            want = family.sample(n, np.random.default_rng([seed, episode[i]]), "test")
            assert all(np.array_equal(now[name], want[name][i]) for name in now)
        singles[i] = family.make(now)
        return singles[i].reset(seed=int(random.episode_seeds(seed, episode[i], 0x5B3, n, 1)[i, 0]))[0] - shift_obs

    np.testing.assert_allclose(obs, [begin(i) for i in range(n)], rtol=1e-5, atol=1e-6)
    for _ in range(25):
        actions = np.stack(
            [env.action_space.sample() if shift_act.any() else rng.uniform(-0.5, 0.5, 2) for _ in range(n)]
        )
        actions = actions if shift_act.any() else actions.astype(np.float32)
        ages = [s.t if isinstance(family, Stops) else int(s._batch._elapsed) for s in singles]
        obs, reward, done, infos = env.step(actions)
        assert obs.dtype == env.observation_space.dtype and reward.dtype == np.float32
        for i in range(n):
            want, r, terminated, truncated, _ = singles[i].step(actions[i] + shift_act)
            truncated = not terminated and (truncated or ages[i] + 1 >= family.horizon)
            assert (bool(done[i]), infos[i]["TimeLimit.truncated"]) == (terminated or truncated, truncated)
            assert reward[i] == pytest.approx(r, rel=1e-5)
            want = want - shift_obs
            assert ("terminal_observation" in infos[i]) == bool(done[i])
            if done[i]:
                ends[truncated] += 1
                np.testing.assert_allclose(infos[i]["terminal_observation"], want, rtol=1e-5, atol=1e-6)
                episode[i] += 1
                want = begin(i)
            np.testing.assert_allclose(obs[i], want, rtol=1e-5, atol=1e-6)
            assert env.observation_space.contains(obs[i])
    assert sum(ends) > n
    env.close()


def trace(env: Any, steps: int) -> list[Any]:
    """What a VecEnv answers to random actions, its infos included, all of them numbers and arrays."""
    rng, out = np.random.default_rng(0), [env.reset()]
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)
        obs, reward, done, infos = env.step(actions)
        ends = [value for info in infos for _, value in sorted(info.items())]
        out += [obs, reward, done, *ends, *(x for task in env.get_attr("task") for x in task.values())]
    env.close()
    return out


@pytest.mark.parametrize("task", ["resample", "one"])
@pytest.mark.parametrize("id", ["HopperRandParams-v0", "AntVel-v0"])
def test_a_simulator_runs_at_its_own_speed_where_episodes_end_early(id, task):
    pytest.importorskip("mujoco")
    family: Any = make(id, horizon=50 if id.startswith("Hopper") else 15)
    task = task if task == "resample" else task_at(family.sample(1, np.random.default_rng(0)), 0)
    fast = as_vec_env(family, 4, task, seed=3)
    assert type(fast.vector).__name__ == "MujocoVectorEnv"
    a, b = trace(fast, 70), trace(as_vec_env(family, 4, task, seed=3, workers=0), 70)
    assert len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    if id.startswith("Hopper"):
        done = np.array([x for x in a if isinstance(x, np.ndarray) and x.dtype == bool])
        assert (done.any(1) & ~done.all(1)).any()  # some end before the others


@pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system")
@pytest.mark.parametrize("task", ["resample", "one"])
def test_worker_processes_change_no_number(task):
    family: Any = Noisy()
    task = task if task == "resample" else task_at(family.sample(1, np.random.default_rng(0)), 0)
    kinds = {workers: type(as_vec_env(family, 4, task, workers=workers).vector).__name__ for workers in (None, 0, 2)}
    assert kinds == {None: "LoopVectorEnv", 0: "LoopVectorEnv", 2: "ProcessVectorEnv"}
    a, b = (trace(as_vec_env(family, 4, task, seed=3, workers=workers), 25) for workers in (2, 0))
    assert len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    done = np.array([x for x in a if isinstance(x, np.ndarray) and x.dtype == bool])
    assert (done.any(1) & ~done.all(1)).any()


def test_both_kinds_of_end_and_single_resets_come_up():
    # Else the test above would show less than it says.
    env = as_vec_env(Short(), 4, seed=11, split="test")
    env.reset()
    steps = [env.step(np.zeros((4, 2), np.float32)) for _ in range(25)]
    done, cut = (
        np.array(x) for x in ([s[2] for s in steps], [[i["TimeLimit.truncated"] for i in s[3]] for s in steps])
    )
    assert (done & cut).any() and (done & ~cut).any() and (done.any(1) & ~done.all(1)).any()


def test_the_seed_determines_the_episodes():
    def first(env: Any) -> list[float]:
        return [*env.reset().ravel().tolist(), *(x for task in env.get_attr("task") for x in task["push"].tolist())]

    env = as_vec_env(Drift(), 3, seed=5)
    a, b = first(env), first(env)
    assert a != b  # another reset, other episodes
    assert first(as_vec_env(Drift(), 3, seed=5)) == a
    assert env.seed(6) == [6, 7, 8]
    assert first(env) == first(as_vec_env(Drift(), 3, seed=6)) != a
    env.seed(5)
    assert first(env) == a
    assert first(as_vec_env(Drift(), 3, seed=5, split="test")) != a


def test_attributes_and_methods():
    env = as_vec_env(Drift(), 3)
    env.reset()
    assert env.get_attr("horizon", [0, 2]) == [8, 8] and env.get_attr("render_mode") == [None] * 3
    assert env.env_is_wrapped(Monitor) == [False] * 3 and env.has_attr("task") and not env.has_attr("nothing")
    before = env.get_attr("task")
    env.set_attr("task", TASK, [1])
    assert env.get_attr("task", 1)[0]["steps"] == before[1]["steps"]  # not in the middle of an episode
    env.reset()
    assert env.get_attr("task", 1)[0]["push"].tolist() == TASK["push"].tolist()
    assert env.get_attr("task", 0)[0]["push"].tolist() != TASK["push"].tolist()
    env.set_attr("task", "resample")
    env.reset()
    assert env.get_attr("task", 1)[0]["push"].tolist() != TASK["push"].tolist()
    with pytest.raises(AttributeError, match=r"call 'jump'.*no single environments"):
        env.env_method("jump")
    with pytest.raises(ValueError, match="made for one task"):
        as_vec_env(Drift(), 3, TASK).set_attr("task", TASK, [0])
    one = as_vec_env(Drift(), 2, TASK)
    one.reset()
    one.set_attr("task", {**TASK, "steps": 3})
    one.reset()
    assert [t["steps"] for t in one.get_attr("task")] == [3, 3]


def test_a_new_task_is_taken_up_by_each_when_its_episode_ends():
    env = as_vec_env(Drift(), 2, [{**TASK, "steps": 3}, {**TASK, "steps": 5}])
    env.reset()
    env.set_attr("task", {**TASK, "steps": 8})
    steps = []
    for _ in range(5):
        env.step(np.zeros((2, 2), np.float32))
        steps.append([int(task["steps"]) for task in env.get_attr("task")])
    assert steps == [[3, 5], [3, 5], [8, 5], [8, 5], [8, 8]]


def test_single_environments_are_reached_where_there_are_any():
    env = as_vec_env(Stops(), 2)
    env.reset()
    env.step(np.zeros((2, 2), np.float32))
    assert env.get_attr("t", 1) == [1]
    env.set_attr("t", 3, 1)
    assert env.get_attr("t") == [0, 3]  # the first one's episode lasts one step: it has begun again
    env.env_method("reset", indices=1)
    assert env.get_attr("t") == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "other"}, "got 'other'"),
        ({"task": {"goal": [np.nan, 0.0]}}, "goal"),
        ({"task": [{"goal": [0.1, 0.0]}]}, "each of 2 environments, got 1"),
        ({"split": "valid"}, "has no split 'valid'"),
        ({"seed": -1}, "negative"),
        ({"workers": -1}, "workers must .*negative"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        as_vec_env("PointNavigation-v0", 2, **arguments)


def test_a_vector_environment_that_cannot_reset_single_ones_is_found_out():
    family = Drift()
    fast = family.make_vector(4, 1)

    def reset(*, seed: Any = None, options: Any = None) -> Any:
        return type(fast).reset(fast, seed=seed, options={k: v for k, v in options.items() if k != "reset_mask"})

    family.make_vector = lambda *_: SimpleNamespace(reset=reset, step=fast.step)  # type: ignore[method-assign]
    env = as_vec_env(family, 4)
    env.reset()
    with pytest.raises(ValueError, match="cannot reset single environments"):
        deque((env.step(np.zeros((4, 2), np.float32)) for _ in range(8)), maxlen=0)


def test_an_episode_with_a_success_in_any_step_is_one():
    family: Any = point(3)
    fast, flags = family.make_vector(2, 1), iter([[0, 1], [1, 0], [0, 0], [0, 0], [1, 0], [0, 0]])
    family.make_vector = lambda *_: SimpleNamespace(
        reset=fast.reset, step=lambda actions: (*fast.step(actions)[:4], {"success": np.array(next(flags))})
    )
    env = as_vec_env(family, 2)
    env.reset()
    infos = [env.step(np.zeros((2, 2), np.float32))[3] for _ in range(6)]
    assert [[info.get("is_success") for info in step] for step in infos[1:3]] == [[None, None], [True, True]]
    assert [info["is_success"] for info in infos[5]] == [True, False]


class Fake:
    """A vector environment of 2 that says what it is told to, in the memory that it said the last in."""

    def __init__(self, steps: list[tuple[list[int], list[int], list[int]]]):
        self.steps, self.obs, self.resets = iter(steps), np.zeros((2, 2), np.float32), []

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = options.get("reset_mask", np.ones(2, bool))
        self.resets.append(mask.tolist())
        self.obs[mask] = 0
        return self.obs, {}

    def step(self, actions: Any) -> Any:
        self.obs += 1
        terminated, truncated, success = (np.array(x, bool) for x in next(self.steps))
        return self.obs, np.ones(2), terminated, truncated, {"success": success}


def faked(steps: list[tuple[list[int], list[int], list[int]]]) -> Any:
    family: Any = point(9)
    family.make_vector = lambda *_: Fake(steps)
    env = as_vec_env(family, 2)
    env.reset()
    return env


def test_the_end_of_one_episode_is_nothing_to_the_others():
    # terminated, truncated, success in each step. Both at once is a termination.
    env = faked(
        [([0, 0], [0, 0], [0, 1]), ([1, 0], [1, 0], [1, 0]), ([0, 1], [0, 0], [0, 0]), ([0, 0], [1, 0], [0, 0])]
    )
    steps = [env.step(np.zeros((2, 2), np.float32)) for _ in range(4)]
    assert [done.tolist() for *_, done, _ in steps] == [[False, False], [True, False], [False, True], [True, False]]
    shown = [[(i, info["TimeLimit.truncated"], info["is_success"]) for i, info in enumerate(infos) if len(info) > 1]
             for *_, infos in steps]  # fmt: skip
    assert shown == [[], [(0, False, True)], [(1, False, True)], [(0, True, False)]]
    assert env.vector.resets[1:] == [[True, False], [False, True], [True, False]]


def test_what_was_returned_stays_where_the_environments_reuse_their_memory():
    env = faked([([0, 0], [0, 0], [0, 0]), ([0, 0], [1, 1], [0, 0])])
    first = env.reset()
    second = env.step(np.zeros((2, 2), np.float32))[0]
    third, _, _, infos = env.step(np.zeros((2, 2), np.float32))
    last = [info["terminal_observation"].tolist() for info in infos]
    assert (first.tolist(), second.tolist(), third.tolist()) == ([[0, 0]] * 2, [[1, 1]] * 2, [[0, 0]] * 2)
    assert last == [[2, 2]] * 2


def test_reset_options_are_refused():
    env = as_vec_env(point(), 2)
    env.set_options({"goal": [0.1, 0.1]})
    with pytest.raises(ValueError, match=r"PointNavigation-v0 take no reset options, got \[\{'goal'"):
        env.reset()


def test_their_wrappers_count_and_normalise():
    env = VecNormalize(VecMonitor(as_vec_env(point(5), 3, {"goal": [0.3, 0.0]})))
    env.reset()
    results = [env.step(np.zeros((3, 2), np.float32)) for _ in range(5)]
    episodes = [info["episode"] for info in results[-1][3]]
    assert [(e["l"], round(float(e["r"]), 4)) for e in episodes] == [(5, -1.5)] * 3
    assert env.obs_rms.count > 15


def test_their_ppo_learns_on_a_family():
    env = VecMonitor(as_vec_env(PointGoal(), 16, {"goal": [0.4, 0.3]}, seed=0))
    model = PPO("MlpPolicy", env, n_steps=20, batch_size=80, learning_rate=3e-3, gamma=0.9, seed=0, device="cpu",
                policy_kwargs={"net_arch": [16], "log_std_init": -2.3})  # fmt: skip
    before = evaluate_policy(model, env, 16)[0]
    model.learn(320 * 20)
    after = evaluate_policy(model, env, 16)[0]
    assert before < -8  # standing still: -20 * 0.5
    assert after > -4  # the best: -(0.4 + 0.3 + 0.2 + 0.1) and a bit


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks


class Recorder(sb3_callbacks.BaseCallback):
    def __init__(self, stop_after: int = 99):
        super().__init__()
        self.events: list[str] = []
        self.stop_after = stop_after

    def _on_training_start(self) -> None:
        self.events.append(f"start {self.num_timesteps}")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout")

    def _on_rollout_end(self) -> None:
        self.logger.record("mine/half", np.float32(self.n_calls / 2))
        self.logger.record("mine/word", "text", exclude="tensorboard")
        self.events.append("rolled out")

    def _on_step(self) -> bool:
        self.events.append(f"step {self.n_calls} {self.num_timesteps} {self.locals['stats']['iteration']}")
        return self.n_calls < self.stop_after

    def _on_training_end(self) -> None:
        self.events.append("end")


def test_a_callback_is_called_in_order_and_logs_into_the_iterations_row(tmp_path):
    recorder = Recorder()
    tiny().learn(2, run_dir=tmp_path / "run", callback=recorder, eval_every=0)
    steps = 2 * 2 * 2 * 5
    assert recorder.events == ["start 0", "rollout", "rolled out", f"step 1 {steps} 1",
                               "rollout", "rolled out", f"step 2 {2 * steps} 2", "end"]  # fmt: skip
    rows = rows_without_time(tmp_path / "run")
    assert [(row["iteration"], row["mine/half"]) for row in rows] == [(1, 0.0), (2, 0.5)]
    assert all("mine/word" not in row for row in rows)


def test_a_callback_stops_and_the_run_can_be_resumed(tmp_path):
    recorder = Recorder(stop_after=2)
    learner = tiny().learn(9, run_dir=tmp_path / "run", callback=[recorder], checkpoint_every=5, eval_every=0)
    assert learner.state.iteration == 2 and recorder.events[-1] == "end"
    assert same_params(MetaLearner.load(tmp_path / "run").state.params, learner.state.params)
    learner.learn(1, run_dir=tmp_path / "run", callback=recorder, eval_every=0)
    assert recorder.events[-5] == f"start {2 * 40}"
    assert [row["iteration"] for row in rows_without_time(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2"])
def test_the_model_of_a_callback_normalises_observations_as_the_learner_does(algorithm):
    config = {"trials": 2, "hidden": 8, "minibatches": 2} if algorithm == "rl2" else {"episodes": 2, "hidden": (8,)}
    learner = MetaLearner(algorithm, point(), device="cpu", n_tasks=2, normalize_obs=True, **config)
    obs, asked = observations(learner.family.observation_space), []

    def ask(locals_: Any, _: Any) -> bool:
        asked.append(callback.model.predict(obs, deterministic=True)[0])
        return True

    callback = sb3_callbacks.ConvertCallback(ask)
    learner.learn(2, callback=callback, eval_every=0)
    kind = RecurrentPolicy if algorithm == "rl2" else AdaptedPolicy
    own, plain = (
        kind(learner.policy, learner.state.params, obs_stats=stats).predict(obs, deterministic=True)[0]
        for stats in (learner.state.obs_stats, {})
    )
    np.testing.assert_array_equal(asked[1], own)
    assert np.abs(own - plain).max() > 1e-4  # the control: it matters


def test_numbers_do_not_depend_on_callbacks():
    assert same_params(tiny().learn(2, callback=Recorder()).state.params, tiny().learn(2).state.params)


def test_their_checkpoints_are_ours(tmp_path):
    callback = sb3_callbacks.CheckpointCallback(2, str(tmp_path))
    learner = tiny().learn(2, callback=[callback, lambda stats: None], eval_every=0)
    assert [p.name for p in tmp_path.iterdir()] == ["rl_model_80_steps.safetensors"]
    loaded = MetaLearner.load(tmp_path / "rl_model_80_steps.safetensors")
    assert same_params(loaded.state.params, learner.state.params)


def test_steps_and_functions_are_counted():
    seen: list[int] = []
    inner = sb3_callbacks.ConvertCallback(lambda *_: seen.append(1) or True)
    tiny().learn(4, callback=sb3_callbacks.EveryNTimesteps(80, inner), eval_every=0)
    assert len(seen) == 2
    assert tiny().learn(4, callback=[lambda stats: stats["iteration"] < 3], eval_every=0).state.iteration == 3


def test_thresholds_are_those_of_adapted_policies_on_test_tasks():
    low = sb3_callbacks.StopTrainingOnRewardThreshold(-1e9)
    high = sb3_callbacks.StopTrainingOnRewardThreshold(1e9)
    assert tiny().learn(5, callback=low, eval_every=2, eval_tasks=2).state.iteration == 2
    assert tiny().learn(3, callback=high, eval_every=2, eval_tasks=2).state.iteration == 3
    patience = sb3_callbacks.StopTrainingOnNoModelImprovement(0)
    learner = tiny(max_kl=1e-12)
    learner.learn(9, callback=sb3_callbacks.CallbackList([patience]), eval_every=1, eval_tasks=2)
    assert learner.state.iteration < 9


def test_an_improvement_is_one_over_the_best_score_and_not_over_the_last():
    hooks = Hooks(tiny(), sb3_callbacks.StopTrainingOnNoModelImprovement(1))
    hooks.start(None, 9)
    assert [hooks.after_iteration({"eval/score": score}) for score in (5.0, 3.0, 4.0)] == [True, True, False]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: sb3_callbacks.EvalCallback(point().make({"goal": [0.1, 0.1]})), "EvalCallback.*eval_every"),
        (lambda: sb3_callbacks.StopTrainingOnMaxEpisodes(3), "fewer iterations"),
        (lambda: sb3_callbacks.LogEveryNTimesteps(3), "LogEveryNTimesteps"),
        (lambda: sb3_callbacks.EveryNTimesteps(9, sb3_callbacks.StopTrainingOnMaxEpisodes(3)), "MaxEpisodes"),
        (lambda: sb3_callbacks.EveryNTimesteps(9, sb3_callbacks.StopTrainingOnRewardThreshold(3)), "after evaluations"),
    ],
)
def test_callbacks_that_make_no_sense_are_refused_before_anything_is_written(callback, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny().learn(1, run_dir=tmp_path / "run", callback=callback())
    assert not (tmp_path / "run").exists()


def test_what_callbacks_log_at_other_times_leaves_the_metrics_alone(tmp_path):
    class Dumps(sb3_callbacks.BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record("mine", 1.0)
            self.logger.dump(self.num_timesteps)
            return True

    tiny().learn(2, run_dir=tmp_path / "run", callback=Dumps(), eval_every=0)
    assert [row["iteration"] for row in rows_without_time(tmp_path / "run")] == [1, 2]


# ---------------------------------------------------------------------------------------------------------------------
# The document


DOCUMENT = ROOT / "docs" / "stable_baselines3.md"


@pytest.mark.skipif(not DOCUMENT.exists(), reason="metarl is not run from its repository")
def test_the_examples_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = blocks(DOCUMENT.read_text(), "python")
    assert len(code) >= 4
    for block in code:
        exec(compile(block, str(DOCUMENT), "exec"), names)
