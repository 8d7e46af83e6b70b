"""Acrobot with other link lengths, masses, moments of inertia and gravities."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.tasks import Task
from metarl.vector.tensor import State
from metarl_envs.drawing import BLACK, BLUE, GREEN, ORANGE, Picture
from metarl_envs.parameters import POSITIVE, Parameter, ParameterFamily, Range
from metarl_envs.pendulum import wrap

NAMES = ("theta1", "theta2", "dtheta1", "dtheta2")


class AcrobotParams(ParameterFamily):
    """Swing up a double pendulum whose lengths, masses, inertia and gravity are hidden (Gymnasium's Acrobot-v1).

    Task parameters and their distribution
        Named as Gymnasium's attributes in lower case, independent and uniform; in brackets Gymnasium's value.
        `link_length_1`, `link_length_2` [m], `link_mass_1`, `link_mass_2` [kg]: 0.75 to 1.25 each (1.0).
        `link_moi` [kg m^2], the moment of inertia of either link: 0.75 to 1.25 (1.0).
        `gravity` [m/s^2]: 7.35 to 12.25 (9.8; a constant in Gymnasium's code).
        The centres of mass lie in the middle of the links, as in Gymnasium's own (0.5 m of 1 m).
        `ranges={"link_mass_2": (0.5, 2.0), "gravity": 9.8}` replaces ranges, a single number fixes a parameter.
    Splits
        Train, validation and test tasks come from the same ranges, by generators that share no draw; `test_ranges`
        replaces ranges for testing only. `ood`: every parameter that varies is outside its training range, below or
        above it by at most a quarter of the range's width.
    Observation
        Cosine and sine of the first angle (0 hangs down) and of the second (0 goes on straight), both angular
        velocities [rad/s]: a `Box` of 6. Both angles and velocities start uniformly in [-0.1, 0.1].
    Action
        `Discrete(3)`: a torque of -1, 0 or 1 N m on the joint between the links.
    Reward
        -1 for every step, 0 for the one that reaches the height.
    Episode end
        Terminates where -cos(angle 1) - cos(angle 1 + angle 2) > 1, which is the height of the tip of two links of
        1 m: Gymnasium's rule leaves the lengths out, and so does this one. Truncated after `horizon` steps (500).
    Source
        Sutton 1996, "Generalization in Reinforcement Learning: Successful Examples Using Sparse Coarse Coding", as
        Acrobot-v1 of Gymnasium 1.4 (the dynamics of the book, one Runge-Kutta step of fourth order for 0.2 s, angular
        velocities within 4 pi and 9 pi), which it equals step by step. The ranges are the regular ones of Packer et
        al. 2018, https://arxiv.org/abs/1810.12282, for length, mass and inertia; gravity varies as much.
    Version history
        v0: initial.
    """

    id = "AcrobotParams-v0"
    parameters: ClassVar[dict[str, Parameter]] = {
        "link_length_1": Parameter(1.0, 0.75, 1.25, POSITIVE),
        "link_length_2": Parameter(1.0, 0.75, 1.25, POSITIVE),
        "link_mass_1": Parameter(1.0, 0.75, 1.25, POSITIVE),
        "link_mass_2": Parameter(1.0, 0.75, 1.25, POSITIVE),
        "link_moi": Parameter(1.0, 0.75, 1.25, POSITIVE),
        "gravity": Parameter(9.8, 7.35, 12.25),
    }
    time_step: ClassVar[float] = 0.2
    max_speeds: ClassVar[tuple[float, float]] = (4 * math.pi, 9 * math.pi)
    goal_height: ClassVar[float] = 1.0
    reset_draws = 4
    render_modes = ("rgb_array",)

    def __init__(
        self,
        horizon: int = 500,
        ranges: Mapping[str, Range] | None = None,
        test_ranges: Mapping[str, Range] | None = None,
    ):
        super().__init__(horizon, ranges, test_ranges)
        high = np.array([1, 1, 1, 1, *self.max_speeds], np.float32)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gym.spaces.Discrete(3)

    def initial(self, task: State, draws: Tensor) -> State:
        return dict(zip(NAMES, (0.1 * (2 * draws - 1)).unbind(-1), strict=True))

    def observe(self, state: State, task: State) -> Tensor:
        one, two = state["theta1"], state["theta2"]
        return torch.stack([one.cos(), one.sin(), two.cos(), two.sin(), state["dtheta1"], state["dtheta2"]], -1)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        y = torch.stack([state[name] for name in NAMES])
        theta1, theta2, dtheta1, dtheta2 = runge_kutta(y, action - 1, task, self.time_step)
        fast1, fast2 = self.max_speeds
        theta1, theta2 = wrap(theta1), wrap(theta2)
        reached = -theta1.cos() - (theta1 + theta2).cos() > self.goal_height
        values = theta1, theta2, dtheta1.clamp(-fast1, fast1), dtheta2.clamp(-fast2, fast2)
        return dict(zip(NAMES, values, strict=True)), reached.to(y.dtype) - 1, reached

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        lengths = float(task["link_length_1"]), float(task["link_length_2"])
        angle1, angle2 = float(state["theta1"]), float(state["theta1"] + state["theta2"])
        elbow = lengths[0] * np.array([math.sin(angle1), -math.cos(angle1)])
        tip = elbow + lengths[1] * np.array([math.sin(angle2), -math.cos(angle2)])
        half = 1.1 * max(2.0, sum(lengths))
        picture = Picture(half)
        picture.stroke((-half, self.goal_height), (half, self.goal_height), 0.03, GREEN)
        picture.stroke((0.0, 0.0), elbow, 0.2, BLUE)
        picture.stroke(elbow, tip, 0.16, ORANGE)
        picture.disc((0.0, 0.0), 0.06, BLACK)
        return picture.image

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """The height that decides, over time, and where it ends an episode; observations [T_e, 6]."""
        for episode in observations:
            cos1, sin1, cos2, sin2 = episode[:, :4].T
            axes.plot(-cos1 - (cos1 * cos2 - sin1 * sin2), linewidth=0.8, alpha=0.7)
        axes.axhline(self.goal_height, color="tab:green", linewidth=0.8)
        axes.set(xlabel="step", ylabel="height of the tip", ylim=(-2.1, 2.1))


def runge_kutta(y: Tensor, torque: Tensor, task: State, dt: float) -> Tensor:
    """One step of the classical fourth order; y [4, K, E] of the two angles and their velocities."""
    k1 = derivatives(y, torque, task)
    k2 = derivatives(y + dt / 2 * k1, torque, task)
    k3 = derivatives(y + dt / 2 * k2, torque, task)
    k4 = derivatives(y + dt * k3, torque, task)
    return y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def derivatives(y: Tensor, torque: Tensor, task: State) -> Tensor:
    """Of y [4, K, E] with respect to time; Sutton and Barto 1998, figure 11.5, in their letters."""
    theta1, theta2, dtheta1, dtheta2 = y
    m1, m2, l1, inertia, g = (
        task[name] for name in ("link_mass_1", "link_mass_2", "link_length_1", "link_moi", "gravity")
    )
    lc1, lc2 = l1 / 2, task["link_length_2"] / 2
    sin2, cos2 = theta2.sin(), theta2.cos()
    d1 = m1 * lc1.square() + m2 * (l1.square() + lc2.square() + 2 * l1 * lc2 * cos2) + 2 * inertia
    d2 = m2 * (lc2.square() + l1 * lc2 * cos2) + inertia
    phi2 = m2 * lc2 * g * (theta1 + theta2).sin()
    phi1 = (
        -m2 * l1 * lc2 * sin2 * (dtheta2.square() + 2 * dtheta1 * dtheta2)
        + (m1 * lc1 + m2 * l1) * g * theta1.sin()
        + phi2
    )
    centrifugal = m2 * l1 * lc2 * dtheta1.square() * sin2
    ddtheta2 = (torque + d2 / d1 * phi1 - centrifugal - phi2) / (m2 * lc2.square() + inertia - d2.square() / d1)
    ddtheta1 = -(d2 * ddtheta2 + phi1) / d1
    return torch.stack([dtheta1, dtheta2, ddtheta1, ddtheta2])
