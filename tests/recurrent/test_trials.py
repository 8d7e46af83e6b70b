"""Trials of several episodes: against a plain loop over one `gymnasium.Env`, alone and side by side, by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from probes import Drift, Locks, Stops, Wins, gru_params

import metarl
from metarl import random
from metarl.formulas import distributions
from metarl.policies.gru import GRUPolicy, action_vector
from metarl.policies.spaces import spaces_of
from metarl.recurrent.sequences import Sequences, sequences
from metarl.recurrent.trials import Trials, collect_trials, run, shown_episodes, trial_seeds
from metarl.rollout.sampler import EnvSampler, Sampler
from metarl.rollout.setup import Setup
from metarl.tasks import Task, task_at
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv

K, E, N, SEED, ITERATION = 3, 2, 4, 11, 5
FAMILIES = {
    "drift": Drift,
    "bits": Locks,
    "bandit": lambda: metarl.make("BernoulliBandit-v0"),
    "mdp": lambda: metarl.make("TabularMDP-v0"),
}


def setup(
    family: Any, hidden: int = 6, **shape: bool
) -> tuple[GRUPolicy, dict[str, torch.Tensor], dict[str, np.ndarray]]:
    policy = GRUPolicy(spaces_of(family), hidden, **shape)
    return policy, gru_params(policy, dtype=torch.float32), family.sample(K, np.random.default_rng(0))


def collected(family: Any, trials: int = E, shape: Mapping[str, bool] | None = None, **options: Any) -> Trials:
    policy, params, tasks = setup(family, **(shape or {}))
    return collect_trials(Setup(None, Sampler(family), policy, SEED), tasks, trials, N, params, ITERATION, **options)


def plain_trial(family: Any, task: Task, policy: GRUPolicy, params: Any, seeds: list[int]) -> dict[str, list[Any]]:
    """One trial in one environment, written out: what went in, what was done and earned, the memory afterwards."""
    env, spaces = family.make(task), policy.spaces
    hidden, action, reward = torch.zeros(policy.hidden), torch.zeros(spaces.act_dim), 0.0
    before = torch.zeros(spaces.obs_dim)
    out: dict[str, list[Any]] = {"x": [], "act": [], "rew": [], "episode": [], "t": [], "value": []}
    for n, seed in enumerate(seeds):
        obs, _ = env.reset(seed=seed)
        for t in range(family.horizon):
            seen = spaces.encode(np.asarray(obs)[None])[0]
            parts = [seen, action, torch.tensor([reward, float(t == 0)]), *([before] if policy.last_obs else [])]
            if policy.products:
                pairs = torch.outer(before, action).flatten()
                parts += [pairs, reward * pairs]
            x = torch.cat(parts)
            before = seen
            hidden = policy.step(params, x, hidden)
            dist, value = policy.heads(params, hidden)
            draw = random.uniform if spaces.discrete else random.normal
            noise = draw(torch.tensor(seed), t * spaces.noise_dim, spaces.noise_dim, random.ACTION)
            chosen = distributions.sample(dist, noise)
            obs, reward, terminated, truncated, _ = env.step(spaces.decoder()(chosen[None])[0].numpy())
            action = action_vector(spaces, chosen)
            for name, what in (("x", x), ("act", chosen), ("rew", reward), ("episode", n), ("t", t), ("value", value)):
                out[name].append(what)
            if terminated or truncated:
                break
    return out | {"memory": [hidden, action, reward]}


@pytest.mark.parametrize("shape", [{}, {"last_obs": True}, {"last_obs": True, "products": True}])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_equals_a_plain_loop_over_one_environment(name, shape):
    family = FAMILIES[name]()
    policy, params, tasks = setup(family, **shape)
    found = collected(family, shape=shape)
    seeds = trial_seeds(SEED, ITERATION, N, K, E)
    for k in range(K):
        for e in range(E):
            plain = plain_trial(family, task_at(tasks, k), policy, params, seeds[:, k, e].tolist())
            at = torch.tensor(plain["episode"]) * family.horizon + torch.tensor(plain["t"])
            assert found.mask[k, :, e].nonzero()[:, 0].tolist() == at.tolist()
            assert torch.equal(found.act[k, at, e].double(), torch.stack(plain["act"]).double()) or torch.allclose(
                found.act[k, at, e], torch.stack(plain["act"]), atol=1e-4
            )
            assert torch.allclose(found.x[k, at, e], torch.stack(plain["x"]), atol=1e-4)
            assert torch.allclose(found.rew[k, at, e], torch.tensor(plain["rew"]).float(), atol=1e-4)
            assert torch.allclose(found.value[k, at, e], torch.stack(plain["value"]), atol=1e-4)
            hidden, action, reward = plain["memory"]
            assert torch.allclose(found.memory.hidden[k, e], hidden, atol=1e-4)
            assert torch.allclose(found.memory.action[k, e], action, atol=1e-4)
            assert float(found.memory.reward[k, e]) == pytest.approx(float(reward), abs=1e-4)


def test_episodes_of_that_loop_end_at_different_times():
    # The control: without early ends in the middle of trials, the test above would not try the waiting.
    lengths = collected(Drift()).mask.unflatten(1, (N, -1)).sum(2)
    assert len(set(lengths.flatten().tolist())) > 2 and lengths.min() < Drift.horizon


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_does_not_depend_on_those_beside_it(name):
    family = FAMILIES[name]()
    policy, params, tasks = setup(family)
    found, seeds = collected(family), trial_seeds(SEED, ITERATION, N, K, E)
    for k, e in ((0, 0), (2, 1)):
        own = {key: value[k : k + 1] for key, value in tasks.items()}
        env = make_vector(family, 1, 1)
        alone = run(env, own, family.horizon, policy, params, seeds[:, k : k + 1, e : e + 1])
        assert torch.equal(alone.mask[0, :, 0], found.mask[k, :, e])
        for field in ("x", "rew", "log_prob", "value"):
            assert torch.allclose(getattr(alone, field)[0, :, 0], getattr(found, field)[k, :, e], atol=1e-4), field
        assert torch.allclose(alone.memory.hidden[0, 0], found.memory.hidden[k, e], atol=1e-4)


def test_backends_agree():
    policy, params, tasks = setup(Drift())
    fast, slow = (
        collect_trials(Setup(None, Sampler(Drift(), workers=workers), policy, SEED), tasks, E, N, params, ITERATION)
        for workers in (None, 0)
    )
    assert torch.equal(fast.mask, slow.mask) and torch.allclose(fast.x, slow.x, atol=1e-5)


def test_seeds_are_those_of_stages_and_all_different():
    seeds = trial_seeds(SEED, ITERATION, N, K, E)
    for n in range(N):
        assert torch.equal(seeds[n], random.episode_seeds(SEED, ITERATION, n, K, E))
    assert len(seeds.unique()) == N * K * E


def test_another_seed_or_iteration_gives_other_trials():
    policy, params, tasks = setup(Drift())
    found = [
        collect_trials(Setup(None, Sampler(Drift()), policy, seed), tasks, E, N, params, iteration).returns
        for seed, iteration in ((1, 0), (1, 0), (2, 0), (1, 1))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2]) and not torch.allclose(found[0], found[3])


def test_what_goes_in_by_hand():
    # Tasks that end after 1, 2 and 3 of 6 steps; reward 1 in every step.
    found = collected(Stops(), trials=1)
    starts = [n * 6 for n in range(N)]
    assert found.mask[1, :, 0].nonzero()[:, 0].tolist() == [s + t for s in starts for t in (0, 1)]
    rows = found.x[1, :, 0][found.mask[1, :, 0] > 0]
    assert rows[:, 0].tolist() == [0, 1] * N  # the observation counts the steps
    assert rows[:, -1].tolist() == [1, 0] * N  # an episode's first step
    assert rows[:, -2].tolist() == [0] + [1] * (2 * N - 1)  # the last reward, of the episode before too
    actions = found.act[1, :, 0][found.mask[1, :, 0] > 0]
    assert torch.equal(rows[1:, 2:4], actions[:-1]) and rows[0, 2:4].tolist() == [0, 0]
    assert found.returns[:, :, 0].tolist() == [[1.0] * N, [2.0] * N, [3.0] * N]
    assert found.steps == N * (1 + 2 + 3)


def test_everything_is_zero_where_the_mask_is():
    found = collected(Drift())
    off = found.mask == 0
    assert off.any()
    for value in (found.x, found.act, found.dist[0]):
        assert not value[off].any()
    assert not found.rew[off].any() and not found.value[off].any()


class Spoilt(LoopVectorEnv):
    """Episodes that are over go on to say nonsense."""

    def step(self, actions: Any) -> Any:
        over = self._terminated | self._truncated
        obs, reward, *rest = super().step(actions)
        obs = obs.astype(np.float32)
        obs[over], reward[over] = np.nan, np.inf
        return obs, reward, *rest


def test_what_is_said_after_an_episodes_end_is_not_heard():
    family = Stops()
    policy, params, tasks = setup(family)
    seeds = trial_seeds(SEED, ITERATION, N, K, E)
    spoilt, clean = (
        run(kind(family, K, E), tasks, family.horizon, policy, params, seeds) for kind in (Spoilt, LoopVectorEnv)
    )
    assert not clean.mask.all()
    for field in ("x", "rew", "act", "mask", "value"):
        assert torch.equal(getattr(spoilt, field), getattr(clean, field)), field
    assert torch.equal(spoilt.memory.hidden, clean.memory.hidden)


def test_rollouts_are_the_episodes():
    found = collected(Drift())
    parts = found.rollouts
    assert len(parts) == N
    assert torch.equal(torch.stack([part.returns for part in parts], 1), found.returns)
    assert torch.equal(torch.cat([part.obs for part in parts], 1), found.x[..., :2])
    assert torch.allclose(distributions.log_prob(parts[2].dist, parts[2].act), parts[2].log_prob)
    assert sum(part.steps for part in parts) == found.steps


def test_sequences_put_the_valid_steps_together():
    mask = torch.tensor([[[1.0, 1], [1, 0], [0, 0], [0, 0], [1, 1], [1, 0]]])  # K=1, L=6, E=2
    number = torch.arange(12.0).reshape(1, 6, 2) * mask
    trials = replace(collected(Drift()), x=number[..., None], act=number[..., None], rew=number, mask=mask,
                     log_prob=number, value=number)  # fmt: skip
    data = sequences(trials)
    assert data.mask.tolist() == [[1, 1], [1, 1], [1, 0], [1, 0]]
    assert data.rew.tolist() == [[0, 1], [2, 9], [8, 0], [10, 0]]
    assert torch.equal(data.x[..., 0], data.rew) and torch.equal(data.act[..., 0], data.rew)
    assert data[torch.tensor([1])].rew.tolist() == [[1], [9], [0], [0]]


@pytest.mark.parametrize("name", ["drift", "bandit"])
def test_the_fast_form_gives_what_acting_gave(name):
    family = FAMILIES[name]()
    policy, params, _ = setup(family)
    data: Sequences = sequences(collected(family))
    dist, value = policy.heads(params, policy.unroll(params, data.x, torch.zeros(K * E, policy.hidden)))
    on = data.mask > 0
    assert torch.allclose(distributions.log_prob(dist, data.act)[on], data.log_prob[on], atol=1e-5)
    assert torch.allclose(value[on], data.value[on], atol=1e-5)
    lengths = data.mask.sum(0).long()
    assert data.mask.shape[0] == lengths.max()


def test_a_plain_environment_plays_the_same_trials():
    family = Drift()
    policy, params, tasks = setup(family)
    one = {key: value[:1] for key, value in tasks.items()}
    found = collect_trials(Setup(None, Sampler(family), policy, SEED), one, E, N, params, ITERATION)
    env = EnvSampler(family.make(task_at(tasks, 0)), family.horizon)
    plain = collect_trials(Setup(None, env, policy, SEED), {"env": np.zeros(1)}, E, N, params, ITERATION)
    assert torch.equal(plain.mask, found.mask) and torch.allclose(plain.x, found.x, atol=1e-5)
    assert torch.allclose(plain.memory.hidden, found.memory.hidden, atol=1e-5)


def test_successes_are_counted_episode_by_episode():
    found = collected(Wins(), trials=20)
    by_hand = [[[k > 0 and bool(found.act[k, n * 6 + k - 1, e, 0] > 0) for e in range(20)] for n in range(N)]
               for k in range(K)]  # fmt: skip
    assert found.success.tolist() == by_hand
    assert np.allclose(found.success_rates, np.mean(by_hand, -1))
    assert 0 < found.success_rates[1:].mean() < 1 and not found.success_rates[0].any()
    assert collected(Stops()).success_rates is None


STATS = {"count": torch.tensor(4.0, dtype=torch.float64), "mean": torch.tensor([0.1, -0.2], dtype=torch.float64),
         "m2": torch.tensor([16.0, 1.0], dtype=torch.float64)}  # fmt: skip


def test_the_last_observation_is_the_one_that_the_policy_saw():
    found = collected(Drift(), shape={"last_obs": True}, obs_stats=STATS)
    raw, size = found.raw_obs, found.obs_dim
    assert not torch.allclose(raw, found.x[..., :size], atol=1e-2)  # the control: normalising changes them
    data = sequences(found)
    now, last, both = data.x[..., :size], data.x[..., -size:], data.mask[1:] * data.mask[:-1] > 0
    assert torch.equal(last[1:][both], now[:-1][both]) and not last[0].any()


def test_observations_are_normalised_by_given_statistics():
    found = collected(Drift(), obs_stats=STATS)
    on = found.mask > 0
    expected = (found.raw_obs - torch.tensor([0.1, -0.2])) / torch.tensor([2.0, 0.5])
    assert torch.allclose(found.x[..., :2][on], expected[on], atol=1e-5)
    assert not torch.allclose(found.raw_obs, found.x[..., :2])
    assert torch.equal(found.rollouts[1].raw_obs, found.raw_obs[:, 8:16])


class Broken(Stops):
    """Its reward is no number in the second step of one task's episodes."""

    def reward(self, task: Task, t: int) -> float:
        return float("nan") if t == 2 and int(task["steps"]) == 3 else 1.0


