"""Environment steps, counted where they are taken: by the environments themselves.

A contender gets a family whose vector environments take every step off a `Meter`; one that asks for more than there is
left is stopped by `BudgetSpent`, and the meter remembers that it asked.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from metarl.tasks import Task, TaskFamily
from metarl.vector.backends import make_vector
from metarl.vector.contract import TaskVectorEnv, reset_mask


class BudgetSpent(Exception):
    """A contender asked for more environment steps than its budget has left."""


class Meter:
    """Counts environment steps up to a limit (None: no limit)."""

    def __init__(self, limit: int | None):
        self.limit, self.spent, self.exceeded = limit, 0, False

    @property
    def left(self) -> float:
        """Steps that may still be taken."""
        return float("inf") if self.limit is None else self.limit - self.spent

    def take(self, steps: int) -> None:
        """Count `steps`, before they are taken.

        Raises:
            BudgetSpent: there are not that many left; none is counted then.
        """
        if steps > self.left:
            self.exceeded = True
            raise BudgetSpent(f"{steps} environment steps were asked for, and {self.left:.0f} of {self.limit} are left")
        self.spent += steps

    @contextlib.contextmanager
    def planned(self) -> Iterator[None]:
        """Use up what there is: `BudgetSpent` ends the block, and does not count as asking for too much."""
        before = self.exceeded
        try:
            yield
        except BudgetSpent:
            self.exceeded = before


class MeteredFamily:
    """`family` with its steps counted by `meter`. Everything else is the family's own.

    Single environments are counted in this process; vector environments are always those of `metarl.make_vector`,
    so that steps in worker processes count too.
    """

    def __init__(self, family: TaskFamily, meter: Meter, workers: int | None = None):
        self.family, self.meter, self._workers = family, meter, workers

    def __getattr__(self, name: str) -> Any:
        if name == "family":  # before `__init__`, as in a copy
            raise AttributeError(name)
        return getattr(self.family, name)

    def __repr__(self) -> str:
        return f"{self.family!r}, metered"

    def make(self, task: Task, **kwargs: Any) -> Any:
        """One environment, whose steps are counted."""
        return _metered(self.family.make(task, **kwargs), self.meter)

    def make_vector(self, n_tasks: int, episodes: int, device: torch.device | str = "cpu") -> "MeteredVectorEnv":
        """K*E environments, whose steps are counted."""
        return MeteredVectorEnv(make_vector(self.family, n_tasks, episodes, device, self._workers), self.meter)


def _metered(env: Any, meter: Meter) -> Any:
    import gymnasium as gym

    class Metered(gym.Wrapper):
        def step(self, action: Any) -> Any:
            meter.take(1)
            return self.env.step(action)

    return Metered(env)


class MeteredVectorEnv:
    """A vector environment whose steps count: in every call of `step`, those of the episodes that have not ended."""

    def __init__(self, env: TaskVectorEnv, meter: Meter):
        self.env, self.meter = env, meter
        self._alive = np.zeros(env.num_envs, dtype=bool)

    def __getattr__(self, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        out = self.env.reset(seed=seed, options=options)
        mask = reset_mask(options, self.env.num_envs)
        self._alive = np.ones(self.env.num_envs, dtype=bool) if mask is None else self._alive | mask
        return out

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.meter.take(int(self._alive.sum()))
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        self._alive &= ~(_flags(terminated) | _flags(truncated))
        return obs, reward, terminated, truncated, infos


def _flags(x: Any) -> np.ndarray:
    x = x.cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    return x.astype(bool).reshape(-1)
