"""The contract of vector environments: what rollouts require of them, and what a reset has to check.

Every backend uses the functions here, so that all of them accept, refuse and report the same.
"""

import numbers
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from metarl.tasks import Task, Tasks, num_tasks, task_at

CPU = torch.device("cpu")


class TaskVectorEnv(Protocol):
    """K*E environments as one `gymnasium.vector.VectorEnv`: environment k*E + e runs episode e of task k.

    - An episode that ended stays ended: its environment repeats its last observation and earns nothing. It counts as
      terminated or as truncated, never as both.
    - A `step` in which an environment reports success returns `infos["success"]`, [N] of bools.
    - Observations, rewards and flags that were returned are not changed by later calls.
    """

    @property
    def num_envs(self) -> int:
        """N = K*E."""
        ...

    @property
    def name(self) -> str:
        """The name of the environments in error messages: the family's id."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of observations and rewards."""
        ...

    @property
    def tensors(self) -> bool:
        """Whether observations and actions are tensors on `device`; if not, they are NumPy arrays."""
        ...

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The first observations of new episodes, [N, ...].

        Args:
            seed: None, one seed (environment i gets seed + i), or one for each environment.
            options: `tasks` (every value [K, ...]), which the first reset needs; later ones without it keep the tasks.
                `reset_mask` (bool [N]): which environments to reset; the others continue unaffected.

        Raises:
            ValueError: the wrong number of tasks or seeds, a mask of the wrong shape or type, or a partial first reset.
        """
        ...

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Observations [N, ...]; rewards, terminated and truncated [N]; infos."""
        ...

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        """Task and episode for an error message, such as "episode 1 of task 0 = {...}".

        Args:
            n: the number of the episode within trial e, if several episodes share one memory.
        """
        ...

    def close(self) -> None:
        """Close the environments and end their processes."""
        ...


def set_spaces(env: VectorEnv, family: Any, num_envs: int) -> None:
    """Set the attributes that Gymnasium requires of a vector environment on `env`."""
    env.num_envs = num_envs
    env.single_observation_space, env.single_action_space = family.observation_space, family.action_space
    env.observation_space = batch_space(family.observation_space, num_envs)
    env.action_space = batch_space(family.action_space, num_envs)
    env.metadata = {"autoreset_mode": AutoresetMode.DISABLED}


# ---------------------------------------------------------------------------------------------------------------------
# Resets


class Reset(NamedTuple):
    """The parsed options of a reset."""

    tasks: Tasks | None  # None: the environments keep theirs
    mask: np.ndarray | None  # bool [N]; None: reset all


def read_reset(options: dict[str, Any] | None, n_tasks: int, num_envs: int, begun: bool) -> Reset:
    """The checked `options` of a reset.

    Args:
        begun: whether all environments have been reset before.

    Raises:
        ValueError: the wrong number of tasks, an invalid mask, or a first reset that is partial or without tasks.
    """
    tasks: Tasks | None = (options or {}).get("tasks")
    mask = reset_mask(options, num_envs)
    if tasks is not None and num_tasks(tasks) != n_tasks:
        raise ValueError(f"this vector environment runs {n_tasks} tasks, got {num_tasks(tasks)}")
    if not begun and mask is not None:
        raise ValueError("the first reset, or one after an error, is one of all environments: leave reset_mask out")
    if not begun and tasks is None:
        raise ValueError('the first reset needs options={"tasks": tasks}, and so does one after an error')
    return Reset(tasks, mask)


def reset_mask(options: dict[str, Any] | None, num_envs: int) -> np.ndarray | None:
    """Which environments are to be reset, bool [num_envs]; None means all.

    Raises:
        ValueError: the mask has the wrong shape or type, or selects no environment.
    """
    mask = (options or {}).get("reset_mask")
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != (num_envs,) or mask.dtype != np.bool_:
        raise ValueError(f"reset_mask must be bool [{num_envs}], got {mask.dtype} {list(mask.shape)}")
    if not mask.any():
        raise ValueError("reset_mask names no environment; leave the reset out, or reset_mask to reset all")
    return None if mask.all() else mask


