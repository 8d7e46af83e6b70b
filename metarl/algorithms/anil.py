"""ANIL (almost no inner loop): only the policy's last layer adapts.

Raghu et al. 2020, https://arxiv.org/abs/1909.09157, section 4. MAML-TRPO whose inner loop moves the policy's last layer
only; the layers below are features that the outer loop learns for all tasks. The iteration is that of `maml_trpo`.
"""

from dataclasses import dataclass
from typing import Literal

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import State, evaluate, init, iteration

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_trpo.Config):
    """Settings of ANIL."""

    adapts: Literal["all", "head", "context"] = "head"
    """What the inner loop moves: ANIL's is the last layer."""
