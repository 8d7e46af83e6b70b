"""Pendulum with other gravities, masses and lengths."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.tasks import Task
from metarl.vector.tensor import State
from metarl_envs.drawing import BLACK, BLUE, GREY, Picture
from metarl_envs.parameters import POSITIVE, Parameter, ParameterFamily, Range


class PendulumParams(ParameterFamily):
    """Swing up and hold a pendulum whose gravity, mass and length are hidden (Gymnasium's Pendulum-v1).

    Task parameters and their distribution
        Named as Gymnasium's attributes, independent and uniform; in brackets Gymnasium's value.
        `g` [m/s^2]: 5 to 15 (10). `m` [kg]: 0.75 to 1.25 (1.0). `l` [m]: 0.75 to 1.25 (1.0).
        `ranges={"g": (2.0, 20.0), "m": 1.0}` replaces ranges, a single number fixes a parameter.
    Splits
        Train, validation and test tasks come from the same ranges, by generators that share no draw; `test_ranges`
        replaces ranges for testing only. `ood`: every parameter that varies is outside its training range, below or
        above it by at most a quarter of the range's width.
    Observation
        Cosine and sine of the angle from upright, angular velocity [rad/s]: a `Box` of 3. The angle starts
        uniformly in [-pi, pi], the angular velocity in [-1, 1].
    Action
        The torque [N m], `Box(-2, 2, (1,))`; larger ones are clipped.
    Reward
        -(angle^2 + 0.1 velocity^2 + 0.001 torque^2) of the state before the step, angle in [-pi, pi].
    Episode end
        Truncated after `horizon` steps (200); nothing terminates.
    Source
        Pendulum-v1 of Gymnasium 1.4 (steps of 0.05 s, angular velocity within 8 rad/s), which it equals step by step.
        The ranges of mass and length are the regular ones of Packer et al. 2018, https://arxiv.org/abs/1810.12282;
        that of gravity is half and one and a half times Gymnasium's value.
    Version history
        v0: initial.
    """

    id = "PendulumParams-v0"
    parameters: ClassVar[dict[str, Parameter]] = {
        "g": Parameter(10.0, 5.0, 15.0),
        "m": Parameter(1.0, 0.75, 1.25, POSITIVE),
        "l": Parameter(1.0, 0.75, 1.25, POSITIVE),
    }
    time_step: ClassVar[float] = 0.05
    max_speed: ClassVar[float] = 8.0
    max_torque: ClassVar[float] = 2.0
    reset_draws = 2
    render_modes = ("rgb_array",)

    def __init__(
        self,
        horizon: int = 200,
        ranges: Mapping[str, Range] | None = None,
        test_ranges: Mapping[str, Range] | None = None,
    ):
        super().__init__(horizon, ranges, test_ranges)
        high = np.array([1, 1, self.max_speed], np.float32)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-self.max_torque, self.max_torque, (1,), np.float32)

    def initial(self, task: State, draws: Tensor) -> State:
        start = 2 * draws - 1
        return {"theta": math.pi * start[..., 0], "theta_dot": start[..., 1]}

    def observe(self, state: State, task: State) -> Tensor:
        return torch.stack([state["theta"].cos(), state["theta"].sin(), state["theta_dot"]], -1)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        theta, speed = state["theta"], state["theta_dot"]
        torque = action[..., 0].clamp(-self.max_torque, self.max_torque)
        cost = theta.square() + 0.1 * speed.square() + 0.001 * torque.square()
        fall = 3 * task["g"] / (2 * task["l"]) * theta.sin()
        drive = 3 / (task["m"] * task["l"].square()) * torque
        speed = (speed + (fall + drive) * self.time_step).clamp(-self.max_speed, self.max_speed)
        # Gymnasium lets the angle grow; wrapped, it keeps float32's full precision.
        return {"theta": wrap(theta + speed * self.time_step), "theta_dot": speed}, -cost, None

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        theta, length = float(state["theta"]), float(task["l"])
        picture = Picture(half=1.2 * max(1.25, length))
        picture.disc((0.0, 0.0), length, GREY)
        picture.stroke((0.0, 0.0), (-length * math.sin(theta), length * math.cos(theta)), 0.15, BLUE)
        picture.disc((0.0, 0.0), 0.05, BLACK)
        return picture.image

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """Angle against angular velocity, and the goal at the origin; observations [T_e, 3]."""
        for episode in observations:
            angle, speed = np.arctan2(episode[:, 1], episode[:, 0]), episode[:, 2]
            turns = np.flatnonzero(np.abs(np.diff(angle)) > math.pi) + 1  # no line across the plot from pi to -pi
            axes.plot(np.insert(angle, turns, np.nan), np.insert(speed, turns, np.nan), linewidth=0.8, alpha=0.7)
        axes.scatter([0], [0], marker="*", s=90, color="tab:green", zorder=3)
        axes.set(xlabel="angle from upright [rad]", ylabel="angular velocity [rad/s]")


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi]."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
