"""E-MAML's credit to the episodes before an inner step, for what came of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metarl.inner.loss import Batch
from metarl.inner.settings import GradientSettings


def credits(config: GradientSettings, data: Sequence[Batch], iteration: int = 0) -> list[Tensor]:
    """E-MAML's credit to the episodes before every inner step: what came of them in the outer loss, [K] each.

    The sum of `gain` over the stages after them, each with the weight that the outer loss gives it.
    """
    out, later = list[Tensor](), torch.zeros_like(data[-1].advantage[:, 0, 0])
    for weight, batch in zip(reversed(config.step_weights(iteration)), reversed(data[1:]), strict=False):
        later = later + weight * gain(batch, config.loss_per)
        out.insert(0, later)
    return out


def gain(batch: Batch, loss_per: str = "step") -> Tensor:
    """How much more every task's episodes earned than the other tasks' on average, in the units of the outer loss, [K].

    The outer loss is a mean over a task's steps (per "episode": over all up to the horizon), and its advantages are
    divided by the task's `scale`; so is this. The task's own episodes are no part of what they are compared with, which
    therefore does not bias E-MAML's term. Returns are not discounted: a discount in the advantages is a bias for less
    variance (Schulman et al. 2016, section 2).

    A task whose rewards do not differ (its `scale` is infinite) is no part of the outer loss: it gains nothing, and the
    others are compared with it only where there is no other task to compare with.
    """
    rollout = batch.rollout
    mask = rollout.mask.double()
    returns, length = (rollout.rew.double() * mask).sum(1).mean(-1), mask.sum(1).mean(-1)
    length = torch.full_like(length, mask.shape[1]) if loss_per == "episode" else length
    informative = batch.scale.isfinite().double()
    counts = informative.sum() - informative  # of other tasks to be compared with
    others = ((informative * returns).sum() - informative * returns) / counts
    nobody = (returns.sum() - returns) / (len(returns) - 1)
    others = torch.where(counts > 0, others, nobody)
    return ((returns - others) / (length * batch.scale)).to(batch.advantage.dtype)
