"""Small families of Gymnasium environments."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from metarl import from_gymnasium
from metarl.tasks import TaskFamily

GRAVITY = Box(5.0, 15.0)


class Toy(gym.Env):
    """Every place that a parameter can have; pays `push + bonus + start` and observes nothing of it."""

    observation_space = gym.spaces.Dict({"b": Box(-1, 1, (2,), np.float32), "a": Discrete(3)})
    action_space = Discrete(2)
    bonus = 0.0

    def __init__(self, push: float = 1.0, **more):
        self.push, self.mass, self.vector, self.pair = push, 2.0, np.zeros(2, np.float64), (0, 0)
        self.weight = 9.81 * self.mass
        self.load = self.weight + 1
        self.noise = 0.0

    @property
    def inverse(self):
        return 1 / self.mass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.start = seed, (options or {}).get("start", 0.0)
        self.noise = float(self.np_random.normal())
        return self._observe(), {}

    def step(self, action):
        return self._observe(), self.push + self.bonus + self.start, False, False, {}

    def _observe(self):
        return {"b": np.zeros(2, np.float32), "a": 1}


def toy(parameters, env=Toy, horizon=4, **more) -> TaskFamily:
    return from_gymnasium(env, parameters, horizon=horizon, **more)


def pendulums(**more) -> TaskFamily:
    return from_gymnasium("Pendulum-v1", {"g": GRAVITY}, **({"horizon": 6} | more))


def reward_of(family, **task) -> float:
    env = family.make(task)
    env.reset(seed=0)
    return env.step(env.action_space.sample())[1]
