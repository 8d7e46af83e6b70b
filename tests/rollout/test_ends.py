"""How episodes end: terminated, cut off by the environment, or by the horizon; and what their last step led to."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from probes import gru_params, random_params

import metarl
from metarl import random
from metarl.algorithms.maml_trpo import Config
from metarl.policies import normalize
from metarl.policies.gru import GRUPolicy
from metarl.policies.spaces import spaces_of
from metarl.recurrent.trials import Trials, collect_trials, run, trial_seeds
from metarl.rollout.rollout import Rollout, collect, side_by_side
from metarl.rollout.sampler import EnvSampler
from metarl.rollout.setup import Setup
from metarl.tasks import Tasks
from metarl.vector.automatic import AutomaticVectorEnv
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv

HORIZON, K, E, N = 5, 4, 2, 3
LENGTHS = [2, 3, 5, 5]  # of the tasks' episodes
TERMINATED = [True, False, True, False]


class Ends:
    """Task 0 terminates after two steps, task 1 is cut off by its environment after three, task 2 terminates in the
    step of the horizon, task 3 never does. The observation is (step, task), the reward 1."""

    id, horizon = "EndsProbe-v0", HORIZON
    observation_space, action_space = Box(-np.inf, np.inf, (2,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    task_space = Dict({"kind": Discrete(K)})

    def sample(self, n: int, rng: Any, split: str = "train") -> Tasks:
        return {"kind": np.arange(n) % K}

    def make(self, task: Any) -> gym.Env:
        return EndsEnv(int(task["kind"]))


class EndsEnv(gym.Env):
    observation_space, action_space = Ends.observation_space, Ends.action_space

    def __init__(self, kind: int):
        self.kind = kind

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = 0
        return np.array([0, self.kind], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == LENGTHS[self.kind] and self.kind < 3
        ended = over and TERMINATED[self.kind]
        return np.array([self.t, self.kind], np.float32), 1.0, ended, over and not ended, {}


class Both(LoopVectorEnv):
    """Says that an episode was cut off whenever it terminates, as a third party's may."""

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, infos = super().step(actions)
        return obs, reward, terminated, truncated | terminated, infos


class InPlace(LoopVectorEnv):
    """Writes every observation into the same memory, and nonsense after an episode's end."""

    def reset(self, **more: Any) -> Any:
        obs, infos = super().reset(**more)
        self.memory = obs
        return self.memory, infos

    def step(self, actions: Any) -> Any:
        over = self._terminated | self._truncated
        obs, *rest = super().step(actions)
        self.memory[:] = np.where(over[:, None], 1e6, obs)
        return self.memory, *rest


class BatchedEnds(metarl.TensorFamily):
    """The same as torch functions, but that task 1 goes on to the horizon: they have no cutting off of their own."""

    id, horizon = "BatchedEnds-v0", HORIZON
    observation_space, action_space, task_space = Ends.observation_space, Ends.action_space, Ends.task_space

    def sample(self, n: int, rng: Any, split: str = "train") -> Tasks:
        return {"kind": np.arange(n) % K}

    def initial(self, task: Any, draws: torch.Tensor) -> Any:
        kind = task["kind"].float()
        return {"x": torch.stack([torch.zeros_like(kind), kind], -1)}

    def observe(self, state: Any, task: Any) -> torch.Tensor:
        return state["x"]

    def step(self, state: Any, action: torch.Tensor, task: Any, draws: torch.Tensor) -> Any:
        x = state["x"] + torch.tensor([1.0, 0.0])
        over = (task["kind"] == 0) & (x[..., 0] >= 2) | (task["kind"] == 2) & (x[..., 0] >= HORIZON)
        return {"x": x}, torch.ones_like(x[..., 0]), over


BACKENDS: dict[str, Any] = {
    "loop": lambda: LoopVectorEnv(Ends(), K, E),
    "process": lambda: ProcessVectorEnv(Ends(), K, E, 3),
    "automatic": lambda: AutomaticVectorEnv(Ends(), K, E),
    "in place": lambda: InPlace(Ends(), K, E),
    "tensor": lambda: BatchedEnds().make_vector(K, E),
}
backends = pytest.mark.parametrize("backend", list(BACKENDS))
STATS = {"count": torch.tensor(4.0, dtype=torch.float64), "mean": torch.tensor([1.0, 2.0], dtype=torch.float64),
         "m2": torch.tensor([16.0, 1.0], dtype=torch.float64)}  # fmt: skip


