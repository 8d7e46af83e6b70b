"""One `gymnasium.Env` as a vector environment of one."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from metarl.vector.transition import Reader, reraise


class SingleEnv(VectorEnv):
    """One plain environment as a vector environment of length one that leaves the task alone."""

    num_envs = 1

    def __init__(self, env: gym.Env, horizon: int):
        self.env, self.horizon, self.episode, self.elapsed = env, horizon, -1, 0
        self.name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self._reader = Reader(self.name, env.observation_space)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.elapsed, self.episode = 0, self.episode + 1
        try:
            return self._reader.first(self.env.reset(seed=int(seed[0])))[None], {}
        except Exception as error:
            reraise(error, self.name, f"reset of episode {self.episode}")

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.elapsed += 1
        try:
            obs, reward, terminated, truncated, success = self._reader.step(self.env.step(actions[0]))
        except Exception as error:
            reraise(error, self.name, f"step {self.elapsed - 1} of episode {self.episode}")
        over = truncated or self.elapsed >= self.horizon
        infos = {} if success is None else {"success": np.array([success])}
        return np.array(obs)[None], np.array([reward]), np.array([terminated]), np.array([over]), infos
