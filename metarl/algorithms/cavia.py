"""CAVIA (fast context adaptation via meta-learning): only a context vector adapts.

Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642, section 3. MAML-TRPO whose inner loop adapts only a context
vector, an additional input to the first layer that starts at zero for every task. The network's weights are shared, so
that a task is represented by a few numbers. Uses the iteration of `maml_trpo`.
"""

from dataclasses import dataclass
from typing import Literal

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import State, evaluate, init, iteration

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_trpo.Config):
    """Settings of CAVIA."""

    context: int = 5
    """Size of the context vector."""
    adapts: Literal["all", "head", "context"] = "context"
    """What the inner loop adapts: the context vector, in CAVIA."""
