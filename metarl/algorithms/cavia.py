"""CAVIA (fast context adaptation via meta-learning): only a context vector adapts.

Zintgraf et al. 2019, https://arxiv.org/abs/1810.03642, section 3. MAML-TRPO whose inner loop moves a context vector
only, an input to the first layer that starts at zero for every task; the network is shared. What a task is, is a few
numbers. The iteration is that of `maml_trpo`.
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
    """Numbers in the context vector."""
    adapts: Literal["all", "head", "context"] = "context"
    """What the inner loop moves: CAVIA's is the context vector."""
