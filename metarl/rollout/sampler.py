"""Drawing tasks and rolling policies out in them, in environments that are kept for the whole run."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl import random
from metarl.params import Params
from metarl.policies.base import Policy
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import Rollout, collect, side_by_side
from metarl.splits import sample_split
from metarl.tasks import TaskFamily, Tasks, num_tasks
from metarl.vector.backends import check_workers, make_vector
from metarl.vector.contract import TaskVectorEnv
from metarl.vector.single import SingleEnv


class Sampler:
    """Draws a family's tasks and rolls policies out in them; keeps its vector environments for the whole run.

    Args:
        workers: as for `metarl.make_vector`: None chooses, 0 steps environments one by one, n uses n processes.
    """

    def __init__(self, family: TaskFamily, device: torch.device | str = "cpu", workers: int | None = None):
        spaces_of(family)
        check_workers(workers)
        self.family, self.device, self.workers = family, torch.device(device), workers
        self.reports_success = False
        """Whether an environment has ever reported success or failure; if so, an episode without a report is a
        failure."""
        self._envs: dict[tuple[int, int], TaskVectorEnv] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: environments and their processes are not copied; `collect` creates new ones."""
        return vars(self) | {"_envs": {}}

    def tasks(self, n: int, seed: int, iteration: int, split: str = "train") -> Tasks:
        """`n` tasks for meta-iteration `iteration`, determined by `seed`, from any split of the family."""
        return sample_split(self.family, n, np.random.default_rng([seed, iteration]), split)

    def collect(
        self,
        tasks: Tasks,
        episodes: int,
        policy: Policy,
        params: Params,
        seed: int,
        iteration: int,
        stage: int,
        obs_stats: ObsStats | None = None,
    ) -> Rollout:
        """Roll out `episodes` episodes per task with `params` [K, ...]; see `collect`."""
        n = num_tasks(tasks)
        seeds = random.episode_seeds(seed, iteration, stage, n, episodes)
        env = self.vector_env(n, episodes)
        rollout = collect(env, tasks, self.family.horizon, policy, params, seeds, obs_stats)
        return replace(rollout, success=noted(self, rollout.success, (n, episodes))).to(self.device)

    def vector_env(self, n_tasks: int, episodes: int) -> TaskVectorEnv:
        """The K*E environments for rollouts of this size, created once and kept."""
        key = (n_tasks, episodes)
        if key not in self._envs:
            self._envs[key] = make_vector(self.family, n_tasks, episodes, self.device, self.workers)
        return self._envs[key]

    def close(self) -> None:
        """Close the environments and end their processes; `collect` creates new ones."""
        for env in self._envs.values():
            env.close()
        self._envs = {}


class EnvSampler:
    """Rolls a policy out in a single `gymnasium.Env`, one episode after another, as if it were a family of one task."""

    def __init__(self, env: gym.Env, horizon: int, device: torch.device | str = "cpu", reports_success: bool = False):
        self.env, self.horizon, self.device = env, horizon, torch.device(device)
        self.reports_success = reports_success
        """See `Sampler`."""

    def collect(
        self,
        tasks: Tasks,
        episodes: int,
        policy: Policy,
        params: Params,
        seed: int,
        iteration: int,
        stage: int,
        obs_stats: ObsStats | None = None,
    ) -> Rollout:
        """Like `Sampler.collect`, for one task."""
        seeds = random.episode_seeds(seed, iteration, stage, 1, episodes)
        single = SingleEnv(self.env, self.horizon)
        parts = [
            collect(single, tasks, self.horizon, policy, params, seeds[:, e : e + 1], obs_stats)
            for e in range(episodes)
        ]
        rollout = side_by_side(parts)
        return replace(rollout, success=noted(self, rollout.success, (1, episodes))).to(self.device)


def noted(sampler: Sampler | EnvSampler, success: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A rollout's `success`; all False, of this shape, if it has none but an earlier rollout of the sampler had."""
    sampler.reports_success |= success is not None
    return torch.zeros(shape, dtype=torch.bool) if success is None and sampler.reports_success else success
