"""One by one at first, in worker processes from then on where that has been seen to pay."""

import os
import time
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from metarl.tasks import TaskFamily
from metarl.vector.contract import CPU, read_reset, set_spaces
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv, WorkerError

STEP_SECONDS, ROLLOUT_SECONDS = 1e-3, 0.05
"""Processes pay where the loop needs more than both: per step, its share of the reset included, and for the whole
rollout. Waking the workers costs about a tenth of the first, starting them about a second, once."""


class AutomaticVectorEnv(VectorEnv):
    """`LoopVectorEnv` that becomes a `ProcessVectorEnv` between two rollouts; nobody but a clock can tell.

    The environments run one by one for a rollout, on a clock. If they took longer than `STEP_SECONDS` and
    `ROLLOUT_SECONDS`, the next reset of all with tasks moves them into as many processes as PyTorch has threads, at
    most one for each core. Where that cannot be done, they stay with a warning.
    """

    device, tensors = CPU, False

    def __init__(self, family: TaskFamily, n_tasks: int, episodes: int):
        self._env: LoopVectorEnv | ProcessVectorEnv = LoopVectorEnv(family, n_tasks, episodes)
        self.family, self.n_tasks, self.episodes, self.name = family, n_tasks, episodes, family.id
        set_spaces(self, family, n_tasks * episodes)
        self._seconds, self._steps = 0.0, 0  # of the last rollout
        self._may_move = cores() > 1 and self.num_envs > 1

    @property
    def workers(self) -> int:
        """How many processes there are at present."""
        return self._env.workers if isinstance(self._env, ProcessVectorEnv) else 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        begin = time.perf_counter()
        # Before anything moves: what is refused here has nothing to do with processes.
        _, mask = read_reset(options, self.n_tasks, self.num_envs, begun=True)
        if mask is not None:  # of some: the others are under way, and so is the rollout
            some = self._env.reset(seed=seed, options=options)
            self._seconds += time.perf_counter() - begin
            return some
        out = None
        if self._may_move and options and "tasks" in options and self._pays():
            self._may_move = False
            out = self._move(seed, options)
        if out is None:
            out = self._env.reset(seed=seed, options=options)
        self._seconds, self._steps = time.perf_counter() - begin, 0
        return out

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        begin = time.perf_counter()
        out = self._env.step(actions)
        self._seconds, self._steps = self._seconds + time.perf_counter() - begin, self._steps + 1
        return out

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        return self._env.describe(k, e, n)

    def _pays(self) -> bool:
        return self._steps > 0 and self._seconds > max(ROLLOUT_SECONDS, STEP_SECONDS * self._steps)

    def _move(self, seed: Any, options: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]] | None:
        """Into processes; None where they cannot be had."""
        processes = None
        try:
            processes = ProcessVectorEnv(self.family, self.n_tasks, self.episodes, cores())
            out = processes.reset(seed=seed, options=options)
        except (ValueError, OSError, WorkerError) as error:
            if processes is not None:
                processes.close()
            warnings.warn(f"{self.family.id} runs one by one, which is slower: {error}", RuntimeWarning, stacklevel=3)
            return None
        self._env.close()
        self._env = processes
        return out

    def close_extras(self, **kwargs: Any) -> None:
        self._env.close()


def cores() -> int:
    """How many processes may run at once: PyTorch's threads (`--threads`), at most one for each core."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(own, torch.get_num_threads())
