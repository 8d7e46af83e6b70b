"""First-order MAML: the outer loop treats the inner steps as constants.

Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.2; Nichol et al. 2018,
https://arxiv.org/abs/1803.02999, section 5. MAML-TRPO whose outer loop treats the inner steps as constants: the
meta-gradient is the policy gradient evaluated at the adapted parameters. Uses the iteration of `maml_trpo`.
"""

from dataclasses import dataclass

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import State, evaluate, init, iteration

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_trpo.Config):
    """Settings of first-order MAML."""

    first_order: bool = True
    """Do not differentiate through the inner gradient."""
