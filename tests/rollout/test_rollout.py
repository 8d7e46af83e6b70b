"""Rollouts: what is counted, what is recorded, what reaches the environments, and which randomness goes where."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from probes import Drift, Locks, PointGoal, Stops, TwoArms, random_params

from metarl import random
from metarl.algorithms.maml_trpo import Config
from metarl.formulas import distributions
from metarl.policies.mlp import MLPPolicy
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import Rollout, collect
from metarl.rollout.sampler import EnvSampler, Sampler
from metarl.tasks import task_at
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv

FIELDS = ("obs", "act", "rew", "mask", "log_prob")


def policy_of(family: Any) -> MLPPolicy:
    return Config(hidden=(5,)).policy(spaces_of(family))


def roll(family: Any, n_tasks: int = 4, episodes: int = 3, seed: int = 0, env: VectorEnv | None = None,
         tasks: Any = None, device: str = "cpu") -> Rollout:  # fmt: skip
    policy = policy_of(family)
    tasks = family.sample(9, np.random.default_rng(0)) if tasks is None else tasks
    tasks = {name: value[:n_tasks] for name, value in tasks.items()}
    params = {name: value[:n_tasks].to(device) for name, value in random_params(policy, 9).items()}
    env = make_vector(family, n_tasks, episodes, device) if env is None else env
    seeds = random.episode_seeds(seed, 0, 0, n_tasks, episodes)
    return collect(env, tasks, family.horizon, policy, params, seeds)


def assert_same(a: Rollout, b: Rollout, **tolerance: float) -> None:
    tolerance = tolerance or {"atol": 0, "rtol": 0}
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **tolerance)
    torch.testing.assert_close(tuple(a.dist), tuple(b.dist), **tolerance)


families = pytest.mark.parametrize(
    "family", [Drift(), TwoArms(), Locks(), Locks(MultiBinary(2))], ids=["gaussian", "categorical", "several", "binary"]
)


# ---------------------------------------------------------------------------------------------------------------------
# What is counted


def test_the_mask_counts_exactly_the_steps_before_the_end():
    assert roll(Stops()).mask.sum(1).tolist() == [[1] * 3, [2] * 3, [3] * 3, [4] * 3]


def test_the_mask_is_one_from_the_start_to_the_end_without_a_gap():
    assert roll(Stops(), 3, 1).mask[:, :, 0].tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_returns_count_exactly_the_steps_before_the_end():
    assert roll(Stops()).returns.tolist() == [[1] * 3, [2] * 3, [3] * 3, [4] * 3]


def test_steps_are_those_of_all_tasks_and_episodes():
    assert roll(Stops()).steps == 3 * (1 + 2 + 3 + 4)


def test_the_horizon_cuts_an_episode_off():
    family = Stops()
    tasks = {"steps": np.array([6, 100])}
    family.task_space = gym.spaces.Dict({"steps": Discrete(101)})
    assert roll(family, 2, tasks=tasks).mask.sum(1).tolist() == [[6] * 3, [6] * 3]


def test_a_reward_belongs_to_the_step_that_earned_it():
    family = Stops()
    family.reward = lambda task, t: 10.0 * t
    assert roll(family, 3, 1).rew[2, :, 0].tolist() == [10, 20, 30, 0, 0, 0]


def test_an_observation_is_the_one_the_policy_acted_on():
    assert roll(Stops(), 3, 1).obs[2, :, 0, 0].tolist() == [0, 1, 2, 0, 0, 0]


def test_after_the_end_everything_is_zero():
    r = roll(Drift(), 9)
    over = r.mask == 0
    assert [bool(x[over].any()) for x in (r.rew, r.obs, r.act, r.dist.mean)] == [False] * 4


# ---------------------------------------------------------------------------------------------------------------------
# What is recorded of the policy


@families
def test_the_distribution_is_that_of_the_acting_parameters(family):
    r, policy = roll(family), policy_of(family)
    params = {name: value[:4] for name, value in random_params(policy, 9).items()}
    again = policy.distribution(params, r.obs)
    valid = r.mask.bool()
    torch.testing.assert_close(r.dist[0][valid], again[0][valid], atol=1e-6, rtol=1e-5)


@families
def test_log_prob_is_that_of_the_acting_parameters(family):
    r, policy = roll(family), policy_of(family)
    params = {name: value[:4] for name, value in random_params(policy, 9).items()}
    again = distributions.log_prob(policy.distribution(params, r.obs), r.act)
    torch.testing.assert_close(r.log_prob * r.mask, again * r.mask, atol=1e-5, rtol=1e-5)


def test_gaussian_actions_are_the_mean_plus_the_standard_deviation_times_the_noise_of_the_key():
    r, seeds = roll(Drift()), random.episode_seeds(0, 0, 0, 4, 3)
    noise = random.normal(seeds, 0, 8 * 2, random.ACTION).reshape(4, 3, 8, 2).transpose(1, 2)
    want = r.dist.mean + r.dist.log_std.exp() * noise
    valid = r.mask.bool()
    torch.testing.assert_close(r.act[valid], want[valid])


def test_actions_reach_the_environment_in_its_units_and_clipped_and_are_stored_unclipped():
    family = Stops()
    r = roll(family, 1, 5)
    got = torch.tensor(np.array(family.received))
    torch.testing.assert_close(got, (0.5 * r.act[0, 0]).clamp(-0.5, 0.5))
    assert r.act[0, 0].abs().max() > 1  # else nothing was there to be clipped


def test_every_action_that_reaches_the_environment_lies_in_its_space():
    family = Stops()
    roll(family, 4, 20)
    assert all(family.action_space.contains(action) for action in family.received)


def test_a_choice_is_counted_from_the_start_of_the_action_space():
    family = Stops()
    family.action_space = Discrete(3, start=4)
    r = roll(family, 1, 40)
    assert (r.act[0, 0] + 4).tolist() == [int(a) for a in family.received]
    assert r.act[0, 0].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("space", [MultiDiscrete([3, 2], start=[4, -1]), MultiBinary((2, 1))], ids=str)
def test_several_choices_reach_the_environment_in_its_units(space):
    family = Stops()
    family.action_space = space
    r = roll(family, 1, 40)
    assert all(space.contains(action) for action in family.received)
    start = getattr(space, "start", np.zeros(space.shape, np.int64))
    want = torch.tensor(np.array(family.received) - start).reshape(40, 2)
    assert torch.equal(r.act[0, 0], want.long())
    assert len(r.act[0, 0].unique(dim=0)) == int(np.prod(r.dist.sizes)), "every combination came up"


# ---------------------------------------------------------------------------------------------------------------------
# Which randomness goes where


@families
def test_the_same_seeds_give_the_same_rollout(family):
    assert_same(roll(family), roll(family))


@families
def test_other_seeds_give_another_rollout(family):
    assert not torch.equal(roll(family, seed=0).act, roll(family, seed=1).act)


@families
def test_a_vector_environment_can_be_used_again(family):
    env = make_vector(family, 4, 3)
    roll(family, env=env, seed=1)
    assert_same(roll(family, env=env), roll(family))


def test_a_task_rollout_does_not_depend_on_the_tasks_beside_it():
    # Not to the last bit: a batched product may add in another order when there is more to add.
    assert_same(roll(Drift(), n_tasks=2), roll(Drift(), n_tasks=5)[:2], atol=1e-5, rtol=1e-5)


def test_an_episode_does_not_depend_on_the_episodes_beside_it():
    few, many = roll(Drift(), episodes=2), roll(Drift(), episodes=6)
    torch.testing.assert_close(few.act * few.mask[..., None], (many.act * many.mask[..., None])[:, :, :2])


@families
def test_two_tasks_do_not_share_their_noise(family):
    tasks = family.sample(1, np.random.default_rng(0))
    same = {name: np.repeat(value, 2, 0) for name, value in tasks.items()}
    policy = policy_of(family)
    params = {name: value[:1].repeat(2, *[1] * (value.dim() - 1)) for name, value in random_params(policy, 1).items()}
    env = make_vector(family, 2, 30)
    r = collect(env, same, family.horizon, policy, params, random.episode_seeds(0, 0, 0, 2, 30))
    assert not torch.equal(r.act[0, 0], r.act[1, 0])


def noise_of(r: Rollout) -> torch.Tensor:
    """[K, T, E, A], the standard normals behind a Gaussian rollout's actions."""
    return (r.act - r.dist.mean) * (-r.dist.log_std).exp()


