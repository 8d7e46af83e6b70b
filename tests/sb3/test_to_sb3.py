"""Policies to stable-baselines3: the same action distributions, loadable without this package, trained further."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from probes import Locks
from sb3_policies import (
    ACTIONS,
    SPACES,
    VECTOR,
    Still,
    adapted,
    assert_close,
    assert_same_distributions,
    observations,
    ours,
    theirs,
)
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from tiny_runs import point, tiny
from torch import nn

from metarl import AdaptedPolicy
from metarl.policies.module import ModulePolicy
from metarl.sb3 import as_vec_env, to_sb3


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
