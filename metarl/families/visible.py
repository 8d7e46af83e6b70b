"""Families whose task is visible: its parameters are appended to every observation.

A policy trained on such a family does not have to infer the task. This is contextual reinforcement learning, and the
oracle to compare adaptation with:

    oracle = MetaLearner("maml_trpo", metarl.visible(family), inner_steps=0)
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl.policies.vectors import TaskVectors, _Part
from metarl.tasks import VISIBLE, FamilySpec, Task, TaskFamily, Tasks, check_is_family
from metarl.torch_defaults import torch_defaults
from metarl.vector.contract import TaskVectorEnv, fulfilled, set_spaces


@torch_defaults
def visible(family: TaskFamily) -> "VisibleFamily":
    """The same family with the task's parameters appended to the observation, which becomes one flat vector.

    A bounded number is scaled to [-1, 1], a number without both bounds is not scaled; a choice becomes a one-hot
    vector, and an image (uint8) is flattened and scaled to [0, 1]. The parameters follow in the order of `task_space`.
    The vector is float64 if the observations are (or are long integers), so that `normalize_obs` subtracts the mean
    before anything is rounded to float32.

    Raises:
        ValueError: the family is already visible, or its observations or parameters are neither numbers nor choices.
    """
    check_is_family(family)
    return VisibleFamily(family)


class VisibleFamily:
    """The family returned by `visible`."""

    hidden_task = False

    def __init__(self, family: TaskFamily):
        if isinstance(family, VisibleFamily):
            raise ValueError(f"the tasks of {family.id} are visible already")
        self.family = family
        self.id: str = f"{VISIBLE}:{family.id}"
        self.horizon: int = family.horizon
        self.task_space, self.action_space = family.task_space, family.action_space
        self._observation = _Part("observation", family.observation_space, scaled=False)
        self._tasks = TaskVectors(family.task_space)
        parts = [self._observation, *self._tasks.parts.values()]
        low, high = (np.concatenate([getattr(part, end) for part in parts]) for end in ("low", "high"))
        self.observation_space: gym.Space = Box(low, high, dtype=self._observation.dtype)
        self.shared_splits = getattr(family, "shared_splits", False)
        for name in ("splits", "task_limits"):
            if hasattr(family, name):
                setattr(self, name, getattr(family, name))
        made = getattr(family, "spec", None)
        self.spec = None
        if isinstance(made, FamilySpec):
            self.spec = FamilySpec(f"{VISIBLE}:{made.id}", made.kwargs, made.origin)

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        """The hidden family's tasks."""
        return self.family.sample(n, rng, split)

    def make(self, task: Task, **kwargs: Any) -> gym.Env:
        """The hidden family's environment of one task, with the task in its observation."""
        return VisibleEnv(
            self, self.family.make(task, **kwargs), self.describe({n: np.asarray(x)[None] for n, x in task.items()})[0]
        )

    def describe(self, tasks: Tasks) -> np.ndarray:
        """The numbers appended to observations: float32 [K, ...]."""
        return self._tasks.encode(tasks)

    def append(self, observations: Any, described: Any) -> Any:
        """Observations of N environments and the numbers to append, arrays or tensors -> [N, O] of the same kind."""
        flat = self._observation.encode(observations)
        if isinstance(flat, Tensor):
            return torch.cat([flat, described.to(flat.dtype)], -1)
        return np.concatenate([flat, described.astype(flat.dtype)], -1)

    def wrap(self, env: gym.Env) -> gym.Env:
        """Raises ValueError: only environments of this family know their task."""
        if not isinstance(env, VisibleEnv):
            raise ValueError(f"{self.id} shows the task to its policies, but a plain environment does not specify one: "
                             "adapt to a task of the family instead")  # fmt: skip
        return env

    @property
    def make_vector(self) -> Any:
        """Present if the hidden family has one; others use `make`."""
        own = self.family.make_vector  # type: ignore[attr-defined]

        def make(n_tasks: int, episodes: int, device: torch.device | str = "cpu", **kwargs: Any) -> VectorEnv:
            hidden = fulfilled(own(n_tasks, episodes, device, **kwargs), self.family, n_tasks, episodes)
            return VisibleVectorEnv(self, hidden)

        return make

    @property
    def draw(self) -> Any:
        """Present if the hidden family has one, which receives its own observations."""
        own = self.family.draw  # type: ignore[attr-defined]

        def draw(axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
            own(axes, task, [x[:, : self._observation.size] for x in observations])

        return draw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VisibleFamily) and self.family == other.family

    def __hash__(self) -> int:
        return hash((VISIBLE, self.family))

    def __repr__(self) -> str:
        return f"{VISIBLE}({self.family!r})"


class VisibleEnv(gym.Wrapper):
    """One environment, with the description of its task appended to its observations."""

    def __init__(self, family: VisibleFamily, env: gym.Env, described: np.ndarray):
        super().__init__(env)
        self._family, self._described = family, described[None]
        self.observation_space = family.observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._append(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._append(obs), reward, terminated, truncated, info

    def _append(self, obs: Any) -> np.ndarray:
        return self._family.append(np.asarray(obs)[None], self._described)[0]


class VisibleVectorEnv(VectorEnv):
    """A family's vector environment, with the tasks' descriptions appended to its observations (tensors or arrays)."""

    def __init__(self, family: VisibleFamily, env: TaskVectorEnv):
        self.family, self.env, self.name = family, env, family.id
        self.device, self.tensors = env.device, env.tensors
        set_spaces(self, family, env.num_envs)
        self._described: Any = None

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        tasks = (options or {}).get("tasks")
        if tasks is not None:
            described = self.family.describe(tasks)
            described = np.repeat(described, self.num_envs // len(described), 0)  # task-major
            mask = (options or {}).get("reset_mask")  # the family's own environment has checked it
            if mask is not None and self._described is not None:  # the others keep their tasks
                described = np.where(np.asarray(mask)[:, None], described, _numpy(self._described))
            self._described = torch.from_numpy(described).to(obs.device) if isinstance(obs, Tensor) else described
        return self.family.append(obs, self._described), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, *rest = self.env.step(actions)
        return self.family.append(obs, self._described), *rest

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        return self.env.describe(k, e, n)

    def close_extras(self, **kwargs: Any) -> None:
        self.env.close()


def _numpy(x: Any) -> np.ndarray:
    return x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
