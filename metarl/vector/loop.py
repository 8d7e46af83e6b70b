"""Any Gymnasium environments, stepped one by one: the slow, obvious reference for every faster backend."""

from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from metarl.tasks import TaskFamily, Tasks
from metarl.vector.contract import CPU, Assignment, read_reset, seed_list, set_spaces
from metarl.vector.transition import EpisodeError, Reader, check_env, reraise
from metarl.vector.worker import stack_observations


class LoopVectorEnv(VectorEnv):
    """K*E environments `family.make(task)`, by the contract of `metarl.vector.contract.TaskVectorEnv`.

    A reset with `tasks` builds environments; without them, or with the same dict object as the reset before, existing
    ones are reset. The environment of an episode that has ended is not stepped again. Every episode is truncated after
    `family.horizon` steps; one that terminates at that step counts as terminated only.

    Raises:
        TransitionError: in reset or step, if an environment returns something invalid (a ValueError).
        EpisodeError: if an environment raises. Both name task, episode and step.
    """

    device, tensors = CPU, False

    def __init__(self, family: TaskFamily, n_tasks: int, episodes: int):
        self.family, self.n_tasks, self.episodes, self.name = family, n_tasks, episodes, family.id
        set_spaces(self, family, n_tasks * episodes)
        self.envs: list[gym.Env] = []
        self._reader, self._tasks = Reader(family.id, family.observation_space), Assignment(n_tasks, episodes)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        tasks, mask = read_reset(options, self.n_tasks, self.num_envs, begun=bool(self.envs))
        seeds = seed_list(seed, self.num_envs)
        if mask is not None:
            return self._reset_some(mask, seeds, tasks)
        if tasks is not None and not (self.envs and self._tasks.keeps(tasks)):
            self._close_envs()
            self._tasks.give(tasks)
            self.envs = [self._made(i) for i in range(self.num_envs)]
        first = [self._first(i, seeds[i]) for i in range(self.num_envs)]
        self._obs = stack_observations(self.single_observation_space, first)
        self._terminated = np.zeros(self.num_envs, bool)
        self._truncated = np.zeros(self.num_envs, bool)
        self._elapsed = np.zeros(self.num_envs, int)
        return self._obs.copy(), {}

    def _reset_some(
        self, mask: np.ndarray, seeds: list[int | None], tasks: Tasks | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if tasks is not None:
            self._tasks.give(tasks, mask)
        for i in np.flatnonzero(mask).tolist():
            if tasks is not None:
                self._close(i)
                self.envs[i] = self._made(i)
            self._obs[i] = self._first(i, seeds[i])
        self._terminated[mask] = self._truncated[mask] = False
        self._elapsed[mask] = 0
        return self._obs.copy(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward = np.zeros(self.num_envs, np.float64)
        self._elapsed += 1
        success: dict[int, bool] = {}
        read = self._reader.step
        for i, env in enumerate(self.envs):
            if self._terminated[i] or self._truncated[i]:
                continue
            try:
                self._obs[i], reward[i], self._terminated[i], truncated, flag = read(env.step(actions[i]))
            except Exception as error:
                self._fail(error, f"step {self._elapsed[i] - 1}", i)
            if flag is not None:
                success[i] = flag
            cut_off = truncated or self._elapsed[i] >= self.family.horizon
            self._truncated[i] = cut_off and not self._terminated[i]
        return self._obs.copy(), reward, self._terminated.copy(), self._truncated.copy(), self._infos(success)

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        return self._tasks.describe(k, e, n)

    def _made(self, i: int) -> gym.Env:
        try:
            return check_env(self.family.id, self.family.make(self._tasks.task(i)))
        except Exception as error:
            self._fail(error, "make", i, task_refused=True)

    def _first(self, i: int, seed: int | None) -> np.ndarray:
        try:
            return self._reader.first(self.envs[i].reset(seed=seed))
        except Exception as error:
            self._fail(error, "reset", i)

    def _fail(self, error: Exception, doing: str, i: int, task_refused: bool = False) -> NoReturn:
        self._tasks.forget()
        reraise(error, self.name, f"{doing} of {self.describe(*divmod(i, self.episodes))}", task_refused)

    def _close(self, i: int) -> None:
        try:
            self.envs[i].close()
        except Exception as error:
            reraise(error, self.name, f"close of {self.describe(*divmod(i, self.episodes))}")

    def _infos(self, success: dict[int, bool]) -> dict[str, Any]:
        return {"success": np.array([success.get(i, False) for i in range(self.num_envs)])} if success else {}

    def _close_envs(self) -> None:
        failed: list[Exception] = []
        for i in range(len(self.envs)):
            try:
                self._close(i)
            except EpisodeError as error:
                failed.append(error)
        self.envs = []
        self._tasks.forget()
        if failed:
            raise failed[0]

    def close_extras(self, **kwargs: Any) -> None:
        self._close_envs()
