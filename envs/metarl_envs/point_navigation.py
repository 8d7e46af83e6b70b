"""2D navigation: a point that must reach a goal it cannot see (Finn, Abbeel, Levine 2017, section 5.3)."""

import math
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.tasks import Task, Tasks, split_rng
from metarl.vector.tensor import State, TensorFamily


class PointNavigation(TensorFamily):
    """A point in the plane walks to a goal it cannot see (MAML's 2D navigation).

    Task parameters and their distribution
        `goal` [2]: uniform in the square [-0.5, 0.5]^2.
    Splits
        Train and test goals come from the same distribution, by generators that share no draw.
    Observation
        The position, `Box(-inf, inf, (2,))`.
    Action
        The displacement, `Box(-0.1, 0.1, (2,))`; larger ones are clipped.
    Reward
        Minus the Euclidean distance to the goal after the step. (The paper's text says squared distance, but its
        numbers fit plain distance: standing still for 100 steps earns -38.3 with plain, -16.7 with squared.)
    Episode end
        Within 0.01 of the goal, or after `horizon` steps.
    Source
        Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.3 and appendix A.2.
    Version history
        v0: initial.
    """

    id = "PointNavigation-v0"
    max_step: ClassVar[float] = 0.1
    goal_tolerance: ClassVar[float] = 0.01
    extent: ClassVar[float] = 0.5
    render_modes = ("rgb_array",)

    def __init__(self, horizon: int = 100):
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        self.horizon = horizon
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-self.max_step, self.max_step, (2,), np.float32)
        goals = gym.spaces.Box(-self.extent, self.extent, (2,), np.float32)
        self.task_space = gym.spaces.Dict({"goal": goals})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        rng = split_rng(rng, split)
        return {"goal": rng.uniform(-self.extent, self.extent, (n, 2)).astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"position": draws.new_zeros(*draws.shape[:-1], 2)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["position"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        position = state["position"] + action.clamp(-self.max_step, self.max_step)
        distance = torch.linalg.vector_norm(position - task["goal"], dim=-1)
        return {"position": position}, self.reward(distance, position, task), self.ends(distance)

    def reward(self, distance: Tensor, position: Tensor, task: State) -> Tensor:
        return -distance

    def ends(self, distance: Tensor) -> Tensor | None:
        return distance < self.goal_tolerance
