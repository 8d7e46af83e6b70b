"""CartPole with other masses, lengths, forces and gravities."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.tasks import Task
from metarl.vector.tensor import State
from metarl_envs.drawing import BLACK, BLUE, GREY, ORANGE, Picture
from metarl_envs.parameters import POSITIVE, Parameter, ParameterFamily, Range


class CartPoleParams(ParameterFamily):
    """Balance a pole on a cart whose masses, length, force and gravity are hidden (Gymnasium's CartPole-v1).

    Task parameters and their distribution
        Named as Gymnasium's attributes, independent and uniform; in brackets Gymnasium's value.
        `gravity` [m/s^2]: 4.9 to 14.7 (9.8). `masscart` [kg]: 0.5 to 1.5 (1.0). `masspole` [kg]: 0.05 to 0.5 (0.1).
        `length` [m], half the pole: 0.25 to 0.75 (0.5). `force_mag` [N]: 5 to 15 (10); a negative one swaps the
        two actions. `ranges={"length": (0.3, 1.5), "gravity": 9.8}` replaces ranges, a single number fixes a parameter.
    Splits
        Train, validation and test tasks come from the same ranges, by generators that share no draw; `test_ranges`
        replaces ranges for testing only. `ood`: every parameter that varies is outside its training range, below or
        above it by at most a quarter of the range's width.
    Observation
        Cart position [m], cart velocity [m/s], pole angle [rad], pole angular velocity [rad/s]: a `Box` of 4. Each
        starts uniformly in [-0.05, 0.05].
    Action
        `Discrete(2)`: push to the left or to the right.
    Reward
        1 for every step, the last one too; with `sutton_barto_reward=True` -1 for the step that ends the episode,
        else 0. Pushing at random earns about 22 with Gymnasium's values, the most is `horizon`.
    Episode end
        Terminates where the cart leaves +-2.4 m or the pole +-12 degrees; truncated after `horizon` steps (500).
    Source
        Barto, Sutton, Anderson 1983, https://ieeexplore.ieee.org/document/6313077, as CartPole-v1 of Gymnasium 1.4
        (explicit Euler steps of 0.02 s), which it equals step by step. The ranges of force, length and pole mass
        are the regular ones of Packer et al. 2018, https://arxiv.org/abs/1810.12282 and
        github.com/sunblaze-ucb/rl-generalization; those of gravity and cart mass are half and one and a half times
        Gymnasium's value.
    Version history
        v0: initial.
    """

    id = "CartPoleParams-v0"
    parameters: ClassVar[dict[str, Parameter]] = {
        "gravity": Parameter(9.8, 4.9, 14.7),
        "masscart": Parameter(1.0, 0.5, 1.5, POSITIVE),
        "masspole": Parameter(0.1, 0.05, 0.5, POSITIVE),
        "length": Parameter(0.5, 0.25, 0.75, POSITIVE),
        "force_mag": Parameter(10.0, 5.0, 15.0),
    }
    time_step: ClassVar[float] = 0.02
    max_position: ClassVar[float] = 2.4
    max_angle: ClassVar[float] = 12 * 2 * math.pi / 360
    reset_draws = 4
    render_modes = ("rgb_array",)

    def __init__(
        self,
        horizon: int = 500,
        ranges: Mapping[str, Range] | None = None,
        test_ranges: Mapping[str, Range] | None = None,
        sutton_barto_reward: bool = False,
    ):
        super().__init__(horizon, ranges, test_ranges)
        self.sutton_barto_reward = sutton_barto_reward
        # Twice the limits, so that the observation with which an episode ends is inside too.
        high = np.array([2 * self.max_position, np.inf, 2 * self.max_angle, np.inf], np.float32)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def initial(self, task: State, draws: Tensor) -> State:
        start = 0.05 * (2 * draws - 1)
        return dict(zip(("x", "x_dot", "theta", "theta_dot"), start.unbind(-1), strict=True))

    def observe(self, state: State, task: State) -> Tensor:
        return torch.stack([state["x"], state["x_dot"], state["theta"], state["theta_dot"]], -1)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        x_acc, theta_acc = self._accelerations(state, action, task)
        dt = self.time_step  # explicit Euler: positions move by the old velocities
        following = {
            "x": state["x"] + dt * state["x_dot"],
            "x_dot": state["x_dot"] + dt * x_acc,
            "theta": state["theta"] + dt * state["theta_dot"],
            "theta_dot": state["theta_dot"] + dt * theta_acc,
        }
        fallen = (following["x"].abs() > self.max_position) | (following["theta"].abs() > self.max_angle)
        reward = -fallen.to(x_acc.dtype) if self.sutton_barto_reward else torch.ones_like(x_acc)
        return following, reward, fallen

    def _accelerations(self, state: State, action: Tensor, task: State) -> tuple[Tensor, Tensor]:
        """Of the cart [m/s^2] and of the pole [rad/s^2]; see https://coneural.org/florian/papers/05_cart_pole.pdf."""
        sin, cos = state["theta"].sin(), state["theta"].cos()
        force = torch.where(action == 1, task["force_mag"], -task["force_mag"])
        mass = task["masscart"] + task["masspole"]
        moment = task["masspole"] * task["length"]
        push = (force + moment * state["theta_dot"].square() * sin) / mass
        inertia = task["length"] * (4 / 3 - task["masspole"] * cos.square() / mass)
        theta_acc = (task["gravity"] * sin - cos * push) / inertia
        return push - moment * theta_acc * cos / mass, theta_acc

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        x, theta = float(state["x"]), float(state["theta"])
        pole = 2 * float(task["length"])
        picture = Picture(half=2.6, centre=(0.0, 0.8))
        picture.stroke((-self.max_position, -0.2), (self.max_position, -0.2), 0.04, GREY)
        picture.stroke((x - 0.25, 0.0), (x + 0.25, 0.0), 0.3, BLACK)
        picture.stroke((x, 0.0), (x + pole * math.sin(theta), pole * math.cos(theta)), 0.12, ORANGE)
        picture.disc((x, 0.0), 0.06, BLUE)
        return picture.image

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """Cart position against pole angle, and the limits of both; observations [T_e, 4]."""
        limit = math.degrees(self.max_angle)
        for episode in observations:
            axes.plot(episode[:, 0], np.degrees(episode[:, 2]), linewidth=0.8, alpha=0.7)
        box = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * [self.max_position, limit]
        axes.plot(*box.T, color="lightgrey", linewidth=0.8)
        axes.set(xlabel="cart position [m]", ylabel="pole angle [degrees]")
