"""2D navigation from images: the picture shows where the point is, and not where it should go."""

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.arguments import whole
from metarl.splits import SPLITS
from metarl.tasks import Task, Tasks, split_rng
from metarl.vector.tensor import State, TensorFamily
from metarl_envs.point_navigation import around_square, distance_between, draw_paths, picture, walk


class PointNavigationPixels(TensorFamily):
    """A point that sees itself in a small picture walks to a goal it cannot see (2D navigation from pixels).

    Task parameters and their distribution
        `goal` [2]: uniform in the square [-0.5, 0.5]^2.
    Splits
        Train, validation and test goals come from the same distribution, by generators that share no draw. `ood`:
        uniform in the square [-0.75, 0.75]^2 without [-0.5, 0.5]^2.
    Observation
        A picture of the square [-0.75, 0.75]^2, `Box(0, 255, (size, size, 1), uint8)`, 16 x 16 pixels unless said
        otherwise; row 0 is the top. The point is a spot whose brightness falls from 255 at its centre to 0 at a
        distance of two pixels: the pixels' brightness also says where between them it is. The spot stays whole; a
        point that is further out is shown at the edge.
    Action
        The displacement, `Box(-0.1, 0.1, (2,))`; larger ones are clipped. The point starts at the origin.
    Reward
        Minus the Euclidean distance to the goal after the step.
    Episode end
        Terminates within 0.01 of the goal; truncated after `horizon` steps (100).
    Source
        PointNavigation-v0 (Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.3), which this is
        but for the observation.
    Version history
        v0: initial.
    """

    id = "PointNavigationPixels-v0"
    splits: ClassVar[tuple[str, ...]] = (*SPLITS, "ood")
    max_step: ClassVar[float] = 0.1
    goal_radius: ClassVar[float] = 0.01
    extent: ClassVar[float] = 0.5
    view: ClassVar[float] = 0.75
    spot: ClassVar[float] = 2.0  # pixels
    render_modes = ("rgb_array",)

    def __init__(self, horizon: int = 100, size: int = 16):
        for name, value, least in (("horizon", horizon, 1), ("size", size, 8)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.horizon, self.size = horizon, size
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 1), np.uint8)
        self.action_space = gym.spaces.Box(-self.max_step, self.max_step, (2,), np.float32)
        goals = gym.spaces.Box(-self.extent, self.extent, (2,), np.float32)
        self.task_space = gym.spaces.Dict({"goal": goals})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split, self.splits)
        if split == "ood":  # all of them are in the picture
            return {"goal": around_square(rng, n, self.extent, self.view / self.extent)}
        return {"goal": rng.uniform(-self.extent, self.extent, (n, 2)).astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"position": draws.new_zeros(*draws.shape[:-1], 2)}

    def observe(self, state: State, task: State) -> Tensor:
        # In pixels, and only by operations that round every number alone: one environment and many see equal images.
        last = self.size - 1
        x, y = (state["position"] / (2 * self.view / self.size)).unbind(-1)
        column = (x + last / 2).clamp(self.spot - 0.5, last + 0.5 - self.spot)
        row = (last / 2 - y).clamp(self.spot - 0.5, last + 0.5 - self.spot)
        pixel = torch.arange(self.size, device=x.device, dtype=x.dtype)
        across, down = pixel - column[..., None], pixel - row[..., None]
        distance = (across[..., None, :] ** 2 + down[..., :, None] ** 2).sqrt()
        brightness = (1 - distance / self.spot).clamp(min=0)
        return (255 * brightness).round().to(torch.uint8)[..., None]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        position = walk(state["position"], action, self.max_step)
        distance = distance_between(position, task["goal"])
        return {"position": position}, -distance, distance < self.goal_radius

    def render_rgb(self, state: State, task: Task) -> np.ndarray:
        return picture(state["position"], [task["goal"]], task["goal"], 0.0, self.view)

    def draw(self, axes: Any, task: Task, observations: Sequence[np.ndarray]) -> None:
        """The goal and the paths of some episodes on matplotlib axes; observations are flat images [T_e, O]."""
        paths = [self.positions(images) for images in observations]
        draw_paths(axes, [task["goal"]], task["goal"], self.goal_radius, self.view, paths)

    def positions(self, images: np.ndarray) -> np.ndarray:
        """Where the point is in flat images [T, O], of any brightness: the spot's centre of gravity, [T, 2]."""
        weight = np.asarray(images, np.float64).reshape(-1, self.size, self.size)
        weight = weight / weight.sum((1, 2), keepdims=True)
        pixel = (2 * np.arange(self.size) + 1 - self.size) / self.size * self.view
        return np.stack([weight.sum(1) @ pixel, -weight.sum(2) @ pixel], -1)
