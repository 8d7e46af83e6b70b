"""ANIL (almost no inner loop): only the policy's last layer adapts.

Raghu et al. 2020, https://arxiv.org/abs/1909.09157, section 4. MAML-TRPO whose inner loop adapts only the policy's last
layer; the outer loop trains the layers below it as features shared by all tasks. Uses the iteration of `maml_trpo`.
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
    """What the inner loop adapts: the last layer, in ANIL."""
