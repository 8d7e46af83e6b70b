"""Walking robots whose bodies are the task: every mass, inertia, damping and friction has a factor of its own."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from metarl.arguments import whole
from metarl.splits import SPLITS
from metarl.tasks import Task, Tasks, split_rng
from metarl.vector.mujoco import MujocoFamily, Physics
from metarl_envs.locomotion.first_state import normal_velocities, uniform_velocities

OOD = "ood"
SCALE_LIMIT = 3.0
PARAMETERS = {"mass": ("body_mass", 1.5), "inertia": ("body_inertia", 1.5), "damping": ("dof_damping", 1.3),
              "friction": ("geom_friction", 1.5)}  # fmt: skip
"""Task parameter -> the array of `MjModel` that it multiplies, and the base of its distribution."""


class _RandParams(MujocoFamily):
    """Gymnasium's own reward in bodies that differ; the tasks are factors of four arrays of the model."""

    splits: ClassVar[tuple[str, ...]] = (*SPLITS, OOD)
    changes_model: ClassVar[bool] = True
    control_weight: ClassVar[float]

    def __init__(self, horizon: int):
        super().__init__(horizon)
        boxes: dict[str, gym.Space] = {}
        for name, (array, base) in PARAMETERS.items():
            low, high = base**-SCALE_LIMIT, base**SCALE_LIMIT
            boxes[name] = gym.spaces.Box(low, high, getattr(self.model, array).shape, np.float64)
        self.task_space = gym.spaces.Dict(boxes)
        least = float(np.finfo(np.float64).tiny)  # a body without mass or inertia is none
        limits: dict[str, gym.Space] = {}
        for name, box in boxes.items():
            limits[name] = gym.spaces.Box(least, np.inf, box.shape, np.float64)
        self.task_limits = gym.spaces.Dict(limits)

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split, self.splits)
        tasks = {}
        for name, (_, base) in PARAMETERS.items():
            box = self.task_space[name]
            assert isinstance(box, gym.spaces.Box)
            if split == OOD:
                u = rng.uniform(-1.0, 1.0, (n, *box.shape))
                tasks[name] = base ** (np.copysign(SCALE_LIMIT, u) + u)
                continue
            factors = base ** rng.uniform(-SCALE_LIMIT, SCALE_LIMIT, (n, *box.shape))
            tasks[name] = np.clip(factors, box.low, box.high)  # a power may round to just outside
        return tasks

    def change_model(self, model: Any, task: Task) -> None:
        for name, (array, _) in PARAMETERS.items():
            getattr(model, array)[:] *= task[name]

    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return uniform_velocities(self, rng, 0.005)

    def observe(self, physics: Physics) -> np.ndarray:
        return np.concatenate([physics.qpos[:, 1:], np.clip(physics.qvel, -10.0, 10.0)], 1)

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        velocity = (after.qpos[:, 0] - before.qpos[:, 0]) / self.dt
        ended = self.terminated(after)
        survival = 0.0 if ended is None else 1.0 * ~ended
        return velocity + survival - self.control_weight * np.square(action).sum(1)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        return reward


