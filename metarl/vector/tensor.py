"""Families whose dynamics are written as torch functions: all K*E environments in one call, on a CPU or a GPU.

The dynamics are written once. `TensorVectorEnv` runs them for [K, E] environments; `TensorEnv`, the plain
`gymnasium.Env` derived from them, runs the same functions for [1, 1].
"""

import abc
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl import random
from metarl.printing import family_text
from metarl.tasks import Task, Tasks, validate_task
from metarl.torch_defaults import torch_defaults
from metarl.vector.contract import Assignment, drawn_seeds, read_reset, set_spaces

State = dict[str, Tensor]
"""The state of many environments: every value [K, E, ...]."""

_DRAW_BLOCK = 1 << 22  # numbers drawn at once: 16 MiB


class TensorFamily(abc.ABC):
    """A task family with dynamics in torch. Subclasses implement the four abstract methods; `make` and `make_vector`
    exist.

    All arguments of the methods have the leading axes [K, E]; written with operations on the last axes, the methods
    work for any number of environments. They must not modify their arguments in place.

    Randomness is passed in as `draws`, uniform numbers in [0, 1): set `reset_draws` and `step_draws` to how many an
    environment needs. The same seed then gives the same episode in every backend.
    """

    id: str
    horizon: int
    observation_space: gym.Space
    action_space: gym.Space
    task_space: gym.spaces.Dict
    hidden_task: ClassVar[bool] = True
    reset_draws: int = 0
    step_draws: int = 0

    __repr__ = family_text

    @abc.abstractmethod
    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        """`n` tasks, each value [n, ...]. Use `metarl.split_rng(rng, split)` so that splits never share draws."""

    @abc.abstractmethod
    def initial(self, task: State, draws: Tensor) -> State:
        """The first state. draws [K, E, reset_draws] also determines the leading shape, device and float type."""

    @abc.abstractmethod
    def observe(self, state: State, task: State) -> Tensor:
        """The observation [K, E, *observation_space.shape]."""

    @abc.abstractmethod
    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        """-> next state, reward [K, E], terminated [K, E] (bool; None if no episode ends early)."""

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        """One environment as an image [H, W, 3] of uint8; only if `render_modes` lists it."""
        raise gym.error.Error(f"{self.id} has nothing to draw")

    render_modes: ClassVar[tuple[str, ...]] = ()

    def make(self, task: Task, render_mode: str | None = None) -> "TensorEnv":
        """The plain Gymnasium environment of one task."""
        return TensorEnv(self, validate_task(self, task, outside=True), render_mode)

    def make_vector(self, n_tasks: int, episodes: int, device: torch.device | str = "cpu") -> "TensorVectorEnv":
        """K*E environments as one vector environment, task-major."""
        return TensorVectorEnv(self, n_tasks, episodes, device)


