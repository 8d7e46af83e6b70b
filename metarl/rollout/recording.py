"""Buffers for recorded steps, and the noise of actions.

Both are allocated only for steps that are taken, so a horizon that no episode reaches costs nothing.
"""

from typing import Any

import torch
from torch import Tensor

from metarl import random
from metarl.policies.spaces import Spaces

STEPS = 64
"""Buffers grow in multiples of this many steps; with shorter horizons T always equals the horizon."""
_NOISE_STEPS = 256  # steps that noise is drawn for at once
_DRAW_BLOCK = 1 << 22  # numbers drawn at once where several short episodes are: 16 MiB


class Recording:
    """Arrays [K, T, E, ...], zero where nothing was recorded; T grows with the steps, up to the horizon.

    Args:
        kinds: name -> the shape after [K, T, E] and the type.
    """

    def __init__(
        self,
        n_tasks: int,
        episodes: int,
        horizon: int,
        kinds: dict[str, tuple[tuple[int, ...], torch.dtype]],
        device: torch.device,
    ):
        self._horizon, self._size = horizon, min(horizon, STEPS)
        self._arrays = {
            name: torch.zeros(n_tasks, self._size, episodes, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in kinds.items()
        }

    def put(self, t: int, **values: Tensor) -> None:
        """Record step t's values, [K, E, ...] each, as copies."""
        if t >= self._size:
            more = min(self._horizon, 2 * self._size) - self._size
            self._size += more
            for name, x in self._arrays.items():
                self._arrays[name] = torch.cat([x, x.new_zeros(len(x), more, *x.shape[2:])], 1)
        for name, value in values.items():
            self._arrays[name][:, t] = value

    def whole(self, name: str) -> Tensor:
        """The whole buffers, [K, T, E, ...]."""
        return self._arrays[name]

    def first(self, steps: int) -> dict[str, Tensor]:
        """All arrays for the first `steps` steps and up to `STEPS` more, but no more than the horizon."""
        size = min(self._horizon, -(-steps // STEPS) * STEPS)
        return {name: x if size == self._size else x[:, :size].contiguous() for name, x in self._arrays.items()}


class ActionNoise:
    """The random numbers for actions: uniform for choices, normal for vectors. seeds int64 [N, K, E]."""

    def __init__(self, spaces: Spaces, seeds: Tensor, horizon: int):
        self._draw: Any = random.uniform if spaces.discrete else random.normal
        self._seeds, self._size, self._horizon = seeds, spaces.noise_dim, horizon
        self._steps = min(horizon, _NOISE_STEPS)
        block = _DRAW_BLOCK // (seeds[0].numel() * self._steps * self._size)
        self._episodes = max(1, block) if self._steps == horizon else 1
        self._from = (-1, -1)

    def at(self, n: int, t: int) -> Tensor:
        """The numbers for step t of episode n, [K, E, 1 or A or D]."""
        start = (n - n % self._episodes, t - t % self._steps)
        if start != self._from:
            self._from, (episode, step) = start, start
            seeds = self._seeds[episode : episode + self._episodes]
            steps = min(self._steps, self._horizon - step)
            flat = self._draw(seeds, step * self._size, steps * self._size, random.ACTION)
            self._block = flat.unflatten(-1, (steps, self._size))
        return self._block[n - start[0], :, :, t - start[1]]
