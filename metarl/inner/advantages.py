"""Generalised advantages over a baseline, for all tasks at once.

Advantages are data to the losses; only `learned_advantages` is differentiated, in discount and lambda.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.formulas.losses import masked_mean
from metarl.formulas.returns import discounted_returns, gae
from metarl.inner.baseline import linear_baseline, time_baseline
from metarl.rollout.rollout import Rollout

_ROUNDING = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Estimate:
    """Advantages and what they were made of."""

    advantage: Tensor  # [K, T, E], normalised where the baseline is fitted; zero where the mask is
    baseline: Tensor  # [K, T, E] float64, what a step's return is compared with, in units of the reward
    scale: Tensor
    """[K] float64, the standard deviation that advantages were divided by, in units of the reward; infinite in a task
    whose rewards do not differ, so that anything divided by it is exactly zero."""


Fit = Callable[[Rollout, Tensor], Tensor]
"""(rollout, targets [K, T, E] float64) -> what a baseline makes of the targets, float64 [K, T, E]."""

FITS: dict[str, Fit | None] = {"linear": linear_baseline, "time": time_baseline, "none": None}
"""The baselines that are fitted to a task's own episodes, by their names in the settings."""


@torch.no_grad()
def estimate(rollout: Rollout, gamma: float, lam: float, fit: Fit | None = linear_baseline) -> Estimate:
    """`over` the baseline that `fit` makes, or over zero with None."""
    return over(rollout, fitted_values(rollout, gamma, fit), gamma, lam)


@torch.no_grad()
def over(rollout: Rollout, values: Tensor, gamma: float, lam: float) -> Estimate:
    """GAE over the values [K, T, E] of a baseline, normalised to mean 0 and standard deviation 1 over each task's valid
    steps; exactly zero in a task whose rewards do not `differ`. Computed in float64.

    An episode cut off by the horizon counts as over: the tasks are finite-horizon problems and the baselines see the
    time. `baseline` is such that with lambda 1 a step's return minus it, divided by `scale`, is the advantage.

    Raises:
        ValueError: rewards that add up to more than their type can hold.
    """
    mask, rew = rollout.mask.double(), rollout.rew.double()
    check_fits((rew * mask).sum(1), rollout.rew)
    values = values.double() * mask
    normalised, mean, scale = _normalised(_raw(rew, values, gamma, lam), mask, differ(rollout.rew, rollout.mask))
    return Estimate(normalised.to(rollout.rew.dtype), (values + mean[:, None, None]) * mask, scale)


@torch.no_grad()
def over_number(rollout: Rollout, number: float, gamma: float, lam: float) -> Estimate:
    """The sum of rewards minus a number, discounted by `gamma * lam` a step, as it is.

    The number is taken off for every step up to the horizon, those after an episode's end included: the baseline
    then does not depend on the actions, and no episode gains by its length.

    Raises:
        ValueError: rewards that add up to more than their type can hold.
    """
    mask, rew = rollout.mask.double(), rollout.rew.double()
    check_fits((rew * mask).sum(1), rollout.rew)
    if bool((mask == 0).any()):
        warnings.warn(
            f"reward_baseline={number:g} where episodes end early: they are compared with it for every "
            "step up to the horizon, which makes advantages large; leave it out for the fitted baseline",
            stacklevel=2,
        )
    expected = discounted_returns(torch.full_like(mask, number), gamma * lam)
    advantage = (discounted_returns(rew, gamma * lam) - expected) * mask
    check_fits(advantage, rollout.rew)
    return Estimate(advantage.to(rollout.rew.dtype), expected * mask, torch.ones_like(mask[:, 0, 0]))


def as_given(rollout: Rollout, advantage: Tensor) -> Estimate:
    """Advantages of one's own [K, T, E], in units of the reward, as they are: neither compared with anything nor
    normalised.

    Raises:
        ValueError: another shape.
    """
    if advantage.shape != rollout.mask.shape:
        raise ValueError(f"Config.advantages must return one number per step, shape {tuple(rollout.mask.shape)}, got "
                         f"{tuple(advantage.shape)}")  # fmt: skip
    mask = rollout.mask.double()
    advantage = (advantage.detach().double() * mask).to(rollout.rew.dtype)
    return Estimate(advantage, torch.zeros_like(mask), torch.ones_like(mask[:, 0, 0]))


def advantages(rollout: Rollout, gamma: float, lam: float) -> Tensor:
    """The normalised advantages of `estimate`, [K, T, E]."""
    return estimate(rollout, gamma, lam).advantage


