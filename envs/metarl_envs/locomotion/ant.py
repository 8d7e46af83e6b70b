"""Ant whose task is a direction, a velocity or a place to go to."""

import math
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from metarl.arguments import whole
from metarl.splits import SPLITS, split_rng
from metarl.tasks import Task, Tasks
from metarl.vector.mujoco import MujocoFamily, Physics
from metarl_envs.locomotion.first_state import normal_velocities

TORSO = 1
CONTACT_COST = 5e-4

MAML_WEIGHTS = {"ctrl_cost_weight": 0.005, "contact_cost_weight": CONTACT_COST, "healthy_reward": 0.05}


class _Ant(MujocoFamily):
    """What does not depend on the task: Gymnasium's Ant-v5, its observation and the costs in its rewards."""

    env_id = "Ant-v5"
    fields = ("xpos", "cfrc_ext")

    def __init__(self, horizon: int):
        super().__init__(horizon)
        kwargs = self.env_kwargs
        self.control_weight, self.survival = kwargs["ctrl_cost_weight"], kwargs["healthy_reward"]
        self.first_position = 2 if kwargs.get("exclude_current_positions_from_observation", True) else 0
        self.falls = kwargs.get("terminate_when_unhealthy", True)

    def initial(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return normal_velocities(self, rng, 0.1)

    def observe(self, physics: Physics) -> np.ndarray:
        forces = _contact_forces(physics)[:, 6:]  # without the world's
        return np.concatenate([physics.qpos[:, self.first_position :], physics.qvel, forces], 1)

    def terminated(self, physics: Physics) -> np.ndarray | None:
        return ~_healthy(physics) if self.falls else None

    def minus_costs(self, forward: np.ndarray, after: Physics, action: np.ndarray) -> np.ndarray:
        """`forward` [N] - control cost - contact cost + survival, added up in Gymnasium's order."""
        control = self.control_weight * np.square(action).sum(1)
        contact = CONTACT_COST * np.square(_contact_forces(after)).sum(1)
        return forward - control - contact + _healthy(after) * self.survival


class AntDir(_Ant):
    """A four-legged robot walks forwards or backwards, whichever is rewarded (MAML's Ant direction).

    Task parameters and their distribution
        `forward`: 1 (forwards, along x) or 0 (backwards), with equal probability.
    Splits
        Two tasks are all there are: training, validation and testing draw from the same ones (`shared_splits`), by
        generators that share no draw.
    Observation
        That of Gymnasium's `Ant-v5`, `Box(-inf, inf, (105,))`: positions but for x and y, velocities, contact forces.
    Action
        Torques of the eight joints, `Box(-1, 1, (8,))`.
    Reward
        +-(x velocity of the torso) - 0.005 |action|^2 - 0.0005 |contact forces, clipped to +-1|^2 + 0.05 while the
        torso's height is in [0.2, 1]. Velocities are means over the control step of 0.05 s.
    Episode end
        Terminates when the height leaves [0.2, 1]; truncated after `horizon` steps (200).
    Source
        Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.3 and appendix A.2 (200 steps); weights
        from `rllab/envs/mujoco/ant_env_rand_direc.py` in github.com/cbfinn/maml_rl, whose observation and model
        differ from Gymnasium's. (Gymnasium's own weights are 0.5 for the action and 1 for survival.)
    Version history
        v0: initial.
    """

    id = "AntDir-v0"
    env_kwargs: ClassVar[dict[str, Any]] = MAML_WEIGHTS
    shared_splits: ClassVar[bool] = True

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)
        self.task_space = gym.spaces.Dict({"forward": gym.spaces.Discrete(2)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        return {"forward": split_rng(rng, split).integers(2, size=n)}

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        direction = 2.0 * task["forward"] - 1.0
        return self.minus_costs(direction * _velocity(before, after, self.dt)[:, 0], after, action)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        direction = 1.0 if task["forward"] else -1.0
        return _plus_costs(direction * info["x_velocity"], info)


class AntDir2D(_Ant):
    """A four-legged robot walks in whichever direction of the plane is rewarded (PEARL's and ProMP's Ant direction).

    Task parameters and their distribution
        `angle`: of the direction with the x axis, uniform in [0, 2 pi].
    Splits
        Train, validation and test angles come from the same distribution, by generators that share no draw.
    Observation
        That of Gymnasium's `Ant-v5`, `Box(-inf, inf, (105,))`: positions but for x and y, velocities, contact forces.
    Action
        Torques of the eight joints, `Box(-1, 1, (8,))`.
    Reward
        (velocity of the torso along the direction) - 0.5 |action|^2 - 0.0005 |contact forces, clipped to +-1|^2
        + 1 while the torso's height is in [0.2, 1]. Velocities are means over the control step of 0.05 s.
    Episode end
        Terminates when the height leaves [0.2, 1]; truncated after `horizon` steps (200).
    Source
        Rakelly et al. 2019, https://arxiv.org/abs/1903.08254; distribution and weights from `rlkit/envs/ant_dir.py`
        in github.com/katerakelly/oyster. They are Gymnasium's own weights.
    Version history
        v0: initial.
    """

    id = "AntDir2D-v0"
    env_kwargs: ClassVar[dict[str, Any]] = {
        "ctrl_cost_weight": 0.5,
        "contact_cost_weight": CONTACT_COST,
        "healthy_reward": 1.0,
    }

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)
        self.task_space = gym.spaces.Dict({"angle": gym.spaces.Box(0.0, 2 * math.pi, (), np.float64)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        return {"angle": split_rng(rng, split).uniform(0.0, 2 * math.pi, n)}

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        velocity = _velocity(before, after, self.dt)
        forward = np.cos(task["angle"]) * velocity[:, 0] + np.sin(task["angle"]) * velocity[:, 1]
        return self.minus_costs(forward, after, action)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        angle = float(task["angle"])
        return _plus_costs(math.cos(angle) * info["x_velocity"] + math.sin(angle) * info["y_velocity"], info)


class AntVel(_Ant):
    """A four-legged robot walks at a velocity it is not told (MAML's Ant velocity).

    Task parameters and their distribution
        `velocity`: uniform in [0, 3] m/s.
    Splits
        Train, validation and test velocities come from the same distribution, by generators that share no draw. `ood`:
        uniform in [3, 4.5] m/s.
    Observation
        That of Gymnasium's `Ant-v5`, `Box(-inf, inf, (105,))`: positions but for x and y, velocities, contact forces.
    Action
        Torques of the eight joints, `Box(-1, 1, (8,))`.
    Reward
        1 - |x velocity of the torso - `velocity`| - 0.005 |action|^2 - 0.0005 |contact forces, clipped to +-1|^2
        + 0.05 while the torso's height is in [0.2, 1]. Velocities are means over the control step of 0.05 s.
    Episode end
        Terminates when the height leaves [0.2, 1]; truncated after `horizon` steps (200).
    Source
        Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.3 and appendix A.2 (200 steps); weights
        and the 1 ("make it happy, not suicidal") from `rllab/envs/mujoco/ant_env_rand.py` in
        github.com/cbfinn/maml_rl, whose observation and model differ from Gymnasium's.
    Version history
        v0: initial.
    """

    id = "AntVel-v0"
    splits: ClassVar[tuple[str, ...]] = (*SPLITS, "ood")
    env_kwargs: ClassVar[dict[str, Any]] = MAML_WEIGHTS

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)
        self.task_space = gym.spaces.Dict({"velocity": gym.spaces.Box(0.0, 3.0, (), np.float64)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split, self.splits)
        return {"velocity": rng.uniform(3.0, 4.5, n) if split == "ood" else rng.uniform(0.0, 3.0, n)}

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        forward = 1.0 - np.abs(_velocity(before, after, self.dt)[:, 0] - task["velocity"])
        return self.minus_costs(forward, after, action)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        return _plus_costs(1.0 - abs(info["x_velocity"] - float(task["velocity"])), info)


class AntGoal(_Ant):
    """A four-legged robot walks to a place it is not told, in a square (MAML's Ant goal).

    Task parameters and their distribution
        `goal` [2]: uniform in the square [-3, 3]^2.
    Splits
        Train, validation and test goals come from the same distribution, by generators that share no draw.
    Observation
        That of Gymnasium's `Ant-v5` with the position in the plane, `Box(-inf, inf, (107,))`: positions, velocities,
        contact forces.
    Action
        Torques of the eight joints, `Box(-1, 1, (8,))`.
    Reward
        4 - (|x - goal x| + |y - goal y|) - 0.005 |action|^2 - 0.0005 |contact forces, clipped to +-1|^2 + 0.05 while
        the torso's height is in [0.2, 1].
    Episode end
        Terminates when the height leaves [0.2, 1]; truncated after `horizon` steps (200).
    Source
        `rllab/envs/mujoco/ant_env_rand_goal.py` in github.com/cbfinn/maml_rl, whose observation and model differ from
        Gymnasium's.
    Version history
        v0: initial.
    """

    id = "AntGoal-v0"
    env_kwargs: ClassVar[dict[str, Any]] = {**MAML_WEIGHTS, "exclude_current_positions_from_observation": False}
    offset: ClassVar[float] = 4.0
    extent: ClassVar[float] = 3.0

    def __init__(self, horizon: int = 200):
        super().__init__(horizon)
        self.task_space = gym.spaces.Dict({"goal": gym.spaces.Box(-self.extent, self.extent, (2,), np.float64)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        return {"goal": split_rng(rng, split).uniform(-self.extent, self.extent, (n, 2))}

    def reward(self, before: Physics, after: Physics, action: np.ndarray, task: Tasks) -> np.ndarray:
        distance = np.abs(after.qpos[:, :2] - task["goal"]).sum(1)
        return self.minus_costs(self.offset - distance, after, action)

    def plain_reward(self, reward: float, info: dict[str, Any], action: np.ndarray, task: Task) -> float:
        x, y = task["goal"]
        return _plus_costs(self.offset - (abs(info["x_position"] - x) + abs(info["y_position"] - y)), info)


class AntGoalDisc(AntGoal):
    """A four-legged robot walks to a place it is not told, in a disc (PEARL's Ant goal).

    Task parameters and their distribution
        `goal` [2]: uniform in the disc of radius 3.
    Splits
        Train, validation and test goals come from the same distribution, by generators that share no draw.
    Observation
        That of Gymnasium's `Ant-v5` with the position in the plane, `Box(-inf, inf, (107,))`: positions, velocities,
        contact forces.
    Action
        Torques of the eight joints, `Box(-1, 1, (8,))`.
    Reward
        -(|x - goal x| + |y - goal y|) - 0.1 |action|^2 - 0.0005 |contact forces, clipped to +-1|^2.
    Episode end
        Truncated after `horizon` steps (200); nothing terminates, even if the robot falls.
    Source
        Rakelly et al. 2019, https://arxiv.org/abs/1903.08254; `rlkit/envs/ant_goal.py` in
        github.com/katerakelly/oyster, whose model differs from Gymnasium's.
    Version history
        v0: initial.
    """

    id = "AntGoalDisc-v0"
    env_kwargs: ClassVar[dict[str, Any]] = {
        "ctrl_cost_weight": 0.1,
        "contact_cost_weight": CONTACT_COST,
        "healthy_reward": 0.0,
        "terminate_when_unhealthy": False,
        "exclude_current_positions_from_observation": False,
    }
    offset: ClassVar[float] = 0.0

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split)
        angle, radius = rng.uniform(0.0, 2 * math.pi, n), self.extent * np.sqrt(rng.uniform(0.0, 1.0, n))
        return {"goal": np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)}


# ---------------------------------------------------------------------------------------------------------------------
# What Gymnasium's Ant-v5 computes, for many at once


def _contact_forces(physics: Physics) -> np.ndarray:
    """Forces and torques on every body, clipped to +-1, [N, 6 * bodies]."""
    forces = physics.fields["cfrc_ext"]
    return np.clip(forces.reshape(len(forces), -1), -1.0, 1.0)


def _healthy(physics: Physics) -> np.ndarray:
    """Whether the torso is neither too low nor too high, [N]."""
    height = physics.qpos[:, 2]
    finite = np.isfinite(physics.qpos).all(1) & np.isfinite(physics.qvel).all(1)
    return finite & (height >= 0.2) & (height <= 1.0)


def _velocity(before: Physics, after: Physics, dt: float) -> np.ndarray:
    """The torso's mean velocity in the plane, [N, 2]."""
    return (after.fields["xpos"][:, TORSO, :2] - before.fields["xpos"][:, TORSO, :2]) / dt


def _plus_costs(forward: float, info: dict[str, Any]) -> float:
    """`_Ant.minus_costs` from what one step of Gymnasium's environment says about its reward."""
    return forward + info["reward_ctrl"] + info["reward_contact"] + info["reward_survive"]
