"""The inner loss, and what a user's own loss may look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metarl.formulas import distributions, losses
from metarl.formulas.distributions import Distribution
from metarl.inner.advantages import FITS, Estimate, as_given, learned_advantages
from metarl.params import Params
from metarl.policies.base import Policy
from metarl.rollout.rollout import Rollout


@dataclass(frozen=True)
class Batch:
    """One stage's data: the episodes before or after an inner step, and their advantages."""

    rollout: Rollout
    advantage: Tensor  # [K, T, E]
    baseline: Tensor  # [K, T, E] float64, what a step's return is compared with
    scale: Tensor  # [K] float64, what advantages were divided by; infinite in a task whose rewards do not differ

    def __getitem__(self, tasks: slice) -> "Batch":
        return Batch(self.rollout[tasks], self.advantage[tasks], self.baseline[tasks], self.scale[tasks])

    def every(self, stride: int) -> "Batch":
        """One in `stride` time steps; their advantages stay as they are."""
        return Batch(self.rollout.every(stride), self.advantage[:, ::stride], self.baseline[:, ::stride], self.scale)

    @staticmethod
    def of(config: Any, rollout: Rollout, state: Any = None, stage: int = 0) -> "Batch":
        """The rollout with the advantages that the settings' hook gives it (`GradientSettings.advantages`).

        Raises:
            TypeError, ValueError: a hook of one's own returned something else, or another shape.
        """
        found = config.advantages(rollout, state, stage)
        if isinstance(found, Tensor):
            found = as_given(rollout, found)
        if not isinstance(found, Estimate):
            raise TypeError(f"Config.advantages must return a tensor [K, T, E] or an Estimate, got {found!r}")
        return Batch(rollout, found.advantage, found.baseline, found.scale)


@dataclass(frozen=True)
class LossInput:
    """What an inner loss is a function of: the policy's action distribution on one stage's data, and where it is.

    A loss must depend on task k's slice of everything alone. Tensors of `dist`, `params` and `initial` may carry a
    graph: what a loss does with them is differentiated, once in the inner step and again in the outer one.
    """

    batch: Batch
    dist: Distribution  # with `params`, in the states of the batch
    policy: Policy | None = None
    params: Params = field(default_factory=dict)  # that the step starts from, [K, ...]
    initial: Params = field(default_factory=dict)  # of the policy before any inner step, [K, ...]
    learned: Mapping[str, Tensor] = field(default_factory=dict)  # about the inner loop: a discount or lambda, say

    @property
    def initial_dist(self) -> Distribution:
        """The action distribution of the policy before any inner step, in the same states."""
        assert self.policy is not None, "a LossInput without a policy knows no initial one"
        return self.policy.distribution(self.initial, self.batch.rollout.obs)


def policy_loss(
    at: LossInput, kind: str, dice_lambda: float, gamma: float, gae_lambda: float, baseline: str = "linear"
) -> Tensor:
    """The loss of every task whose gradient is that of `inner_gradient=kind`, a mean over its valid steps, [K].

    A discount or lambda among `at.learned` takes the place of `gamma` and `gae_lambda`.
    """
    batch, rollout, advantage = at.batch, at.batch.rollout, at.batch.advantage
    log_prob, mask = distributions.log_prob(at.dist, rollout.act), rollout.mask
    if not at.learned.keys().isdisjoint(("discount", "lambda")):
        discount, lam = (
            torch.sigmoid(at.learned[name]) if name in at.learned else advantage.new_tensor(fixed)
            for name, fixed in (("discount", gamma), ("lambda", gae_lambda))
        )
        advantage = learned_advantages(rollout, discount, lam, FITS[baseline])
    if kind == "lvc":
        return losses.surrogate(log_prob, rollout.log_prob, advantage, mask)
    if kind == "loaded_dice":
        return losses.loaded_dice(log_prob, advantage, mask, dice_lambda)
    if kind == "dice":
        # In float64: a return minus its baseline is small beside either where all rewards are large.
        scale = batch.scale[:, None, None]
        reward, compared = rollout.rew.double() / scale, batch.baseline / scale
        return losses.dice(log_prob.double(), reward, compared, mask.double(), gamma).to(log_prob.dtype)
    return losses.policy_gradient(log_prob, advantage, mask)