def learned_advantages(rollout: Rollout, gamma: Tensor, lam: Tensor, fit: Fit | None = linear_baseline) -> Tensor:
    """The same, differentiable in the discount and in lambda (0-dim tensors).

    The fitted part of the baseline is held: it changes the variance of a policy gradient, not what it estimates.
    """
    mask, rew, gamma, lam = (x.double() for x in (rollout.mask, rollout.rew, gamma, lam))
    values = fitted_values(rollout, gamma, fit) * mask
    normalised, _, _ = _normalised(_raw(rew, values, gamma, lam), mask, differ(rollout.rew, rollout.mask))
    return normalised.to(rollout.rew.dtype)


def differ(rew: Tensor, mask: Tensor) -> Tensor:
    """Whether a task's episodes can be told apart by their rewards, bool [K]. rew, mask [K, T, E].

    They cannot where, in every step, all episodes have the same reward, an episode that is over having 0: then all
    returns from a step on are equal, whatever was done before, and no action is better. Without this test, the
    misfit of the baseline or rounding would be normalised to a standard deviation of 1. Episodes of different lengths
    differ unless the steps that some of them lack pay nothing. A task's only episode differs where its own steps do.

    Equal up to rounding, which is two units in the last place of float32, the type that rewards are kept in.
    """
    paid = torch.where(mask > 0, rew, 0.0)
    if mask.shape[2] > 1:
        high, low = paid.amax(2), paid.amin(2)  # [K, T]
    else:
        high = torch.where(mask > 0, rew, -math.inf).amax((1, 2))[:, None]
        low = torch.where(mask > 0, rew, math.inf).amin((1, 2))[:, None]
    size = torch.maximum(high.abs(), low.abs())
    return (high.double() - low.double() > 2 * _ROUNDING * size.double()).any(1)


def fitted_values(rollout: Rollout, gamma: float | Tensor, fit: Fit | None = linear_baseline) -> Tensor:
    """The baseline's value of every step, float64 [K, T, E]: `usual_returns` and what `fit` makes of the difference of
    the returns from them; zero without `fit`. A discount that is learned is differentiated in the part that is not
    fitted."""
    if fit is None:
        return torch.zeros_like(rollout.mask, dtype=torch.float64)
    usual = usual_returns(rollout, gamma)
    with torch.no_grad():
        fitted = fit(rollout, discounted_returns(rollout.rew.double(), gamma) - usual)
    return usual + fitted


def usual_returns(rollout: Rollout, gamma: float | Tensor) -> Tensor:
    """The returns from every step on of an episode that earns the task's mean reward in every step, as long as the
    task's longest episode; float64 [K, T, E].

    Baselines are fitted to the difference from these. No polynomial of the time is such a sum of discounted rewards; so
    a number added to all rewards of episodes of one length, however large, leaves the advantages as they are.
    """
    mask, rew = rollout.mask.double(), rollout.rew.double()
    usual = masked_mean(rew, mask)[:, None, None] * mask.amax(2, keepdim=True)
    return discounted_returns(usual, gamma).expand_as(mask)


def _raw(rew: Tensor, values: Tensor, gamma: float | Tensor, lam: float | Tensor) -> Tensor:
    return gae(rew, torch.cat([values, torch.zeros_like(values[:, :1])], 1), gamma, lam)


def _normalised(raw: Tensor, mask: Tensor, differs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> mean 0 and standard deviation 1 over the valid steps of each task that `differs` [K], zero in the others; the
    mean there was, and the deviation, infinite in the others."""
    mean = masked_mean(raw, mask)
    centred = (raw - mean[:, None, None]) * mask
    variance = masked_mean(centred**2, mask)
    differs = differs & (variance > 0)
    scale = torch.where(differs, variance, 1.0).sqrt()  # the root of zero has no derivative
    scale = torch.where(differs, scale, math.inf)
    return torch.where(differs[:, None, None], centred / scale[:, None, None], 0.0), mean, scale


def check_fits(sums: Tensor, rew: Tensor) -> None:
    """Raise ValueError if sums of the rewards are too large for the rewards' type."""
    most = torch.finfo(rew.dtype).max
    if bool((sums.abs() > most).any()):
        raise ValueError(f"rewards of up to {rew.abs().max():.3g} add up to more than {most:.3g}, the largest number "
                         "of their type: scale the rewards down")  # fmt: skip
