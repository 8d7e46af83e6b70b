"""E-MAML: the policy before adaptation learns to explore for the inner step.

Stadie et al. 2018, https://arxiv.org/abs/1803.01118; formulation I of Rothfuss et al. 2019, section 4. MAML-TRPO whose
outer loss also credits the policy before adaptation with what its episodes led to: the sampling distribution becomes
something to be learned, so that the first episodes explore for the inner step. The iteration is that of `maml_trpo`;
`exploration` weighs the term (`metarl.formulas.losses.exploration`).
"""

from dataclasses import dataclass

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import State, evaluate, init, iteration

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_trpo.Config):
    """Settings of E-MAML."""

    exploration: float = 0.05
    """Weight of the term. 1 is the exact gradient of formulation I, for short episodes. The term sums over all steps of
    all of a task's episodes, and its noise grows with them: on 2D navigation (100 steps) 1 runs away and 0.05 learns.
    That is about what published code does, which averages a normalised credit over steps and episodes: there it comes
    to 0.06 at first and 0.014 after 15 iterations (docs/algorithms/e_maml.md)."""
