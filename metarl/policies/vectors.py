"""Tasks as vectors of numbers."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor

from metarl.policies.spaces import HUGE, wide
from metarl.tasks import Tasks


class TaskVectors:
    """Tasks as vectors of numbers, as `visible` appends them to observations.

    Raises:
        ValueError: a parameter is neither numbers nor choices.
    """

    def __init__(self, task_space: gym.spaces.Dict):
        self.parts = {n: _Part(f"parameter {n!r}", space, scaled=True) for n, space in task_space.spaces.items()}
        self.size: int = sum(part.size for part in self.parts.values())

    def encode(self, tasks: Tasks) -> np.ndarray:
        """K tasks -> float32 [K, size]."""
        return np.concatenate([part.encode(np.asarray(tasks[name])) for name, part in self.parts.items()], -1)


class _Part:
    """One space as a stretch of a vector: of float32, or of float64 for an observation that needs it."""

    def __init__(self, what: str, space: gym.Space, scaled: bool):
        self.space = space
        if isinstance(space, Box | MultiBinary):
            shape = space.shape
            low, high = (space.low, space.high) if isinstance(space, Box) else (np.zeros(shape), np.ones(shape))
            low, high = (np.asarray(x, np.float64).reshape(-1) for x in (low, high))
            bounded = (low > -HUGE) & (high < HUGE) & scaled  # further ones are none, and would scale all values to 0
            finite_low, finite_high = (np.where(bounded, x, 0.0) for x in (low, high))
            self._centre = finite_low / 2 + finite_high / 2
            half = finite_high / 2 - finite_low / 2
            self._scale = np.where(half > 0, half, 1.0)  # a parameter with one possible value becomes 0
            self._divisor = 255.0 if not scaled and space.dtype == np.uint8 else 1.0  # images, to [0, 1]
            self._scale *= self._divisor
            self.dtype: type[np.floating] = np.float64 if wide(space) and not scaled else np.float32
            with np.errstate(over="ignore"):  # float64's largest number, which is no bound
                self.low, self.high = (((x - self._centre) / self._scale).astype(self.dtype) for x in (low, high))
            self._sizes: tuple[int, ...] = ()
        elif isinstance(space, Discrete | MultiDiscrete):
            self._sizes = (int(space.n),) if isinstance(space, Discrete) else tuple(space.nvec.reshape(-1).tolist())
            self.dtype = np.float32
            self._start = np.asarray(space.start, np.int64).reshape(-1)
            self.low, self.high = np.zeros(sum(self._sizes), np.float32), np.ones(sum(self._sizes), np.float32)
        else:
            raise ValueError(
                f"the {what} lies in {space}; networks can be shown Box, Discrete, MultiDiscrete, MultiBinary"
            )
        self.size = len(self.low)

    def encode(self, values: Any) -> Any:
        """Values of N environments, [N, *space.shape], array or tensor -> [N, size] of the same kind."""
        if isinstance(values, Tensor):
            return self._encode_tensor(values)
        if self._sizes:
            index = np.asarray(values).reshape(len(values), -1) - self._start
            hot = [np.eye(n, dtype=np.float32)[index[:, i]] for i, n in enumerate(self._sizes)]
            return np.concatenate(hot, -1)
        flat = np.asarray(values, np.float64).reshape(len(values), -1)
        return ((flat - self._centre) / self._scale).astype(self.dtype)

    def _encode_tensor(self, values: Tensor) -> Tensor:
        if self._sizes:
            index = values.reshape(len(values), -1).long() - torch.as_tensor(self._start, device=values.device)
            hot = [torch.nn.functional.one_hot(index[:, i], n) for i, n in enumerate(self._sizes)]
            return torch.cat(hot, -1).float()
        kind = torch.float64 if self.dtype == np.float64 else torch.float32
        return values.reshape(len(values), -1).to(kind) / self._divisor  # only observations come as tensors
