"""Any Gymnasium environments, stepped one by one: the slow, obvious twin of every faster backend."""

from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from metarl.tasks import Task, TaskFamily, Tasks, num_tasks, task_at
from metarl.vector.contract import LastTasks, reset_mask
from metarl.vector.transition import Reader, reraise
from metarl.vector.worker import stack_observations


class LoopVectorEnv(VectorEnv):
    """K*E environments `family.make(task)`, task-major: environment k*E + e is episode e of task k.

    `reset(seed=..., options={"tasks": tasks})` builds the environments of new tasks; without `tasks`, or with the very
    dict of the reset before, the old ones are reset. An episode that ended stays ended: its environment is not stepped
    again, repeats its last observation and earns nothing. Every episode is truncated after `family.horizon` steps; one
    that terminates there counts as terminated only. Where environments report success (see `metarl.vector.success`),
    `step` returns `infos["success"]` [N] of bools. `options["reset_mask"]`, bool [K*E], resets some of the environments
    (and gives them new tasks if there are any); the others go on as if nothing had happened.

    Raises:
        TransitionError: in reset or step, when an environment returns what it should not (a ValueError).
        EpisodeError: when an environment raises. Both name task, episode and step.
    """

    def __init__(self, family: TaskFamily, n_tasks: int, episodes: int):
        self.family, self.n_tasks, self.episodes = family, n_tasks, episodes
        self.num_envs = n_tasks * episodes
        self.single_observation_space, self.single_action_space = family.observation_space, family.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.envs: list[gym.Env] = []
        self._reader, self._last = Reader(family.id, family.observation_space), LastTasks()
        self._task: list[Task] = [{}] * self.num_envs  # of every environment

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        tasks: Tasks | None = (options or {}).get("tasks")
        mask = reset_mask(options, self.num_envs)
        if tasks is not None and num_tasks(tasks) != self.n_tasks:
            raise ValueError(f"this vector environment runs {self.n_tasks} tasks, got {num_tasks(tasks)}")
        seeds = seed_list(seed, self.num_envs)
        if mask is not None:
            return self._reset_some(mask, seeds, tasks)
        if tasks is not None and not self._last.are(tasks):
            self._close_envs()
            self.envs = [self._made(tasks, i) for i in range(self.num_envs)]
            self._last.keep(tasks)
        if not self.envs:
            raise ValueError('the first reset needs options={"tasks": tasks}')
        first = [self._first(i, seeds[i]) for i in range(self.num_envs)]
        self._obs = stack_observations(self.single_observation_space, first)
        self._terminated = np.zeros(self.num_envs, bool)
        self._truncated = np.zeros(self.num_envs, bool)
        self._elapsed = np.zeros(self.num_envs, int)
        return self._obs.copy(), {}

    def _reset_some(
        self, mask: np.ndarray, seeds: list[int | None], tasks: Tasks | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if not self.envs:
            raise ValueError("the first reset is one of all environments: leave reset_mask out")
        for i in np.flatnonzero(mask).tolist():
            if tasks is not None:
                self.envs[i].close()
                self._last.forget()
                self.envs[i] = self._made(tasks, i)
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

    def _made(self, tasks: Tasks, i: int) -> gym.Env:
        self._task[i] = task_at(tasks, i // self.episodes)
        try:
            return self.family.make(self._task[i])
        except Exception as error:
            self._fail(error, "make", i, task_refused=True)

    def _first(self, i: int, seed: int | None) -> np.ndarray:
        try:
            return self._reader.first(self.envs[i].reset(seed=seed))
        except Exception as error:
            self._fail(error, "reset", i)

    def _fail(self, error: Exception, doing: str, i: int, task_refused: bool = False) -> NoReturn:
        self._last.forget()
        k, e = divmod(i, self.episodes)
        reraise(error, self.family.id, f"{doing} of episode {e} of task {k} = {self._task[i]}", task_refused)

    def _infos(self, success: dict[int, bool]) -> dict[str, Any]:
        return {"success": np.array([success.get(i, False) for i in range(self.num_envs)])} if success else {}

    def _close_envs(self) -> None:
        for env in self.envs:
            env.close()
        self.envs = []
        self._last.forget()

    def close_extras(self, **kwargs: Any) -> None:
        self._close_envs()


def seed_list(seed: Any, n: int) -> list[int | None]:
    """Gymnasium's convention: None, one seed (environment i gets seed + i), or one per environment."""
    if seed is None:
        return [None] * n
    if isinstance(seed, int):
        return [seed + i for i in range(n)]
    seeds = [int(s) for s in np.asarray(seed).reshape(-1)]
    if len(seeds) != n:
        raise ValueError(f"expected one seed for each of {n} environments, got {len(seeds)}")
    return list(seeds)
