"""Returns and generalised advantages of rewards [K, T, E]."""

import torch
from torch import Tensor


def discounted_returns(rew: Tensor, gamma: float | Tensor) -> Tensor:
    """The discounted sum of rewards from each step on. rew [K, T, E] -> [K, T, E]; differentiable in both arguments."""
    out, acc = [], torch.zeros_like(rew[:, 0])
    for t in reversed(range(rew.shape[1])):
        acc = rew[:, t] + gamma * acc
        out.append(acc)
    return torch.stack(out[::-1], 1)


def gae(rew: Tensor, values: Tensor, gamma: float | Tensor, lam: float | Tensor) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    rew [K, T, E]; values [K, T + 1, E], zero from an episode's end on, the last one the bootstrap -> [K, T, E].
    """
    assert values.shape[1] == rew.shape[1] + 1, (rew.shape, values.shape)
    return discounted_returns(rew + gamma * values[:, 1:] - values[:, :-1], gamma * lam)