def seed_list(seed: Any, n: int) -> list[int | None]:
    """Gymnasium's convention: None, one seed (environment i gets seed + i), or one per environment."""
    if seed is None:
        return [None] * n
    if isinstance(seed, numbers.Integral):
        return [int(seed) + i for i in range(n)]
    seeds = [int(s) for s in np.asarray(seed).reshape(-1)]
    if len(seeds) != n:
        raise ValueError(f"expected one seed for each of {n} environments, got {len(seeds)}")
    return list(seeds)


def drawn_seeds(env: VectorEnv, seed: Any) -> list[int]:
    """`seed_list` for environments without their own generators: None draws the seeds from `env.np_random`, and a
    single seed reseeds that generator."""
    if seed is None:
        return [int(s) for s in env.np_random.integers(2**62, size=env.num_envs)]
    if isinstance(seed, numbers.Integral):
        VectorEnv.reset(env, seed=int(seed))
    return [s for s in seed_list(seed, env.num_envs) if s is not None]


class Assignment:
    """Which task every environment has, and whether a reset has to build environments.

    The rollouts of one adaptation share one dict of tasks, and a reset with the same dict as the reset before keeps the
    environments. It must be the same object, not merely an equal one, so that state left behind by an incomplete reset
    stays within one adaptation, and results do not depend on what ran before.
    """

    def __init__(self, n_tasks: int, episodes: int):
        self._episodes = episodes
        self._given: list[Tasks] = [{}] * (n_tasks * episodes)  # of every environment: the tasks that its own is one of
        self._last: Tasks | None = None

    def give(self, tasks: Tasks, mask: np.ndarray | None = None) -> None:
        """Assign the entries of `tasks` to the environments in `mask` [N], or to all."""
        values = {name: np.array(value) for name, value in tasks.items()}
        if mask is None:
            self._given = [values] * len(self._given)
            self._last = tasks
        else:
            self._given = [values if new else old for old, new in zip(self._given, mask, strict=True)]
            self.forget()

    def forget(self) -> None:
        """Make the next reset with tasks build environments, whatever its tasks are."""
        self._last = None

    def keeps(self, tasks: Tasks) -> bool:
        """Whether `tasks` is the dict that was given to all environments last, with the values that it had then."""
        if tasks is not self._last:
            return False
        values = self._given[0]
        return tasks.keys() == values.keys() and all(np.array_equal(tasks[name], x) for name, x in values.items())

    def task(self, i: int) -> Task:
        """The task of environment i; empty before the first reset."""
        return task_at(self._given[i], i // self._episodes)

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        """See `TaskVectorEnv.describe`."""
        episode = f"episode {e}" if n is None else f"episode {n} of trial {e}"
        return f"{episode} of task {k} = {self.task(k * self._episodes + e)}"


# ---------------------------------------------------------------------------------------------------------------------
# Vector environments from outside


def fulfilled(env: Any, family: Any, n_tasks: int, episodes: int) -> TaskVectorEnv:
    """`env`, returned by a family's own `make_vector`, with the members of the contract that it lacks.

    If it has a `device` but no `tensors`, it returns tensors on that device; if it has neither, it returns arrays.
    """
    if all(hasattr(env, member) for member in ("name", "device", "tensors", "describe")):
        return env
    return Completed(env, family, n_tasks, episodes)


class Completed(VectorEnv):
    """See `fulfilled`. All other attributes are those of `env`."""

    def __init__(self, env: Any, family: Any, n_tasks: int, episodes: int):
        self.env, self.name = env, family.id
        set_spaces(self, family, n_tasks * episodes)
        self.num_envs = getattr(env, "num_envs", self.num_envs)
        self.tensors: bool = getattr(env, "tensors", hasattr(env, "device"))
        self.device = torch.device(getattr(env, "device", CPU))
        self._tasks = Assignment(n_tasks, episodes)

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # before `__init__`, as in a copy
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        tasks = (options or {}).get("tasks")
        out = self.env.reset(seed=seed, options=options)
        if tasks is not None:
            self._tasks.give(tasks, (options or {}).get("reset_mask"))
        return out

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self.env.step(actions)

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        return self._tasks.describe(k, e, n)

    def close_extras(self, **kwargs: Any) -> None:
        self.env.close(**kwargs)
