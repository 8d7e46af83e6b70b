"""MAML++: learned step sizes per layer and step, and a gentle start, for policies.

Antoniou, Edwards, Storkey 2019, https://arxiv.org/abs/1810.09502, section 4. Its parts, each also a setting of the
other gradient-based learners: a learned step size for every layer and step; the losses after all inner steps at first,
annealed to the last; first-order derivatives at first; a cosine-annealed outer step. The outer step is PPO's with Adam,
and the iteration that of `maml_ppo`. (Its batch-norm parts have no place in networks without batch norm.)
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
    """Inner gradient steps in training, each on fresh episodes."""
    learned_lr: LearnedLr = "per_layer_and_step"
    """What the outer loop learns of the inner step sizes, as factors on `inner_lr` that start at 1."""
    multi_step_until: int = 50
    """Weigh the losses after all inner steps equally at first, and within this many iterations only the last one."""
    first_order_until: int = 20
    """Leave the inner gradient out when differentiating for this many iterations (derivative-order annealing)."""
    anneal_over: int = 500
    """Bring the outer step sizes down to `anneal_to` times themselves over this many iterations, by a cosine."""
