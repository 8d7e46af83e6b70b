"""Returns, generalised advantages and the linear feature baseline, for all tasks at once.

Advantages are data to the losses; only `learned_advantages` is differentiated, in discount and lambda.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.losses import masked_mean
from metarl.parallel import task_chunks, thread_map
from metarl.rollout import Rollout


def discounted_returns(rew: Tensor, gamma: float | Tensor) -> Tensor:
    """Sum of discounted rewards from each step on. rew [K, T, E] -> [K, T, E]; differentiable in both."""
    out, acc = [], torch.zeros_like(rew[:, 0])
    for t in reversed(range(rew.shape[1])):
        acc = rew[:, t] + gamma * acc
        out.append(acc)
    return torch.stack(out[::-1], 1)


def gae(rew: Tensor, values: Tensor, gamma: float | Tensor, lam: float | Tensor) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    rew [K, T, E]; values [K, T + 1, E], zero from an episode's end on, the last one the bootstrap -> [K, T, E].
    """
    assert values.shape[1] == rew.shape[1] + 1, (rew.shape, values.shape)
    return discounted_returns(rew + gamma * values[:, 1:] - values[:, :-1], gamma * lam)


def linear_baseline(rollout: Rollout, targets: Tensor, ridge: float = 1e-5) -> Tensor:
    """Fit `targets` [K, T, E] task by task on features of observation and time; the fitted values [K, T, E].

    The features are those of Duan et al. (2016, https://arxiv.org/abs/1604.06778): the observation (clipped to
    [-10, 10]), its square, t, t^2, t^3 with t in hundreds of steps, and 1. Normal equations in float64, one
    solve batched over tasks.

    Of an image, which has more pixels than a task has steps to fit them to, the features are the mean brightness of
    each channel in 4 x 4 fields, without squares.
    """
    K, T, E = rollout.mask.shape
    chunks = task_chunks(K, T * E, rollout.mask.device)
    return torch.cat(thread_map(lambda c: _fit(_features(rollout[c]), rollout.mask[c], targets[c], ridge), chunks))


def _features(rollout: Rollout) -> Tensor:
    """Of observation and time, float64 [K, T*E, F]."""
    K, T, E, O = rollout.obs.shape
    x = rollout.obs.reshape(K, T * E, O)
    if rollout.image is None:
        x = x.clamp(-10, 10).double()
        x = torch.cat([x, x**2], -1)
    else:
        pooled = torch.nn.functional.adaptive_avg_pool2d(rollout.image.grid(x).flatten(0, 1), 4)
        x = pooled.reshape(K, T * E, -1).double()
    t = torch.arange(T, device=x.device, dtype=torch.float64).repeat_interleave(E) / 100
    time = torch.stack([t, t**2, t**3, torch.ones_like(t)], -1).expand(K, T * E, 4)
    return torch.cat([x, time], -1)


@torch.no_grad()
def _fit(features: Tensor, mask: Tensor, targets: Tensor, ridge: float) -> Tensor:
    k, T, E = mask.shape
    weighted = features * mask.reshape(k, T * E, 1)
    gram = features.mT @ weighted
    gram = gram + ridge * torch.eye(gram.shape[-1], dtype=torch.float64, device=features.device)
    coefficients, _ = torch.linalg.solve_ex(gram, weighted.mT @ targets.reshape(k, T * E, 1).double())
    return (features @ coefficients).reshape(k, T, E).to(targets.dtype)


@dataclass(frozen=True)
class Estimate:
    """Advantages and what they were made of."""

    advantage: Tensor  # [K, T, E], normalised where the baseline is fitted; zero where the mask is
    baseline: Tensor  # [K, T, E], what a step's return is compared with, in units of the reward
    scale: Tensor  # [K], the standard deviation that advantages were divided by, in units of the reward


@torch.no_grad()
def estimate(rollout: Rollout, gamma: float, lam: float, reward_baseline: float | None = None) -> Estimate:
    """GAE over the linear baseline, normalised to mean 0 and standard deviation 1 over each task's valid steps.

    With `reward_baseline` the sum of rewards minus that number instead, discounted by `gamma * lam` a step, as it is.

    An episode cut off by the horizon counts as over: the tasks are finite-horizon problems and the baseline sees the
    time. `baseline` is such that with lambda 1 a step's return minus it, divided by `scale`, is the advantage.
    """
    mask = rollout.mask
    if reward_baseline is not None:
        expected = discounted_returns(reward_baseline * mask, gamma * lam)
        advantage = discounted_returns(rollout.rew, gamma * lam) - expected
        return Estimate(advantage * mask, expected * mask, torch.ones_like(mask[:, 0, 0]))
    values = linear_baseline(rollout, discounted_returns(rollout.rew, gamma)) * mask
    advantage, mean, scale = _normalised(_raw(rollout, values, gamma, lam), mask)
    return Estimate(advantage, (values + mean[:, None, None]) * mask, scale)


def advantages(rollout: Rollout, gamma: float, lam: float) -> Tensor:
    """The normalised advantages of `estimate`, [K, T, E]."""
    return estimate(rollout, gamma, lam).advantage


def learned_advantages(rollout: Rollout, gamma: Tensor, lam: Tensor) -> Tensor:
    """The same, differentiable in the discount and in lambda (0-dim tensors).

    The baseline is fitted anew but held: it changes the variance of a policy gradient, not what it estimates.
    """
    with torch.no_grad():
        values = linear_baseline(rollout, discounted_returns(rollout.rew, gamma)) * rollout.mask
    return _normalised(_raw(rollout, values, gamma, lam), rollout.mask)[0]


def _raw(rollout: Rollout, values: Tensor, gamma: float | Tensor, lam: float | Tensor) -> Tensor:
    return gae(rollout.rew, torch.cat([values, torch.zeros_like(values[:, :1])], 1), gamma, lam)


def _normalised(raw: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> mean 0 and standard deviation 1 over each task's valid steps; the mean and the deviation [K] there were."""
    mean = masked_mean(raw, mask)
    centred = (raw - mean[:, None, None]) * mask
    # The root of zero has no derivative; 1e-16 is the square of what is added below, and changes nothing else.
    std = (masked_mean(centred**2, mask) + (1e-16 if raw.requires_grad else 0.0)).sqrt()
    return centred / (std + 1e-8)[:, None, None], mean, std + 1e-8