class HopperRandParams(_RandParams):
    """A one-legged robot hops with masses, inertias, damping and friction that it is not told.

    Task parameters and their distribution
        Factors of the model's own values, each entry drawn for itself, with u uniform in [-3, 3].
        `mass` [5], of every body: 1.5^u. `inertia` [5, 3]: 1.5^u. `damping` [6], of every degree of freedom:
        1.3^u. `friction` [5, 3], of every geometry: 1.5^u.
    Splits
        Train, validation and test factors come from the same distribution, by generators that share no draw. `ood`:
        every u uniform in [-4, -3] or [3, 4], with equal probability.
    Observation
        That of Gymnasium's `Hopper-v5`, `Box(-inf, inf, (11,))`: positions but for x, velocities clipped to +-10.
    Action
        Torques of the three joints, `Box(-1, 1, (3,))`.
    Reward
        Gymnasium's own: x velocity + 1 while healthy - 0.001 |action|^2, the velocity being the mean over the control
        step of 0.008 s.
    Episode end
        Terminates when unhealthy (height, angle and velocities as in `Hopper-v5`); truncated after `horizon` steps
        (200).
    Source
        `rand_param_envs/base.py` in github.com/dennisl88/rand_param_envs, used by Rothfuss et al. 2019,
        https://arxiv.org/abs/1810.06784, and Rakelly et al. 2019, https://arxiv.org/abs/1903.08254. As there,
        quantities that MuJoCo derives from the parameters at compile time stay as they were.
    Version history
        v0: initial.
    """

    id = "HopperRandParams-v0"
    env_id = "Hopper-v5"
    control_weight = 1e-3

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)

    def terminated(self, physics: Physics) -> np.ndarray | None:
        state = np.concatenate([physics.qpos, physics.qvel], 1)[:, 2:]
        height, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        return ~((np.abs(state) < 100.0).all(1) & (height > 0.7) & (np.abs(angle) < 0.2))


class Walker2dRandParams(_RandParams):
    """A two-legged robot walks with masses, inertias, damping and friction that it is not told.

    Task parameters and their distribution
        Factors of the model's own values, each entry drawn for itself, with u uniform in [-3, 3].
        `mass` [8], of every body: 1.5^u. `inertia` [8, 3]: 1.5^u. `damping` [9], of every degree of freedom:
        1.3^u. `friction` [8, 3], of every geometry: 1.5^u.
    Splits
        Train, validation and test factors come from the same distribution, by generators that share no draw. `ood`:
        every u uniform in [-4, -3] or [3, 4], with equal probability.
    Observation
        That of Gymnasium's `Walker2d-v5`, `Box(-inf, inf, (17,))`: positions but for x, velocities clipped to +-10.
    Action
        Torques of the six joints, `Box(-1, 1, (6,))`.
    Reward
        Gymnasium's own: x velocity + 1 while healthy - 0.001 |action|^2, the velocity being the mean over the control
        step of 0.008 s.
    Episode end
        Terminates when the height leaves (0.8, 2) or the angle (-1, 1); truncated after `horizon` steps (200).
    Source
        As of `HopperRandParams-v0`; the control step there is a quarter longer.
    Version history
        v0: initial.
    """

    id = "Walker2dRandParams-v0"
    env_id = "Walker2d-v5"
    control_weight = 1e-3

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)

    def terminated(self, physics: Physics) -> np.ndarray | None:
        height, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        return ~((height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0))


class HalfCheetahRandParams(_RandParams):
    """A two-legged robot runs with masses, inertias, damping and friction that it is not told.

    Task parameters and their distribution
        Factors of the model's own values, each entry drawn for itself, with u uniform in [-3, 3].
        `mass` [8], of every body: 1.5^u. `inertia` [8, 3]: 1.5^u. `damping` [9], of every degree of freedom:
        1.3^u. `friction` [9, 3], of every geometry: 1.5^u.
    Splits
        Train, validation and test factors come from the same distribution, by generators that share no draw. `ood`:
        every u uniform in [-4, -3] or [3, 4], with equal probability.
    Observation
        That of Gymnasium's `HalfCheetah-v5`, `Box(-inf, inf, (17,))`: positions but for x, then velocities.
    Action
        Torques of the six joints, `Box(-1, 1, (6,))`.
    Reward
        Gymnasium's own: x velocity - 0.1 |action|^2, the velocity being the mean over the control step of 0.05 s.
    Episode end
        Truncated after `horizon` steps (200); nothing terminates.
    Source
        The distribution of `HopperRandParams-v0`; the publications there have Hopper and Walker2d only.
    Version history
        v0: initial.
    """

    id = "HalfCheetahRandParams-v0"
    env_id = "HalfCheetah-v5"
    control_weight = 0.1

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)

    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return normal_velocities(self, rng, 0.1)

    def observe(self, physics: Physics) -> np.ndarray:
        return np.concatenate([physics.qpos[:, 1:], physics.qvel], 1)
