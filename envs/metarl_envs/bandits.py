"""Multi-armed bandits: which arm pays is the task; an episode is one pull unless said otherwise."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.arguments import whole
from metarl.random import to_normal
from metarl.tasks import Tasks, split_rng
from metarl.vector.tensor import State, TensorFamily


class BernoulliBandit(TensorFamily):
    """A bandit whose arms pay 1 or nothing, with probabilities to be found out (RL2's bandits).

    Task parameters and their distribution
        `p` [arms]: the probability that an arm pays, each uniform in [0, 1].
    Splits
        Train, validation and test tasks come from the same distribution, by generators that share no draw.
    Observation
        Always one, `Box(0, 1, (1,))`. (Of a constant zero a network could use its biases only, and with ReLU and
        zero biases nothing but the output bias would get a gradient.)
    Action
        The arm, `Discrete(arms)`; 5 arms unless said otherwise.
    Reward
        1 with the arm's probability, else 0.
    Episode end
        Terminates after `horizon` pulls (1): nothing is left to earn, so there is no value beyond it.
    Source
        Duan et al. 2016, https://arxiv.org/abs/1611.02779: a trial of n pulls, which is E = n episodes
        of one pull here. Its tables have n = 10, 100, 500 and 5, 10, 50 arms.
    Version history
        v0: initial.
    """

    id = "BernoulliBandit-v0"
    step_draws: int = 1

    def __init__(self, arms: int = 5, horizon: int = 1):
        self.arms, self.horizon = _at_least(2, "arms", arms), _at_least(1, "horizon", horizon)
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(arms)
        self.task_space = gym.spaces.Dict({"p": gym.spaces.Box(0, 1, (arms,), np.float32)})
        self.task_limits = self.task_space

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        return {"p": split_rng(rng, split).uniform(size=(n, self.arms)).astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return no_pulls(draws)

    def observe(self, state: State, task: State) -> Tensor:
        return one(state)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        reward = (draws[..., 0] < of_arm(task["p"], action)).to(draws.dtype)
        pulls = state["pulls"] + 1
        return {"pulls": pulls}, reward, pulls >= self.horizon


class GaussianBandit(TensorFamily):
    """A bandit whose arms pay normally distributed amounts (the testbed of Sutton and Barto).

    Task parameters and their distribution
        `mean` [arms]: the mean reward of each arm, normal with mean 0 and standard deviation 1.
    Splits
        Train, validation and test tasks come from the same distribution, by generators that share no draw.
    Observation
        Always one, `Box(0, 1, (1,))`, for the reason given at `BernoulliBandit`.
    Action
        The arm, `Discrete(arms)`; 10 arms unless said otherwise.
    Reward
        Normal with the arm's mean and standard deviation `std` (1).
    Episode end
        Terminates after `horizon` pulls (1): nothing is left to earn, so there is no value beyond it.
    Source
        Sutton and Barto 2018, "Reinforcement Learning: An Introduction", section 2.3 (10 arms). The best of 10 arms
        pays 1.54 on average, a random arm 0.
    Version history
        v0: initial.
    """

    id = "GaussianBandit-v0"
    mean_of_means: ClassVar[float] = 0.0
    std_of_means: ClassVar[float] = 1.0
    step_draws: int = 1

    def __init__(self, arms: int = 10, horizon: int = 1, std: float = 1.0):
        self.arms, self.horizon = _at_least(2, "arms", arms), _at_least(1, "horizon", horizon)
        if not std >= 0:
            raise ValueError(f"std must not be negative, got {std}")
        self.std = std
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(arms)
        self.task_space = gym.spaces.Dict({"mean": gym.spaces.Box(-np.inf, np.inf, (arms,), np.float32)})

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        means = split_rng(rng, split).normal(self.mean_of_means, self.std_of_means, (n, self.arms))
        return {"mean": means.astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return no_pulls(draws)

    def observe(self, state: State, task: State) -> Tensor:
        return one(state)

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        reward = of_arm(task["mean"], action) + self.std * to_normal(draws[..., 0])
        pulls = state["pulls"] + 1
        return {"pulls": pulls}, reward, pulls >= self.horizon


def no_pulls(draws: Tensor) -> State:
    """The first state of a bandit: how often it was pulled, [K, E]."""
    return {"pulls": torch.zeros(draws.shape[:-1], dtype=torch.int64, device=draws.device)}


def one(state: State) -> Tensor:
    """The observation of a bandit, [K, E, 1]."""
    return torch.ones_like(state["pulls"], dtype=torch.float32)[..., None]


def of_arm(values: Tensor, arm: Tensor) -> Tensor:
    """values [..., arms] at arm [...] -> [...]."""
    return values.gather(-1, arm[..., None]).squeeze(-1)


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value