def test_a_reward_that_is_no_number_is_found():
    with pytest.raises(ValueError, match=r"StopsProbe-v0 returned the reward nan in step 1 of episode 0 of trial 0 "
                       r"of task 2 = \{'steps': np.int64\(3\)\}"):  # fmt: skip
        collected(Broken())


class Boundless(Stops):
    """Its observations are infinite in the second step of an episode."""

    def observation(self, task: Task, t: int) -> float:
        return np.inf if t == 1 else t


@pytest.mark.parametrize("stats", [None, STATS], ids=["raw", "normalised"])
def test_an_infinite_observation_is_not_cut_off_but_refused(stats):
    # Normalised ones are cut off at 10, an infinite one too.
    with pytest.raises(ValueError, match=r"StopsProbe-v0 returned the observation \[inf.* in step 0 of episode 0"):
        collected(Boundless(), obs_stats=stats)


class Seeds(gym.Env):
    """Notes the seeds that it is reset with."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.seeds: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.seeds.append(int(seed or 0))
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_an_environment_is_reset_once_for_every_episode():
    env = Seeds()
    policy = GRUPolicy(spaces_of(env), 3)
    params = policy.init(torch.Generator())
    found = collect_trials(Setup(None, EnvSampler(env, 5), policy, 0), {"env": np.zeros(1)}, 2, 3, params, 0)
    assert env.seeds == trial_seeds(0, 0, 3, 1, 2)[:, 0].T.flatten().tolist()
    assert found.mask.shape == (1, 15, 2) and found.steps == 30


def test_which_episodes_are_logged():
    assert shown_episodes(1) == [0] and shown_episodes(10) == list(range(10))
    assert shown_episodes(11) == [0, 1, 2, 5, 10]
    assert shown_episodes(100) == [0, 1, 2, 5, 10, 20, 50, 99]
    assert shown_episodes(501) == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]
