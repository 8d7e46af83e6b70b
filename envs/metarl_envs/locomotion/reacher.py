"""Reacher whose target is the task and is not shown."""

import math
from typing import Any

import gymnasium as gym
import numpy as np

from metarl.arguments import whole
from metarl.tasks import Task, Tasks, split_rng, validate_task
from metarl.vector.mujoco import MujocoFamily, MujocoTaskEnv, Physics

RADIUS = 0.2


class ReacherGoal(MujocoFamily):
    """An arm of two links brings its fingertip to a place it is not told.

    Task parameters and their distribution
        `goal` [2]: uniform in the disc of radius 0.2 m around the shoulder, where Gymnasium's `Reacher-v5` draws its
        targets.
    Splits
        Train, validation and test goals come from the same distribution, by generators that share no draw.
    Observation
        That of Gymnasium's `Reacher-v5` without the target, `Box(-inf, inf, (8,))`: cosines and sines of the two
        joint angles, their velocities, the fingertip's position in the plane.
    Action
        Torques of the two joints, `Box(-1, 1, (2,))`.
    Reward
        -(distance between fingertip and goal) - |action|^2, Gymnasium's own.
    Episode end
        Truncated after `horizon` steps (50); nothing terminates.
    Source
        Gymnasium's `Reacher-v5`; hiding its target makes the task family. No publication's numbers belong to it.
    Version history
        v0: initial.
    """

    id = "ReacherGoal-v0"
    env_id = "Reacher-v5"
    fields = ("xpos",)

    def __init__(self, horizon: int = 50):
        super().__init__(horizon)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (8,), np.float64)
        self.task_space = gym.spaces.Dict({"goal": gym.spaces.Box(-RADIUS, RADIUS, (2,), np.float64)})
        self._fingertip, self._target = (self.model.body(name).id for name in ("fingertip", "target"))

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split)
        angle, radius = rng.uniform(0.0, 2 * math.pi, n), RADIUS * np.sqrt(rng.uniform(0.0, 1.0, n))
        return {"goal": np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)}

    def make(self, task: Task, render_mode: str | None = None) -> gym.Env:
        task = validate_task(self, task, outside=True)
        return MujocoTaskEnv(_HiddenTarget(self.gymnasium_env(render_mode), task["goal"]), self, task)

    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = rng.uniform(-0.1, 0.1, self.init_qpos.shape) + self.init_qpos
        while np.linalg.norm(rng.uniform(-RADIUS, RADIUS, 2)) >= RADIUS:
            pass  # Gymnasium draws a target here
        qvel = self.init_qvel + rng.uniform(-0.005, 0.005, self.init_qvel.shape)
        qvel[-2:] = 0.0
        return qpos, qvel

    def place(self, qpos: np.ndarray, task: Tasks) -> None:
        qpos[:, -2:] = task["goal"]

    def observe(self, physics: Physics) -> np.ndarray:
        angles, fingertip = physics.qpos[:, :2], physics.fields["xpos"][:, self._fingertip, :2]
        return np.concatenate([np.cos(angles), np.sin(angles), physics.qvel[:, :2], fingertip], 1)

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        positions = after.fields["xpos"]
        distance = np.linalg.norm(positions[:, self._fingertip] - positions[:, self._target], axis=1)
        return -distance - np.square(action).sum(1)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        return reward


class _HiddenTarget(gym.Wrapper):
    """`Reacher-v5` with a given target that is not observed."""

    def __init__(self, env: gym.Env, goal: np.ndarray):
        super().__init__(env)
        self.goal = goal
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (8,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        plain: Any = self.unwrapped
        qpos = plain.data.qpos.copy()
        qpos[-2:] = self.goal
        plain.goal = self.goal
        plain.data.qacc_warmstart[:] = 0.0  # as if the target had been there from the start
        plain.set_state(qpos, plain.data.qvel.copy())
        return self._without_target(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.env.step(action)
        return self._without_target(), reward, terminated, truncated, info

    def _without_target(self) -> np.ndarray:
        plain: Any = self.unwrapped
        angles, fingertip = plain.data.qpos[:2], plain.get_body_com("fingertip")[:2]
        return np.concatenate([np.cos(angles), np.sin(angles), plain.data.qvel[:2], fingertip])