def test_action_noise_is_standard_normal_and_independent_over_tasks_steps_episodes_and_dimensions():
    family = PointGoal()  # whose episodes all run to the horizon
    z = noise_of(roll(family, 4, 100)).permute(0, 1, 3, 2).reshape(-1, 100)  # variables x 100 samples
    correlation = z @ z.T / 100  # the identity, up to 1 / sqrt(100)
    assert (correlation - torch.eye(len(z))).abs().max() < 0.6
    assert (correlation - torch.eye(len(z))).square().mean().sqrt().item() == pytest.approx(0.1, abs=0.01)


def test_action_noise_is_not_the_environment_s():
    # Equal streams would show as one number for one number: the first normal comes from the first two uniforms.
    seeds = random.episode_seeds(0, 0, 0, 2, 3)
    assert not torch.equal(random.normal(seeds, 0, 4, random.ACTION), random.normal(seeds, 0, 4, random.ENVIRONMENT))


def sampled(sampler: Sampler, policy: MLPPolicy, **key: int) -> torch.Tensor:
    key = {"seed": 0, "iteration": 0, "stage": 0} | key
    tasks = sampler.tasks(4, 0, 0)
    return sampler.collect(tasks, 3, policy, random_params(policy, 4), **key).act


@pytest.mark.parametrize("key", [{"seed": 1}, {"iteration": 1}, {"stage": 1}])
def test_seed_iteration_and_stage_all_change_the_noise(key):
    sampler, policy = Sampler(Drift()), policy_of(Drift())
    assert not torch.equal(sampled(sampler, policy), sampled(sampler, policy, **key))


