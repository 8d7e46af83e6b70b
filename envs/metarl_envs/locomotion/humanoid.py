"""Humanoid whose task is the direction to walk in."""

import math
from typing import Any

import gymnasium as gym
import numpy as np

from metarl.arguments import whole
from metarl.tasks import Task, Tasks, split_rng
from metarl.vector.mujoco import MujocoFamily, Physics
from metarl_envs.locomotion.first_state import uniform_velocities

FORWARD, CONTROL, CONTACT, SURVIVAL = 1.25, 0.1, 5e-7, 5.0


class HumanoidDir(MujocoFamily):
    """A humanoid walks in whichever direction of the plane is rewarded (PEARL's Humanoid direction).

    Task parameters and their distribution
        `angle`: of the direction with the x axis, uniform in [0, 2 pi].
    Splits
        Train, validation and test angles come from the same distribution, by generators that share no draw.
    Observation
        That of Gymnasium's `Humanoid-v5`, `Box(-inf, inf, (348,))`: positions but for x and y, velocities, inertias,
        velocities of the centres of mass, forces of the actuators, contact forces.
    Action
        Torques of the 17 joints, `Box(-0.4, 0.4, (17,))`.
    Reward
        1.25 (velocity of the centre of mass along the direction) - 0.1 |control|^2 - min(10, 5e-7 |contact forces|^2)
        + 5 while the height is in (1, 2). Velocities are means over the control step of 0.015 s.
    Episode end
        Terminates when the height leaves (1, 2); truncated after `horizon` steps (200).
    Source
        Rakelly et al. 2019, https://arxiv.org/abs/1903.08254; `rlkit/envs/humanoid_dir.py` in
        github.com/katerakelly/oyster. They are Gymnasium's own weights.
    Version history
        v0: initial.
    """

    id = "HumanoidDir-v0"
    env_id = "Humanoid-v5"
    fields = ("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)
        self.task_space = gym.spaces.Dict({"angle": gym.spaces.Box(0.0, 2 * math.pi, (), np.float64)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        return {"angle": split_rng(rng, split).uniform(0.0, 2 * math.pi, n)}

    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return uniform_velocities(self, rng, 0.01)

    def observe(self, physics: Physics) -> np.ndarray:
        fields, n = physics.fields, len(physics.qpos)
        bodies = [fields[name][:, 1:].reshape(n, -1) for name in ("cinert", "cvel", "cfrc_ext")]  # without the world
        forces = fields["qfrc_actuator"][:, 6:]  # without the free joint's
        return np.concatenate([physics.qpos[:, 2:], physics.qvel, *bodies[:2], forces, bodies[2]], 1)

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        velocity = (self._centre_of_mass(after) - self._centre_of_mass(before)) / self.dt
        forward = np.cos(task["angle"]) * velocity[:, 0] + np.sin(task["angle"]) * velocity[:, 1]
        control = CONTROL * np.square(after.ctrl).sum(1)
        forces = after.fields["cfrc_ext"].reshape(len(forward), -1)
        contact = np.minimum(CONTACT * np.square(forces).sum(1), 10.0)
        return FORWARD * forward - control - contact + _healthy(after) * SURVIVAL

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        angle = float(task["angle"])
        forward = math.cos(angle) * info["x_velocity"] + math.sin(angle) * info["y_velocity"]
        return FORWARD * forward + info["reward_ctrl"] + info["reward_contact"] + info["reward_survive"]

    def terminated(self, physics: Physics) -> np.ndarray | None:
        return ~_healthy(physics)

    def _centre_of_mass(self, physics: Physics) -> np.ndarray:
        """In the plane, [N, 2]."""
        mass = self.model.body_mass[:, None]
        return ((mass * physics.fields["xipos"]).sum(1) / mass.sum())[:, :2]


def _healthy(physics: Physics) -> np.ndarray:
    """Whether the torso is neither too low nor too high, [N]."""
    return (physics.qpos[:, 2] > 1.0) & (physics.qpos[:, 2] < 2.0)
