"""HalfCheetah whose task is the direction or the velocity to run at."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from metarl.arguments import whole
from metarl.splits import SPLITS, split_rng
from metarl.tasks import Task, Tasks
from metarl.vector.mujoco import MujocoFamily, Physics
from metarl_envs.locomotion.first_state import normal_velocities


class HalfCheetahDir(MujocoFamily):
    """A two-legged robot runs forwards or backwards, whichever is rewarded (MAML's HalfCheetah direction).

    Task parameters and their distribution
        `forward`: 1 (forwards) or 0 (backwards), with equal probability.
    Splits
        Two tasks are all there are: training, validation and testing draw from the same ones (`shared_splits`), by
        generators that share no draw.
    Observation
        That of Gymnasium's `HalfCheetah-v5`, `Box(-inf, inf, (17,))`: positions but for x, then velocities.
    Action
        Torques of the six joints, `Box(-1, 1, (6,))`.
    Reward
        +-(x velocity) - 0.05 |action|^2, the velocity being the mean over the control step of 0.05 s. The actions
        count as they are given; MuJoCo clips them to the box.
    Episode end
        Truncated after `horizon` steps (200); nothing terminates.
    Source
        Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, appendix A.2, which has 200 steps; many others
        take 100. Weights from `rllab/envs/mujoco/half_cheetah_env_rand_direc.py` in github.com/cbfinn/maml_rl, which
        also observes the torso's position and takes the velocity of the centre of mass. (Gymnasium's own weight of
        the action is 0.1; pytorch-maml-rl has 0.05 too.)
    Version history
        v0: initial.
    """

    id = "HalfCheetahDir-v0"
    env_id = "HalfCheetah-v5"
    env_kwargs: ClassVar[dict[str, Any]] = {"ctrl_cost_weight": 0.05}
    shared_splits: ClassVar[bool] = True

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)
        self.task_space = gym.spaces.Dict({"forward": gym.spaces.Discrete(2)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        return {"forward": split_rng(rng, split).integers(2, size=n)}

    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return normal_velocities(self, rng, 0.1)

    def observe(self, physics: Physics) -> np.ndarray:
        return observe(physics)

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        direction = 2.0 * task["forward"] - 1.0
        return direction * x_velocity(before, after, self.dt) - control_cost(action)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        direction = 1.0 if task["forward"] else -1.0
        return direction * info["x_velocity"] + info["reward_ctrl"]


class HalfCheetahVel(MujocoFamily):
    """A two-legged robot runs at a velocity it is not told (MAML's HalfCheetah velocity).

    Task parameters and their distribution
        `velocity`: uniform in [0, 2] m/s; the upper end is `max_velocity`.
    Splits
        Train, validation and test velocities come from the same distribution, by generators that share no draw. `ood`:
        uniform from `max_velocity` to one and a half times that.
    Observation
        That of Gymnasium's `HalfCheetah-v5`, `Box(-inf, inf, (17,))`: positions but for x, then velocities.
    Action
        Torques of the six joints, `Box(-1, 1, (6,))`.
    Reward
        -|x velocity - `velocity`| - 0.05 |action|^2, the velocity being the mean over the control step of 0.05 s.
        The actions count as they are given; MuJoCo clips them to the box.
    Episode end
        Truncated after `horizon` steps (200); nothing terminates.
    Source
        Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.3 and appendix A.2 (velocities between
        0 and 2, 200 steps). Weights from `rllab/envs/mujoco/half_cheetah_env_rand.py` in github.com/cbfinn/maml_rl,
        which also observes the torso's position and takes the velocity of the centre of mass. ProMP and PEARL draw
        from [0, 3].
    Version history
        v0: initial.
    """

    id = "HalfCheetahVel-v0"
    splits: ClassVar[tuple[str, ...]] = (*SPLITS, "ood")
    env_id = "HalfCheetah-v5"
    env_kwargs: ClassVar[dict[str, Any]] = {"ctrl_cost_weight": 0.05}

    def __init__(self, horizon: int = 200, max_velocity: float = 2.0):
        if not max_velocity > 0:
            raise ValueError(f"max_velocity must be positive, got {max_velocity}")
        super().__init__(horizon)
        self.max_velocity = max_velocity
        self.task_space = gym.spaces.Dict({"velocity": gym.spaces.Box(0.0, max_velocity, (), np.float64)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split, self.splits)
        low, high = (1.0, 1.5) if split == "ood" else (0.0, 1.0)
        return {"velocity": rng.uniform(low * self.max_velocity, high * self.max_velocity, n)}

    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return normal_velocities(self, rng, 0.1)

    def observe(self, physics: Physics) -> np.ndarray:
        return observe(physics)

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        return -np.abs(x_velocity(before, after, self.dt) - task["velocity"]) - control_cost(action)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        return -abs(info["x_velocity"] - float(task["velocity"])) + info["reward_ctrl"]


class HalfCheetahVel3(HalfCheetahVel):
    """HalfCheetahVel with other velocities (as in ProMP and PEARL).

    Task parameters and their distribution
        `velocity`: uniform in [0, 3] m/s.
    """

    id = "HalfCheetahVel3-v0"

    def __init__(self, horizon: int = 200):
        super().__init__(horizon, max_velocity=3.0)


# ---------------------------------------------------------------------------------------------------------------------
# What they have in common


def observe(physics: Physics) -> np.ndarray:
    """Positions but for x, then velocities, [N, 17]."""
    return np.concatenate([physics.qpos[:, 1:], physics.qvel], 1)


def x_velocity(before: Physics, after: Physics, dt: float) -> np.ndarray:
    """The mean velocity along x in a control step of `dt` seconds, [N]."""
    return (after.qpos[:, 0] - before.qpos[:, 0]) / dt


def control_cost(action: np.ndarray) -> np.ndarray:
    """0.05 |action|^2, [N], in the float type of `action`."""
    return 0.05 * np.square(action).sum(1)
