"""MountainCar and MountainCarContinuous with other engines and gravities."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.tasks import Task
from metarl.vector.tensor import State
from metarl_envs.drawing import BLACK, BLUE, GREEN, GREY, Picture
from metarl_envs.parameters import Parameter, ParameterFamily, Range

MIN_POSITION, MAX_POSITION, MAX_SPEED = -1.2, 0.6, 0.07


class MountainCarParams(ParameterFamily):
    """Drive a weak car out of a valley; engine and gravity are hidden (Gymnasium's MountainCar-v0).

    Task parameters and their distribution
        Named as Gymnasium's attributes, independent and uniform; in brackets Gymnasium's value. Both in units of
        position per squared step.
        `force`: 0.0005 to 0.005 (0.001); a negative one swaps left and right. `gravity`: 0.001 to 0.005 (0.0025).
        Where force exceeds gravity the car needs no swing.
        `ranges={"force": (0.0005, 0.002), "gravity": 0.0025}` replaces ranges, a single number fixes a parameter.
    Splits
        Train, validation and test tasks come from the same ranges, by generators that share no draw; `test_ranges`
        replaces ranges for testing only. `ood`: every parameter that varies is outside its training range, below or
        above it by at most a quarter of the range's width.
    Observation
        Position and velocity per step: a `Box` of 2. It starts at rest, uniformly in [-0.6, -0.4].
    Action
        `Discrete(3)`: accelerate to the left, not at all, to the right.
    Reward
        -1 for every step, the last one too.
    Episode end
        Terminates at position 0.5; truncated after `horizon` steps (200).
    Source
        Moore 1990, "Efficient Memory-based Learning for Robot Control", as MountainCar-v0 of Gymnasium 1.4, which it
        equals step by step. The ranges are the regular ones of Packer et al. 2018, https://arxiv.org/abs/1810.12282
        and github.com/sunblaze-ucb/rl-generalization (where gravity is called mass).
    Version history
        v0: initial.
    """

    id = "MountainCarParams-v0"
    parameters: ClassVar[dict[str, Parameter]] = {
        "force": Parameter(0.001, 0.0005, 0.005),
        "gravity": Parameter(0.0025, 0.001, 0.005),
    }
    goal: ClassVar[float] = 0.5
    reset_draws = 1
    render_modes = ("rgb_array",)

    def __init__(
        self,
        horizon: int = 200,
        ranges: Mapping[str, Range] | None = None,
        test_ranges: Mapping[str, Range] | None = None,
    ):
        super().__init__(horizon, ranges, test_ranges)
        self.observation_space, self.action_space = _valley(), gym.spaces.Discrete(3)

    def initial(self, task: State, draws: Tensor) -> State:
        return at_rest(draws)

    def observe(self, state: State, task: State) -> Tensor:
        return torch.stack([state["position"], state["velocity"]], -1)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        following = drive(state, (action - 1) * task["force"], task["gravity"])
        return following, -torch.ones_like(following["position"]), arrived(following, self.goal)

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        return picture(float(state["position"]), self.goal)

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """Position against velocity, and the goal; observations [T_e, 2]."""
        draw_phases(axes, self.goal, observations)


class MountainCarContinuousParams(ParameterFamily):
    """Drive a weak car out of a valley on little fuel; engine and gravity are hidden (MountainCarContinuous-v0).

    Task parameters and their distribution
        Independent and uniform; in brackets Gymnasium's value. Both in units of position per squared step.
        `power`: 0.00075 to 0.0075 (0.0015), the acceleration by an action of 1; a negative one swaps left and right.
        `gravity`: 0.001 to 0.005 (0.0025; a constant in Gymnasium's code). Where power exceeds gravity the car needs
        no swing.
        `ranges={"power": (0.001, 0.002), "gravity": 0.0025}` replaces ranges, a single number fixes a parameter.
    Splits
        Train, validation and test tasks come from the same ranges, by generators that share no draw; `test_ranges`
        replaces ranges for testing only. `ood`: every parameter that varies is outside its training range, below or
        above it by at most a quarter of the range's width.
    Observation
        Position and velocity per step: a `Box` of 2. It starts at rest, uniformly in [-0.6, -0.4].
    Action
        The engine, `Box(-1, 1, (1,))`; larger ones are clipped.
    Reward
        -0.1 action^2 (of the action before clipping, as in Gymnasium), and 100 for the step that arrives.
    Episode end
        Terminates at position 0.45; truncated after `horizon` steps (999).
    Source
        Moore 1990, "Efficient Memory-based Learning for Robot Control", as MountainCarContinuous-v0 of Gymnasium 1.4,
        which it equals step by step. The ranges are those of `MountainCarParams`, power in the same multiples of
        Gymnasium's value as force there.
    Version history
        v0: initial.
    """

    id = "MountainCarContinuousParams-v0"
    parameters: ClassVar[dict[str, Parameter]] = {
        "power": Parameter(0.0015, 0.00075, 0.0075),
        "gravity": Parameter(0.0025, 0.001, 0.005),
    }
    goal: ClassVar[float] = 0.45
    reset_draws = 1
    render_modes = ("rgb_array",)

    def __init__(
        self,
        horizon: int = 999,
        ranges: Mapping[str, Range] | None = None,
        test_ranges: Mapping[str, Range] | None = None,
    ):
        super().__init__(horizon, ranges, test_ranges)
        self.observation_space, self.action_space = _valley(), gym.spaces.Box(-1, 1, (1,), np.float32)

    def initial(self, task: State, draws: Tensor) -> State:
        return at_rest(draws)

    def observe(self, state: State, task: State) -> Tensor:
        return torch.stack([state["position"], state["velocity"]], -1)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        action = action[..., 0]
        following = drive(state, action.clamp(-1, 1) * task["power"], task["gravity"])
        there = arrived(following, self.goal)
        return following, 100 * there.to(action.dtype) - 0.1 * action.square(), there

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        return picture(float(state["position"]), self.goal)

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """Position against velocity, and the goal; observations [T_e, 2]."""
        draw_phases(axes, self.goal, observations)


# ---------------------------------------------------------------------------------------------------------------------
# What the two have in common


def at_rest(draws: Tensor) -> State:
    """The first state: velocity 0, position uniform in [-0.6, -0.4]; draws [K, E, 1]."""
    return {"position": -0.6 + 0.2 * draws[..., 0], "velocity": torch.zeros_like(draws[..., 0])}


def drive(state: State, acceleration: Tensor, gravity: Tensor) -> State:
    """One step; the car stops where it hits the wall on the left."""
    velocity = state["velocity"] + acceleration - gravity * (3 * state["position"]).cos()
    velocity = velocity.clamp(-MAX_SPEED, MAX_SPEED)
    position = (state["position"] + velocity).clamp(MIN_POSITION, MAX_POSITION)
    velocity = torch.where((position <= MIN_POSITION) & (velocity < 0), 0.0, velocity)
    return {"position": position, "velocity": velocity}


def arrived(state: State, goal: float) -> Tensor:
    """Whether the car is at the goal and not on its way back, [K, E] bool."""
    return (state["position"] >= goal) & (state["velocity"] >= 0)


def height(x: Any) -> Any:
    """Of the track, for pictures."""
    return 0.45 * np.sin(3 * x) + 0.55


def picture(position: float, goal: float) -> np.ndarray:
    """The valley [256, 256, 3], a flag at the goal, the car blue."""
    out = Picture(half=1.0, centre=(-0.3, 0.6))
    out.below(np.where((out.x[0] >= MIN_POSITION) & (out.x[0] <= MAX_POSITION), height(out.x[0]), -np.inf), GREY)
    out.stroke((goal, height(goal)), (goal, height(goal) + 0.3), 0.02, BLACK)
    out.disc((goal, height(goal) + 0.3), 0.05, GREEN)
    out.disc((position, height(position) + 0.05), 0.05, BLUE)
    return out.image


def draw_phases(axes: Any, goal: float, episodes: Sequence[np.ndarray]) -> None:
    """Position against velocity [T_e, 2] and a line at the goal on matplotlib axes."""
    for episode in episodes:
        axes.plot(episode[:, 0], episode[:, 1], linewidth=0.8, alpha=0.7)
    axes.axvline(goal, color="tab:green", linewidth=0.8)
    axes.set(xlabel="position", ylabel="velocity per step")


def _valley() -> gym.spaces.Box:
    low, high = np.array([MIN_POSITION, -MAX_SPEED], np.float32), np.array([MAX_POSITION, MAX_SPEED], np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)
