"""2D navigation: a point that must reach a goal it cannot see, with dense and with sparse rewards.

The three families share the functions of this module and nothing else; each class shows its whole task.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.arguments import whole
from metarl.splits import SPLITS, split_rng
from metarl.tasks import Task, Tasks
from metarl.vector.tensor import State, TensorFamily

CORNERS = ((-2.0, -2.0), (2.0, -2.0), (-2.0, 2.0), (2.0, 2.0))

_PIXELS = 256
_WHITE, _GREY, _GREEN, _BLUE = (255, 255, 255), (200, 200, 200), (44, 160, 44), (31, 119, 180)


class PointNavigation(TensorFamily):
    """A point in the plane walks to a goal it cannot see (MAML's 2D navigation).

    Task parameters and their distribution
        `goal` [2]: uniform in the square [-0.5, 0.5]^2.
    Splits
        Train, validation and test goals come from the same distribution, by generators that share no draw. `ood`:
        uniform in the square [-1, 1]^2 without [-0.5, 0.5]^2.
    Observation
        The position, `Box(-inf, inf, (2,))`. It starts at the origin.
    Action
        The displacement, `Box(-0.1, 0.1, (2,))`; larger ones are clipped.
    Reward
        Minus the Euclidean distance to the goal after the step. (The paper's text says squared distance, but its
        numbers fit plain distance: standing still for 100 steps earns -38.3 with plain, -16.7 with squared.)
    Episode end
        Terminates within 0.01 of the goal (the published code: where both coordinates are within 0.01 of it);
        truncated after `horizon` steps (100).
    Source
        Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.3 and appendix A.2.
    Version history
        v0: initial.
    """

    id = "PointNavigation-v0"
    splits: ClassVar[tuple[str, ...]] = (*SPLITS, "ood")
    max_step: ClassVar[float] = 0.1
    goal_radius: ClassVar[float] = 0.01
    extent: ClassVar[float] = 0.5
    view: ClassVar[float] = 0.75
    render_modes = ("rgb_array",)

    def __init__(self, horizon: int = 100):
        self.horizon = whole("horizon", horizon, 1)
        self.observation_space, self.action_space = _plane(), _displacements(self.max_step)
        goals = gym.spaces.Box(-self.extent, self.extent, (2,), np.float32)
        self.task_space = gym.spaces.Dict({"goal": goals})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split, self.splits)
        if split == "ood":
            return {"goal": around_square(rng, n, self.extent)}
        return {"goal": rng.uniform(-self.extent, self.extent, (n, 2)).astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"position": draws.new_zeros(*draws.shape[:-1], 2)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["position"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        position = walk(state["position"], action, self.max_step)
        distance = distance_between(position, task["goal"])
        return {"position": position}, -distance, distance < self.goal_radius

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        return picture(state["position"], [task["goal"]], task["goal"], 0.0, self.view)

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """The goal and the paths of some episodes on matplotlib axes; observations are positions [T_e, 2]."""
        draw_paths(axes, [task["goal"]], task["goal"], self.goal_radius, self.view, observations)


class PointNavigationSparse(TensorFamily):
    """A point looks for a goal on a half circle and is rewarded only close to it (PEARL's sparse 2D navigation).

    Task parameters and their distribution
        `goal` [2]: on the upper half of the unit circle, its angle uniform in [0, pi]. (PEARL takes 100 angles with
        equal distances in [0, pi], 80 of them for training.) Any goal in [-1, 1] x [0, 1] can be made.
    Splits
        Train, validation and test goals come from the same distribution, by generators that share no draw. `ood`:
        on the lower half of the unit circle, the angle uniform in [pi, 2 pi].
    Observation
        The position, `Box(-inf, inf, (2,))`. It starts at the origin.
    Action
        The displacement, `Box(-0.1, 0.1, (2,))`; larger ones are clipped.
    Reward
        1 - distance where the distance to the goal after the step is at most `goal_radius` (0.2), else 0.
    Episode end
        Truncated after `horizon` steps (20); nothing terminates.
    Source
        Rakelly et al. 2019, https://arxiv.org/abs/1903.08254; the numbers are those of `rlkit/envs/point_robot.py`
        and `configs/sparse-point-robot.json` in github.com/katerakelly/oyster. (Its `step` returns the dense reward,
        to be used in meta-training, and the sparse one beside it; this family has the sparse one only.)
    Version history
        v0: initial.
    """

    id = "PointNavigationSparse-v0"
    splits: ClassVar[tuple[str, ...]] = (*SPLITS, "ood")
    max_step: ClassVar[float] = 0.1
    view: ClassVar[float] = 1.3
    render_modes = ("rgb_array",)

    def __init__(self, horizon: int = 20, goal_radius: float = 0.2):
        if not goal_radius > 0:
            raise ValueError(f"goal_radius must be positive, got {goal_radius}")
        self.horizon, self.goal_radius = whole("horizon", horizon, 1), goal_radius
        self.observation_space, self.action_space = _plane(), _displacements(self.max_step)
        low, high = np.array([-1, 0], np.float32), np.array([1, 1], np.float32)
        self.task_space = gym.spaces.Dict({"goal": gym.spaces.Box(low, high, dtype=np.float32)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        angle = split_rng(rng, split, self.splits).uniform(0, math.pi, n) + math.pi * (split == "ood")
        return {"goal": np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"position": draws.new_zeros(*draws.shape[:-1], 2)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["position"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        position = walk(state["position"], action, self.max_step)
        distance = distance_between(position, task["goal"])
        return {"position": position}, torch.where(distance <= self.goal_radius, 1 - distance, 0.0), None

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        return picture(state["position"], [task["goal"]], task["goal"], self.goal_radius, self.view)

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """The goal and the paths of some episodes on matplotlib axes; observations are positions [T_e, 2]."""
        draw_paths(axes, [task["goal"]], task["goal"], self.goal_radius, self.view, observations)


class PointNavigationCorners(TensorFamily):
    """A point must find out which of four corners is rewarded (ProMP's exploration test).

    Task parameters and their distribution
        `corner`: 0, 1, 2 or 3 with equal probability, for (-2, -2), (2, -2), (-2, 2), (2, 2).
    Splits
        Four tasks are all there are: training, validation and testing draw from the same ones (`shared_splits`), by
        generators that share no draw.
    Observation
        The position, `Box(-inf, inf, (2,))`. It starts uniformly in [-0.2, 0.2]^2.
    Action
        The displacement, `Box(-0.2, 0.2, (2,))`; larger ones are clipped.
    Reward
        How much closer to its corner the step came, where after the step no other corner is nearer and
        |x| + |y| >= `start_radius` (0.5); else 0. So a policy learns of its corner only once it walks that way.
    Episode end
        Truncated after `horizon` steps (100); nothing terminates.
    Source
        Rothfuss et al. 2019, https://arxiv.org/abs/1810.06784; the numbers are those of
        `meta_policy_search/envs/point_envs/point_env_2d_corner.py` and `run_scripts/pro-mp_run_point_mass.py` in
        github.com/jonasrothfuss/ProMP.
    Version history
        v0: initial.
    """

    id = "PointNavigationCorners-v0"
    shared_splits: ClassVar[bool] = True
    max_step: ClassVar[float] = 0.2
    start_extent: ClassVar[float] = 0.2
    view: ClassVar[float] = 2.6
    reset_draws = 2
    render_modes = ("rgb_array",)

    def __init__(self, horizon: int = 100, start_radius: float = 0.5):
        if not start_radius >= 0:
            raise ValueError(f"start_radius must not be negative, got {start_radius}")
        self.horizon, self.start_radius = whole("horizon", horizon, 1), start_radius
        self.observation_space, self.action_space = _plane(), _displacements(self.max_step)
        self.task_space = gym.spaces.Dict({"corner": gym.spaces.Discrete(len(CORNERS))})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        return {"corner": split_rng(rng, split).integers(len(CORNERS), size=n)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"position": (2 * draws - 1) * self.start_extent}

    def observe(self, state: State, task: State) -> Tensor:
        return state["position"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        position = walk(state["position"], action, self.max_step)
        corners = position.new_tensor(CORNERS)
        before = distance_between(state["position"], corners[task["corner"]])
        distances = distance_between(position[..., None, :], corners)  # [K, E, 4]
        after = distances.gather(-1, task["corner"][..., None]).squeeze(-1)
        rewarded = (after <= distances.amin(-1)) & (position.abs().sum(-1) >= self.start_radius)
        return {"position": position}, torch.where(rewarded, before - after, 0.0), None

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        return picture(state["position"], CORNERS, CORNERS[int(task["corner"])], 0.0, self.view)

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """The corners and the paths of some episodes on matplotlib axes; observations are positions [T_e, 2]."""
        draw_paths(axes, CORNERS, CORNERS[int(task["corner"])], 0.0, self.view, observations)


# ---------------------------------------------------------------------------------------------------------------------
# What the three have in common


def around_square(rng: np.random.Generator, n: int, extent: float, factor: float = 2.0) -> np.ndarray:
    """`n` points [n, 2], float32, uniform in the square +-factor * extent without the square +-extent in its middle."""
    points = rng.uniform(-1.0, 1.0, (n, 2))
    radius = np.abs(points).max(1, keepdims=True)
    least = factor**-2.0  # the radius' square is uniform in [0, 1]; wanted is one in [least, 1]
    return (points / radius * np.sqrt(least + (1 - least) * radius**2) * factor * extent).astype(np.float32)


def walk(position: Tensor, action: Tensor, max_step: float) -> Tensor:
    """The position after a step whose coordinates are clipped to +-max_step."""
    return position + action.clamp(-max_step, max_step)


def distance_between(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of points [..., 2]."""
    return torch.linalg.vector_norm(a - b, dim=-1)


def picture(position: Tensor, marks: Sequence[Any], goal: Any, radius: float, view: float) -> np.ndarray:
    """An image [256, 256, 3] of the square +-view: goal green, other marks grey, the point blue and never cut off."""
    image = np.full((_PIXELS, _PIXELS, 3), _WHITE, np.uint8)
    dot = 0.025 * view
    for mark in marks:
        _disc(image, mark, 2 * dot, view, _GREY)
    if radius > 0:
        _disc(image, goal, radius, view, _GREY)
    _disc(image, goal, 2 * dot, view, _GREEN)
    _disc(image, position.reshape(2).cpu().numpy().clip(-view, view), dot, view, _BLUE)
    return image


def _disc(image: np.ndarray, centre: Any, radius: float, view: float, colour: tuple[int, int, int]) -> None:
    axis = (2 * np.arange(_PIXELS) + 1 - _PIXELS) / _PIXELS * view
    x, y = axis[None, :], -axis[:, None]  # row 0 is the top
    image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2] = colour


def draw_paths(
    axes: Any, marks: Sequence[Any], goal: Any, radius: float, view: float, paths: Sequence[np.ndarray]
) -> None:
    """Paths [T_e, 2], a star at the goal and a circle of `radius` around it on matplotlib axes."""
    for path in paths:
        axes.plot(path[:, 0], path[:, 1], linewidth=0.8, alpha=0.7, zorder=1)
    axes.scatter(*np.asarray(marks).T, marker="o", color="lightgrey", zorder=2)
    angle = np.linspace(0, 2 * math.pi, 100)
    axes.plot(goal[0] + radius * np.cos(angle), goal[1] + radius * np.sin(angle), color="tab:green", linewidth=0.8)
    axes.scatter([goal[0]], [goal[1]], marker="*", s=90, color="tab:green", zorder=3)
    axes.update_datalim([(-view, -view), (view, view)])
    axes.autoscale_view()
    axes.set_aspect("equal")


def _plane() -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


def _displacements(max_step: float) -> gym.spaces.Box:
    return gym.spaces.Box(-max_step, max_step, (2,), np.float32)
