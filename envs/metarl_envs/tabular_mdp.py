"""Random tabular Markov decision processes, and what the best and a random policy earn in them."""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.arguments import whole
from metarl.random import to_normal
from metarl.tasks import Tasks, split_rng
from metarl.vector.tensor import State, TensorFamily


class TabularMDP(TensorFamily):
    """A random tabular Markov decision process with noisy rewards (RL2's tabular MDPs).

    Task parameters and their distribution
        `transitions` [states, actions, states]: the probabilities of the next state, each row from a flat Dirichlet
        distribution. `rewards` [states, actions]: mean rewards, each normal with mean 1 and standard deviation 1.
        (Rows of transitions that do not sum to one are not refused: the last state takes the difference.)
    Splits
        Train, validation and test tasks come from the same distribution, by generators that share no draw.
    Observation
        The state, `Discrete(states)`; 10 states unless said otherwise. It starts as 0.
    Action
        `Discrete(actions)`; 5 actions unless said otherwise.
    Reward
        Normal with the mean of (state, action) and standard deviation 1.
    Episode end
        Truncated after `horizon` steps (10); nothing terminates.
    Source
        Duan et al. 2016, https://arxiv.org/abs/1611.02779, the experiments on tabular MDPs.
    Version history
        v0: initial.
    """

    id = "TabularMDP-v0"
    step_draws = 2

    def __init__(self, states: int = 10, actions: int = 5, horizon: int = 10):
        for name, value in (("states", states), ("actions", actions), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.states, self.actions, self.horizon = states, actions, horizon
        self.observation_space = gym.spaces.Discrete(states)
        self.action_space = gym.spaces.Discrete(actions)
        rows = gym.spaces.Box(0, 1, (states, actions, states), np.float32)
        rewards = gym.spaces.Box(-np.inf, np.inf, (states, actions), np.float32)
        self.task_space = gym.spaces.Dict({"transitions": rows, "rewards": rewards})
        self.task_limits = self.task_space

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        rng = split_rng(rng, split)
        rows = rng.dirichlet(np.ones(self.states), (n, self.states, self.actions))
        rewards = rng.normal(1.0, 1.0, (n, self.states, self.actions))
        return {"transitions": rows.astype(np.float32), "rewards": rewards.astype(np.float32)}

    def initial(self, task: State, draws: Tensor) -> State:
        return {"state": torch.zeros(draws.shape[:-1], dtype=torch.int64, device=draws.device)}

    def observe(self, state: State, task: State) -> Tensor:
        return state["state"]

    def step(self, state: State, action: Tensor, task: State, draws: Tensor) -> tuple[State, Tensor, Tensor | None]:
        pair = (state["state"] * self.actions + action)[..., None]  # [K, E, 1]
        mean = task["rewards"].flatten(-2).gather(-1, pair).squeeze(-1)
        rows = task["transitions"].flatten(-3, -2)  # [K, E, states * actions, states]
        row = rows.gather(-2, pair[..., None].expand(*pair.shape, self.states)).squeeze(-2)
        # The last bound is left out, so that rounding cannot lead past the last state.
        following = (row.cumsum(-1)[..., :-1] <= draws[..., :1]).sum(-1)
        return {"state": following}, mean + to_normal(draws[..., 1]), None


def optimal_return(tasks: Tasks, horizon: int, discount: float = 1.0) -> np.ndarray:
    """The expected return of the best policy that knows its task, by value iteration over a finite horizon.

    Its average over tasks is what published results are divided by; they fit `discount=0.99`, not 1.

    Args:
        tasks: `transitions` [K, S, A, S] and `rewards` [K, S, A].
        horizon: steps of an episode, which starts in state 0.
        discount: of each further step.

    Returns:
        float64 [K].
    """
    return _backward(tasks, horizon, discount, greedy=True)


def uniform_return(tasks: Tasks, horizon: int, discount: float = 1.0) -> np.ndarray:
    """The expected return of the policy that takes every action equally often: as `optimal_return`."""
    return _backward(tasks, horizon, discount, greedy=False)


def _backward(tasks: Tasks, horizon: int, discount: float, greedy: bool) -> np.ndarray:
    transitions, rewards = (np.asarray(tasks[name], np.float64) for name in ("transitions", "rewards"))
    value = np.zeros(rewards.shape[:2])
    for _ in range(horizon):
        action_value = rewards + discount * np.einsum("ksan,kn->ksa", transitions, value)
        value = action_value.max(-1) if greedy else action_value.mean(-1)
    return value[:, 0]