def test_a_sampler_repeats_itself():
    sampler, policy = Sampler(Drift()), policy_of(Drift())
    first = sampled(sampler, policy)
    sampled(sampler, policy, seed=5)
    assert torch.equal(sampled(sampler, policy), first)


@pytest.mark.parametrize("other", [{"seed": 1}, {"iteration": 1}, {"split": "test"}])
def test_a_sampler_s_tasks_follow_seed_iteration_and_split(other):
    sampler, key = Sampler(Drift()), {"seed": 0, "iteration": 0, "split": "train"}
    first, again, changed = (sampler.tasks(4, **k)["push"] for k in (key, key, key | other))
    assert np.array_equal(first, again)
    assert not np.isin(changed, first).any()


# ---------------------------------------------------------------------------------------------------------------------
# The same through other environments


@families
def test_environments_one_by_one_give_the_rollout_of_the_batched_ones(family):
    assert_same(roll(family, env=LoopVectorEnv(family, 4, 3)), roll(family), atol=1e-6, rtol=1e-6)


@families
def test_a_single_environment_gives_the_rollout_of_its_family(family):
    tasks = {name: value[:1] for name, value in family.sample(4, np.random.default_rng(3)).items()}
    policy = policy_of(family)
    args = (tasks, 6, policy, random_params(policy, 1), 11, 2, 1)
    alone = EnvSampler(family.make(task_at(tasks, 0)), family.horizon).collect(*args)
    assert_same(alone, Sampler(family).collect(*args), atol=1e-6, rtol=1e-6)


def test_a_single_environment_is_cut_off_at_the_horizon():
    family = Stops()
    policy = policy_of(family)
    env = EnvSampler(family.make({"steps": 100}), 5)
    r = env.collect({"steps": np.array([100])}, 2, policy, random_params(policy, 1), 0, 0, 0)
    assert r.returns.tolist() == [[5, 5]]


def test_devices_agree(device):
    r = roll(Drift(), device=device)
    assert r.obs.device.type == device
    assert_same(r.to("cpu"), roll(Drift()), atol=1e-4, rtol=1e-4)


