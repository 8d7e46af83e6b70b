"""MAML++ for policies: step sizes learned per layer and step, and schedules that stabilise early training.

Antoniou, Edwards, Storkey 2019, https://arxiv.org/abs/1810.09502, section 4. Its components, each of which is also a
setting of the other gradient-based learners: a learned step size per layer and inner step; an outer loss over all inner
steps that is annealed to the last one; first-order derivatives early in training; a cosine-annealed outer step size.
The outer step is PPO with Adam, and the iteration that of `maml_ppo`. (The components that concern batch norm do not
apply: the networks have none.)
"""

from dataclasses import dataclass

from metarl.algorithms import maml_ppo
from metarl.algorithms.maml_ppo import State, evaluate, init, iteration
from metarl.inner.learned import LearnedLr

__all__ = ["Config", "State", "evaluate", "init", "iteration"]


@dataclass(frozen=True)
class Config(maml_ppo.Config):
    """Settings of MAML++."""

    inner_steps: int = 2
    """Inner gradient steps during training, each on new episodes."""
    learned_lr: LearnedLr = "per_layer_and_step"
    """Which factors on `inner_lr` the outer loop learns; they start at 1."""
    multi_step_until: int = 50
    """Weight the losses after all inner steps equally at first, shifting within this many iterations to the last one
    alone."""
    first_order_until: int = 20
    """Use first-order meta-gradients for this many initial iterations (derivative-order annealing)."""
    anneal_over: int = 500
    """Anneal the outer step sizes to `anneal_to` times their initial value over this many iterations, by a cosine
    schedule."""
