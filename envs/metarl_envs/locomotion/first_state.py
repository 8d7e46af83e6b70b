"""How Gymnasium's environments draw the first state: noise around the model's own."""

import numpy as np

from metarl.vector.mujoco import MujocoFamily


def normal_velocities(family: MujocoFamily, rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions within +-scale, then normal velocities of that standard deviation (HalfCheetah, Ant)."""
    qpos = family.init_qpos + rng.uniform(-scale, scale, family.init_qpos.shape)
    return qpos, family.init_qvel + scale * rng.standard_normal(family.init_qvel.shape)


def uniform_velocities(family: MujocoFamily, rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions within +-scale, then velocities within +-scale (Hopper, Walker2d, Humanoid, Swimmer)."""
    qpos = family.init_qpos + rng.uniform(-scale, scale, family.init_qpos.shape)
    return qpos, family.init_qvel + rng.uniform(-scale, scale, family.init_qvel.shape)
