"""First-order MAML: the outer loop takes the inner steps for constants.

Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, section 5.2; Nichol et al. 2018,
https://arxiv.org/abs/1803.02999, section 5. MAML-TRPO whose outer loop takes the inner steps for constants: the
meta-gradient is the adapted policies' gradient where adaptation ended. The iteration is that of `maml_trpo`.
"""

from dataclasses import dataclass

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import State, evaluate, init, iteration

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_trpo.Config):
    """Settings of first-order MAML."""

    first_order: bool = True
    """Leave the inner gradient out when differentiating."""
