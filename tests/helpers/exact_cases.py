"""A small MDP with a policy, and the inner losses of one task on its enumerated episodes."""

from functools import cache

import numpy as np
import torch
from exact import MDP, Episodes, Loss
from metarl_envs.tabular_mdp import TabularMDP
from torch import Tensor

from metarl.formulas import losses

LR = 1.0
"""Of the inner step: large enough that what is left out shows."""


@cache
def case(seed: int = 1, horizon: int = 3, gamma: float = 1.0) -> tuple[MDP, Tensor]:
    """A random MDP of two states and two actions, and a policy for it."""
    family = TabularMDP(2, 2, horizon)
    logits = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return MDP.of(family, family.sample(1, np.random.default_rng(seed)), gamma), logits


def gradient_of(function, x: Tensor) -> Tensor:
    return torch.func.grad(function)(x)


def policy_gradient(log_prob: Tensor, data: Episodes, gamma: float = 1.0) -> Tensor:
    return losses.policy_gradient(log_prob, data.returns(gamma), data.mask)


def lvc(log_prob: Tensor, data: Episodes, gamma: float = 1.0) -> Tensor:
    return losses.surrogate(log_prob, log_prob.detach(), data.returns(gamma), data.mask)


def dice(log_prob: Tensor, data: Episodes, gamma: float = 1.0) -> Tensor:
    return losses.dice(log_prob, data.rew, None, data.mask, gamma)


def dice_with_baseline(log_prob: Tensor, data: Episodes, gamma: float = 1.0) -> Tensor:
    """The baseline is any function of time and state."""
    states, T = data.obs.argmax(-1), data.rew.shape[1]
    table = torch.randn(T, data.obs.shape[-1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    baseline = table[torch.arange(T)[None, :, None], states]
    return losses.dice(log_prob, data.rew, baseline, data.mask, gamma)


def loaded_dice(advantage: Tensor, lam: float) -> Loss:
    """advantage [K, T, E]"""
    return lambda log_prob, data: losses.loaded_dice(log_prob, advantage, data.mask, lam)