def rolled(backend: str = "loop", horizon: int = HORIZON, stats: Any = None) -> Rollout:
    env, policy = BACKENDS[backend](), Config(hidden=(4,)).policy(spaces_of(Ends()))
    try:
        return collect(env, Ends().sample(K, None), horizon, policy, random_params(policy, K),
                       random.episode_seeds(0, 0, 0, K, E), stats)  # fmt: skip
    finally:
        env.close()


def gru() -> tuple[GRUPolicy, dict[str, torch.Tensor]]:
    policy = GRUPolicy(spaces_of(Ends()), 4)
    return policy, gru_params(policy, dtype=torch.float32)


def trials(backend: str = "loop", stats: Any = None) -> Trials:
    env = BACKENDS[backend]()
    try:
        return run(env, Ends().sample(K, None), HORIZON, *gru(), trial_seeds(0, 0, N, K, E), stats)
    finally:
        env.close()


def by_hand(lengths: list[int], terminated: list[bool], T: int = HORIZON) -> tuple[torch.Tensor, torch.Tensor]:
    """Both flags [K, T, E]."""
    at = torch.tensor([[t == length - 1 for t in range(T)] for length in lengths])[:, :, None].expand(-1, -1, E)
    ended = torch.tensor(terminated)[:, None, None]
    return at & ended, at & ~ended


def expected(backend: str) -> tuple[list[int], list[bool]]:
    return ([2, 5, 5, 5], TERMINATED) if backend == "tensor" else (LENGTHS, TERMINATED)


@backends
def test_every_episode_has_one_flag_in_its_last_step(backend):
    r, (lengths, terminated) = rolled(backend), expected(backend)
    want = by_hand(lengths, terminated)
    assert r.terminated.dtype == r.truncated.dtype == torch.bool
    assert torch.equal(r.terminated, want[0]) and torch.equal(r.truncated, want[1])
    assert r.mask.sum(1).tolist() == [[length] * E for length in lengths]


@backends
def test_the_last_observation_is_what_the_last_step_led_to(backend):
    r, (lengths, _) = rolled(backend), expected(backend)
    assert r.last_obs.tolist() == [[[length, k]] * E for k, length in enumerate(lengths)]
    assert r.last_raw is None and r.raw_last_obs is r.last_obs
    # And it is no other than the present one of each step's successor.
    assert r.obs[3, 1:].tolist() == [[[t, 3]] * E for t in range(1, HORIZON)]


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_a_horizon_below_the_families_cuts_off_too(horizon):
    r = rolled(horizon=horizon)
    lengths = [min(length, horizon) for length in LENGTHS]
    want = by_hand(
        lengths, [own and length <= horizon for own, length in zip(TERMINATED, LENGTHS, strict=True)], horizon
    )
    assert torch.equal(r.terminated, want[0]) and torch.equal(r.truncated, want[1])
    assert r.last_obs[:, 0, 0].tolist() == lengths


def test_an_end_that_is_both_is_a_termination():
    family = Ends()
    policy = Config(hidden=(4,)).policy(spaces_of(family))
    args = family.sample(K, None), HORIZON, policy, random_params(policy, K), random.episode_seeds(0, 0, 0, K, E)
    r = collect(Both(family, K, E), *args)
    want = by_hand(LENGTHS, TERMINATED)
    assert torch.equal(r.terminated, want[0]) and torch.equal(r.truncated, want[1])


def test_normalised_it_is_as_the_policy_would_see_it():
    r, scale = rolled(stats=STATS), normalize.scaler(STATS)
    assert r.raw_last_obs.tolist() == [[[length, k]] * E for k, length in enumerate(LENGTHS)]
    assert torch.equal(r.last_obs, scale(r.raw_last_obs)) and not torch.equal(r.last_obs, r.raw_last_obs.float())
    t = trials(stats=STATS)
    assert torch.equal(t.last_obs, scale(t.last_raw))


