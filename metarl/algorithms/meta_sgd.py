"""Meta-SGD: a learned step size for every parameter.

Li et al. 2017, https://arxiv.org/abs/1707.09835, algorithm 2. MAML-TRPO that learns a step size for every parameter
along with the initialisation. A learned step size may be negative, moving the parameter against its inner update. Uses
the iteration of `maml_trpo`.
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
    """Which factors on `inner_lr` the outer loop learns; they start at 1."""