class TensorVectorEnv(VectorEnv):
    """K*E environments of a `TensorFamily`, task-major; observations and actions are tensors on `device`.

    Results equal those of `LoopVectorEnv`.
    """

    tensors = True

    def __init__(self, family: TensorFamily, n_tasks: int, episodes: int, device: torch.device | str = "cpu"):
        self.family, self.n_tasks, self.episodes, self.name = family, n_tasks, episodes, family.id
        self.device = torch.device(device)
        set_spaces(self, family, n_tasks * episodes)
        self._tasks = Assignment(n_tasks, episodes)
        self._discrete = not isinstance(family.action_space, gym.spaces.Box)
        self._action_shape = (n_tasks, episodes, *(family.action_space.shape or ()))
        self._task: State = {}

    @torch_defaults
    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        tasks, mask = read_reset(options, self.n_tasks, self.num_envs, begun=bool(self._task))
        new_task = None if tasks is None else {name: self._to_device(value) for name, value in tasks.items()}
        seeds = self._seed_tensor(seed)
        if tasks is not None:
            self._tasks.give(tasks, mask)
        if mask is not None:
            return self._reset_some(torch.from_numpy(mask).to(self.device).reshape(seeds.shape), seeds, new_task)
        self._task = self._task if new_task is None else new_task
        self._seeds = seeds
        self._elapsed, self._block_start = 0, 0
        self._started: Tensor | None = None  # [K, E]: `_elapsed` when the episode began; None where all are 0
        self._block: Tensor | None = None  # [K, E, steps, step_draws] from step _block_start on
        draws = random.uniform(self._seeds, 0, self.family.reset_draws, random.ENVIRONMENT)
        self._state = self.family.initial(self._task, draws)
        self._over: Tensor | None = None  # [K, E] bool, once an episode has terminated
        return self._observation(), {}

    def _reset_some(self, mask: Tensor, seeds: Tensor, new_task: State | None) -> tuple[Tensor, dict[str, Any]]:
        """Reset the environments selected by `mask` [K, E]."""
        if new_task is not None:
            self._task = {k: torch.where(_like(mask, v), new_task[k], v) for k, v in self._task.items()}
        self._seeds = torch.where(mask, seeds, self._seeds)
        draws = random.uniform(self._seeds, 0, self.family.reset_draws, random.ENVIRONMENT)
        fresh = self.family.initial(self._task, draws)
        self._state = {k: torch.where(_like(mask, v), fresh[k], v) for k, v in self._state.items()}
        self._over = None if self._over is None else self._over & ~mask
        started = torch.zeros_like(self._seeds) if self._started is None else self._started
        self._started = torch.where(mask, self._elapsed, started)
        if self._block is not None:
            done, n = self._elapsed - self._block_start, self.family.step_draws
            left = self._block.shape[2] - done
            if left > 0:
                new = random.uniform(self._seeds[mask], self.family.reset_draws, left * n, random.ENVIRONMENT)
                self._block[mask, done:] = new.unflatten(-1, (left, n))
        return self._observation(), {}

    @torch_defaults
    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        action = torch.as_tensor(actions, device=self.device).reshape(self._action_shape)
        action = action.long() if self._discrete else action.float()
        state, reward, terminated = self.family.step(self._state, action, self._task, self._step_draws())
        over = self._over
        if (late := self._out_of_time(reward)) is not None:
            over = late if over is None else late | over
        if over is not None:
            state = {k: torch.where(_like(over, v), self._state[k], v) for k, v in state.items()}
            reward = torch.where(over, 0.0, reward)
            if late is not None and terminated is not None:
                terminated = terminated & ~over  # who had ended before is in `_over` already
        if terminated is not None:
            self._over = terminated if self._over is None else self._over | terminated
        self._state = state
        self._elapsed += 1
        ended = torch.zeros_like(reward, dtype=torch.bool) if self._over is None else self._over
        late = self._out_of_time(reward)
        truncated = torch.zeros_like(ended) if late is None else late & ~ended
        return self._observation(), reward.reshape(-1), ended.reshape(-1), truncated.reshape(-1), {}

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        return self._tasks.describe(k, e, n)

    def _out_of_time(self, like: Tensor) -> Tensor | None:
        """Which environments have reached the horizon, [K, E] as `like`; None if none has."""
        if self._started is not None:
            return self._elapsed - self._started >= self.family.horizon
        return torch.ones_like(like, dtype=torch.bool) if self._elapsed >= self.family.horizon else None

    @property
    def state(self) -> State:
        """The current state, every value [K, E, ...]."""
        return self._state

    def _observation(self) -> Tensor:
        return self.family.observe(self._state, self._task).flatten(0, 1)

    def _to_device(self, value: np.ndarray) -> Tensor:
        x = torch.as_tensor(value, device=self.device)
        x = x.float() if x.is_floating_point() else x
        return x[:, None].expand(self.n_tasks, self.episodes, *x.shape[1:])

    def _seed_tensor(self, seed: Any) -> Tensor:
        # A tensor stays on its device: reading its numbers would wait for a GPU.
        seeds = seed.long() if isinstance(seed, Tensor) else torch.tensor(drawn_seeds(self, seed))
        if seeds.numel() != self.num_envs:
            raise ValueError(f"expected one seed for each of {self.num_envs} environments, got {seeds.numel()}")
        return seeds.to(self.device).reshape(self.n_tasks, self.episodes)

    def _step_draws(self) -> Tensor:
        """[K, E, step_draws] for the step about to be taken; drawn for many steps at a time."""
        n = self.family.step_draws
        if n == 0:
            return torch.empty(*self._seeds.shape, 0, device=self.device)
        if self._block is None or self._elapsed >= self._block_start + self._block.shape[2]:
            own = self._elapsed if self._started is None else self._elapsed - self._started  # steps of its episode
            longest = self.family.horizon - (own if isinstance(own, int) else 0)
            steps = max(1, min(longest, _DRAW_BLOCK // (n * self.num_envs)))
            start = self.family.reset_draws + own * n
            flat = random.uniform(self._seeds, start, steps * n, random.ENVIRONMENT)
            self._block, self._block_start = flat.unflatten(-1, (steps, n)), self._elapsed
        return self._block[:, :, self._elapsed - self._block_start]


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (value.dim() - mask.dim()))


class TensorEnv(gym.Env):
    """One environment of a `TensorFamily` as a plain `gymnasium.Env`: NumPy in, NumPy out."""

    def __init__(self, family: TensorFamily, task: Task, render_mode: str | None = None):
        self.metadata = {"render_modes": list(family.render_modes), "render_fps": 10}
        if render_mode is not None and render_mode not in family.render_modes:
            raise ValueError(f"{family.id} can be rendered as {family.render_modes}, got render_mode={render_mode!r}")
        self.family, self.task, self.render_mode = family, task, render_mode
        self.observation_space, self.action_space = family.observation_space, family.action_space
        self._batch = TensorVectorEnv(family, 1, 1)
        self._batch_task = {name: np.asarray(value)[None] for name, value in task.items()}

    @torch_defaults
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**62)) if seed is None else seed
        obs, _ = self._batch.reset(seed=[episode], options={"tasks": self._batch_task})
        return self._to_numpy(obs), {}

    @torch_defaults
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        batch = torch.as_tensor(np.asarray(action)).reshape(self._batch._action_shape)
        obs, reward, terminated, truncated, info = self._batch.step(batch)
        return self._to_numpy(obs), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        return self.family.render_rgb(self._batch.state, self.task)

    def _to_numpy(self, obs: Tensor) -> Any:
        if isinstance(self.observation_space, gym.spaces.Discrete):
            return np.int64(obs.item())
        return obs[0].numpy().astype(self.observation_space.dtype)