def test_a_bootstrapped_return_by_hand():
    """What all of this is for: with discount 1 and the value 10 behind every cut, returns are length or length + 10."""
    r = rolled()
    value = torch.full((K, E), 10.0)
    assert (r.returns + value * r.truncated.any(1)).tolist() == [[2] * E, [13] * E, [5] * E, [15] * E]


@backends
def test_trials_keep_them_for_every_episode(backend):
    t, (lengths, terminated) = trials(backend), expected(backend)
    want = by_hand(lengths, terminated)
    assert torch.equal(t.terminated, torch.cat([want[0]] * N, 1))
    assert torch.equal(t.truncated, torch.cat([want[1]] * N, 1))
    assert t.last_obs.tolist() == [[[[length, k]] * E] * N for k, length in enumerate(lengths)]
    for part in t.rollouts:
        assert torch.equal(part.terminated, want[0]) and torch.equal(part.truncated, want[1])
        assert part.last_obs.tolist() == [[[length, k]] * E for k, length in enumerate(lengths)]


@pytest.mark.parametrize("stats", [None, STATS], ids=["raw", "normalised"])
@pytest.mark.parametrize("k", range(K))
def test_a_plain_environment_gives_the_same_as_its_task(k, stats):
    sampler, one = EnvSampler(EndsEnv(k), HORIZON), {"env": np.zeros(1)}
    policy = Config(hidden=(4,)).policy(spaces_of(Ends()))
    r = sampler.collect(one, E, policy, random_params(policy, 1), 0, 0, 0, stats)
    memory, params = gru()
    t = collect_trials(Setup(None, sampler, memory, 0), one, E, N, params, 0, stats)
    family = rolled(stats=stats)
    length = r.mask.shape[1]
    for name in ("terminated", "truncated"):
        assert torch.equal(getattr(r, name)[0], getattr(family, name)[k, :length])
        assert torch.equal(getattr(t, name)[0], torch.cat([getattr(family, name)[k, :length]] * N))
    for name in ("last_obs", "raw_last_obs"):
        assert torch.equal(getattr(r, name)[0], getattr(family, name)[k])
    assert torch.equal(t.last_obs[0], family.last_obs[k].expand(N, E, 2))


def test_chunks_copies_and_strides():
    r = rolled(stats=STATS)
    assert torch.equal(r[1:3].last_obs, r.last_obs[1:3]) and torch.equal(r[1:3].terminated, r.terminated[1:3])
    assert torch.equal(r.to("cpu").last_raw, r.last_raw)
    some = r.every(2)
    assert torch.equal(some.truncated, r.truncated[:, ::2]) and torch.equal(some.last_obs, r.last_obs)
    assert torch.equal(some.last_raw, r.last_raw)


def test_rollouts_side_by_side_are_those_of_all_their_episodes():
    r = rolled(stats=STATS)
    alone = []
    for e in range(E):
        cut = r._map(lambda x, e=e: x[:, :, e : e + 1] if x.shape[2] == E else x, kept=("last_obs", "last_raw"))  # type: ignore[misc]
        success = None if e else torch.ones(K, 1, dtype=torch.bool)
        last = {"last_obs": r.last_obs[:, e : e + 1], "last_raw": r.last_raw[:, e : e + 1]}
        alone.append(replace(cut, **last, success=success))
    found = side_by_side(alone)
    for name in ("obs", "act", "rew", "mask", "log_prob", "terminated", "truncated", "last_obs", "raw", "last_raw"):
        assert torch.equal(getattr(found, name), getattr(r, name)), name
    assert found.success.tolist() == [[True, False]] * K  # who reports nothing beside one that does has none


def test_a_recording_that_grew_keeps_the_last_observations():
    # More steps than there is room for at first: the last observation of a short episode lies in the old part.
    family: Any = Ends()
    family.horizon = 200
    policy = Config(hidden=(4,)).policy(spaces_of(family))
    tasks = {"kind": np.array([0, 3])}
    r = collect(LoopVectorEnv(family, 2, 1), tasks, 200, policy, random_params(policy, 2),
                random.episode_seeds(0, 0, 0, 2, 1))  # fmt: skip
    assert r.last_obs[:, 0].tolist() == [[2, 0], [200, 3]]
    assert r.terminated.sum((1, 2)).tolist() == [1, 0] and r.truncated.sum((1, 2)).tolist() == [0, 1]
    assert r.truncated[1, 199, 0]
