"""E-MAML: the pre-adaptation policy learns to explore for the inner step.

Stadie et al. 2018, https://arxiv.org/abs/1803.01118; formulation I of Rothfuss et al. 2019, section 4. MAML-TRPO whose
outer loss also credits the pre-adaptation policy with the returns its episodes led to. The sampling distribution is
thereby learned too, and the first episodes explore for the inner step. Uses the iteration of `maml_trpo`; `exploration`
is the weight of the term (`metarl.formulas.losses.exploration`).
"""

from dataclasses import dataclass

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import State, evaluate, init, iteration

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_trpo.Config):
    """Settings of E-MAML."""

    exploration: float = 0.05
    """Weight of the exploration term. 1 gives the exact gradient of formulation I, and suits short episodes. The term
    sums over all steps of all of a task's episodes, so its noise grows with their number: on 2D navigation (100 steps)
    training diverges with 1 and learns with 0.05. Published code averages a normalised credit over steps and episodes,
    which corresponds to a similar weight: 0.06 at first and 0.014 after 15 iterations (docs/algorithms/e_maml.md)."""