class RestlessVectorEnv(VectorEnv):
    """As a third party may write one: goes on after an episode's end, and returns nonsense there."""

    def __init__(self, family: "Restless", n_tasks: int, episodes: int):
        self.family, self.num_envs = family, n_tasks * episodes
        self.n_tasks, self.episodes = n_tasks, episodes
        self.single_observation_space, self.single_action_space = family.observation_space, family.action_space
        self.observation_space = batch_space(family.observation_space, self.num_envs)
        self.action_space = batch_space(family.action_space, self.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.stop = np.repeat(options["tasks"]["steps"], self.episodes)
        self.t = 0
        return np.zeros((self.num_envs, 2), np.float32), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        over = self.t >= self.stop
        self.t += 1
        reward = np.where(over, self.family.nonsense, 1.0)
        obs = np.full((self.num_envs, 2), self.t, np.float32)
        obs[self.t >= self.stop] = self.family.nonsense
        no = np.zeros(self.num_envs, bool)
        # It reports the end once, as an environment without memory of it would.
        return obs, reward, self.t == self.stop, no, {}


class Restless(Stops):
    def __init__(self, nonsense: float):
        super().__init__()
        self.nonsense = nonsense

    def make_vector(self, n_tasks: int, episodes: int, device: Any) -> VectorEnv:
        return RestlessVectorEnv(self, n_tasks, episodes)


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, 1e30])
def test_what_comes_after_the_end_does_not_leak(nonsense):
    # The same episodes from environments that rest, on the steps that count; finite numbers on all others.
    r, clean = roll(Restless(nonsense)), roll(Stops())
    valid = r.mask.bool()
    assert torch.equal(r.mask, clean.mask)
    for name in ("rew", "obs"):
        assert torch.equal(getattr(r, name), getattr(clean, name))
    for name in ("act", "log_prob"):
        torch.testing.assert_close(getattr(r, name)[valid], getattr(clean, name)[valid])
        assert getattr(r, name).isfinite().all()
    assert r.dist[0].isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_no_number_is_named_with_task_episode_and_step(value):
    family = Stops()
    family.reward = lambda task, t: value if (int(task["steps"]), t) == (3, 2) else 0.0
    with pytest.raises(ValueError, match=r"StopsProbe-v0 .*reward .* step 1 of episode 0 of task 2 = .*steps.*3"):
        roll(family)


def test_an_observation_that_is_no_number_is_named():
    family = Stops()
    family.observation = lambda task, t: np.nan if (int(task["steps"]), t) == (4, 2) else 0.0
    with pytest.raises(ValueError, match=r"StopsProbe-v0 .*observation .* step 1 of episode 0 of task 3 = .*steps.*4"):
        roll(family)


def test_an_observation_after_the_end_is_not_looked_at():
    family = Stops()
    family.observation = lambda task, t: np.nan if int(task["steps"]) == t else 0.0
    assert roll(family).mask.sum(1).tolist() == [[1] * 3, [2] * 3, [3] * 3, [4] * 3]


def test_a_sampler_refuses_spaces_that_no_policy_supports():
    family = Stops()
    family.observation_space = gym.spaces.Dict({"x": Box(0, 1)})
    with pytest.raises(ValueError, match="StopsProbe-v0"):
        Sampler(family)


# ---------------------------------------------------------------------------------------------------------------------
# Slices


@families
def test_a_slice_is_the_rollout_of_some_tasks(family):
    r = roll(family)
    part = r[1:3]
    for name in FIELDS:
        assert torch.equal(getattr(part, name), getattr(r, name)[1:3])
    assert all(torch.equal(a, b[1:3]) for a, b in zip(part.dist, r.dist, strict=True))


@families
def test_slices_put_together_have_all_returns(family):
    r = roll(family)
    assert torch.equal(torch.cat([r[:1].returns, r[1:].returns]), r.returns)


def test_a_bad_number_of_a_plain_environment_is_reported_with_its_episode():
    class Breaks(gym.Env):
        observation_space, action_space = Box(-1, 1, (1,)), Box(-1, 1, (1,))
        episode = -1

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.episode, self.t = self.episode + 1, 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.t += 1
            return np.zeros(1, np.float32), np.nan if (self.episode, self.t) == (2, 3) else 0.0, False, False, {}

    env = Breaks()
    policy = policy_of(env)
    sampler = EnvSampler(env, 5)
    with pytest.raises(ValueError, match="Breaks returned the reward nan in step 2 of episode 2"):
        sampler.collect({"env": np.zeros(1)}, 4, policy, random_params(policy, 1), 0, 0, 0)
