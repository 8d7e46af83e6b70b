"""One `gymnasium.Env` as a vector environment of one."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from metarl.vector.contract import CPU, reset_mask, seed_list, set_spaces
from metarl.vector.transition import Reader, reraise


class SingleEnv(VectorEnv):
    """One plain environment as a vector environment of length one that does not change the task.

    Args:
        horizon: steps after which every episode is truncated.
    """

    device, tensors = CPU, False

    def __init__(self, env: gym.Env, horizon: int):
        self.env, self.horizon, self.episode, self.elapsed = env, horizon, -1, 0
        self.name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        set_spaces(self, env, 1)
        self._reader = Reader(self.name, env.observation_space)
        self._terminated = self._truncated = False

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        reset_mask(options, 1)
        (own,) = seed_list(seed, 1)
        self.elapsed, self.episode = 0, self.episode + 1
        self._terminated = self._truncated = False
        try:
            self._obs = self._reader.first(self.env.reset(seed=own))
        except Exception as error:
            reraise(error, self.name, f"reset of {self.describe(0, 0)}")
        return self._obs[None].copy(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward, success = 0.0, None
        if not (self._terminated or self._truncated):
            self.elapsed += 1
            try:
                obs, reward, self._terminated, truncated, success = self._reader.step(self.env.step(actions[0]))
            except Exception as error:
                reraise(error, self.name, f"step {self.elapsed - 1} of {self.describe(0, 0)}")
            self._obs = np.array(obs)
            self._truncated = not self._terminated and (truncated or self.elapsed >= self.horizon)
        infos = {} if success is None else {"success": np.array([success])}
        flags = np.array([self._terminated]), np.array([self._truncated])
        return self._obs[None].copy(), np.array([reward]), *flags, infos

    def describe(self, k: int, e: int, n: int | None = None) -> str:
        """The number of the episode played here; the task is unknown."""
        return f"episode {self.episode}"
