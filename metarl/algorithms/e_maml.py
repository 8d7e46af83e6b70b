"""E-MAML: the policy before adaptation learns to explore for the inner step.

Stadie et al. 2018, https://arxiv.org/abs/1803.01118; formulation I of Rothfuss et al. 2019, section 4. MAML-TRPO whose
outer loss also credits the policy before adaptation with what its episodes led to: the sampling distribution becomes
something to be learned, so that the first episodes explore for the inner step. The iteration is that of `maml_trpo`;
`exploration` weighs the term (`metarl.losses.exploration`).
"""

from dataclasses import dataclass

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import State, evaluate, init, iteration

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_trpo.Config):
    """Settings of E-MAML."""

    exploration: float = 0.01
    """Weight of the term. 1 sums it over the T steps of an episode and averages it over a task's episodes; 1/T averages
    it over the steps as well, as published code does, and is a good start. The weight of the exact gradient depends on
    how far apart the tasks' returns lie (docs/algorithms/gradients.md has it for three families); so does its noise."""
