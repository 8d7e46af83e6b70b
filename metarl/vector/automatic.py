"""Environments stepped one by one at first, and in worker processes once that has been measured to be faster."""

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
"""Processes are used if the loop takes longer than both: per step (including a share of the reset), and for the whole
rollout. Waking the workers costs about a tenth of the former; starting them takes about a second, once."""


class AutomaticVectorEnv(VectorEnv):
    """A `LoopVectorEnv` that can become a `ProcessVectorEnv` between two rollouts, without any effect on results.

    The environments run one by one for a rollout, which is timed. If they take longer than `STEP_SECONDS` and
    `ROLLOUT_SECONDS`, the next full reset with tasks moves them into as many processes as PyTorch has threads, at most
    one per core. If that is not possible, they continue one by one, with a warning.
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
        """The current number of processes."""
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
        """Create the processes; None if that is not possible."""
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
    """The number of processes to use: PyTorch's threads (`--threads`), at most one per core."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(own, torch.get_num_threads())
