"""Meta-SGD: a learned step size for every parameter.

Li et al. 2017, https://arxiv.org/abs/1707.09835, algorithm 2. MAML-TRPO that learns a step size for every parameter
together with the initialisation: how far, and whether with or against its gradient, each one moves. The iteration is
that of `maml_trpo`.
"""

from dataclasses import dataclass

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import State, evaluate, init, iteration
from metarl.inner.learned import LearnedLr

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_trpo.Config):
    """Settings of Meta-SGD."""

    learned_lr: LearnedLr = "per_parameter"
    """What the outer loop learns of the inner step sizes, as factors on `inner_lr` that start at 1."""
