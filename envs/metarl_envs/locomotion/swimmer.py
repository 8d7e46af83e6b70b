"""Swimmer whose task is the velocity to swim at."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from metarl.arguments import whole
from metarl.splits import SPLITS, split_rng
from metarl.tasks import Task, Tasks
from metarl.vector.mujoco import MujocoFamily, Physics
from metarl_envs.locomotion.first_state import uniform_velocities


class SwimmerVel(MujocoFamily):
    """A chain of three links swims at a velocity it is not told (ProMP's Swimmer velocity).

    Task parameters and their distribution
        `velocity`: uniform in [0.1, 0.2] m/s.
    Splits
        Train, validation and test velocities come from the same distribution, by generators that share no draw. `ood`:
        uniform in [0.2, 0.3] m/s.
    Observation
        That of Gymnasium's `Swimmer-v5`, `Box(-inf, inf, (8,))`: positions but for x and y, then velocities.
    Action
        Torques of the two joints, `Box(-1, 1, (2,))`.
    Reward
        -|x velocity - `velocity`| - 0.0001 |action|^2, the velocity being the mean over the control step of 0.04 s.
    Episode end
        Truncated after `horizon` steps (200); nothing terminates.
    Source
        Rothfuss et al. 2019, https://arxiv.org/abs/1810.06784; distribution and weight from
        `maml_zoo/envs/mujoco_envs/swimmer_rand_vel.py` in github.com/jonasrothfuss/ProMP, where the sign of the first
        term is positive, which rewards the wrong velocities.
    Version history
        v0: initial.
    """

    id = "SwimmerVel-v0"
    splits: ClassVar[tuple[str, ...]] = (*SPLITS, "ood")
    env_id = "Swimmer-v5"

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)
        self.task_space = gym.spaces.Dict({"velocity": gym.spaces.Box(0.1, 0.2, (), np.float64)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split, self.splits)
        return {"velocity": rng.uniform(0.2, 0.3, n) if split == "ood" else rng.uniform(0.1, 0.2, n)}

    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return uniform_velocities(self, rng, 0.1)

    def observe(self, physics: Physics) -> np.ndarray:
        return np.concatenate([physics.qpos[:, 2:], physics.qvel], 1)

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        velocity = (after.qpos[:, 0] - before.qpos[:, 0]) / self.dt
        return -np.abs(velocity - task["velocity"]) - 1e-4 * np.square(action).sum(1)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        return -abs(info["x_velocity"] - float(task["velocity"])) + info["reward_ctrl"]
