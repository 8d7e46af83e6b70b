"""Baselines fitted to a task's own episodes: a ridge regression on observation and time, and the mean at each time."""

import math

import torch
from torch import Tensor

from metarl.parallel import task_chunks, thread_map
from metarl.policies.spaces import Spaces
from metarl.rollout.rollout import Rollout

RIDGE = 3.0
"""Multiple of features / steps that is added to the features' variances of 1. With as many features as
steps, the fit would reproduce the returns themselves; measured in experiments/benchmarks, 1 to 10 do as well."""
WIDE = 1024
"""Entries of an observation, and steps of a task: where there are more of both, neighbouring entries are averaged."""
_BLOCK = 1 << 22  # numbers of one block of features: 32 MiB
_TIME_RIDGE = (
    1e-8  # for the time's features, which are to be fitted as they are; fewer steps than those are none of them
)


def linear_baseline(rollout: Rollout, targets: Tensor, ridge: float = RIDGE) -> Tensor:
    """Fit `targets` [K, T, E] task by task on features of observation and time; the fitted values, float64 [K, T, E].

    The features are those of Duan et al. (2016, https://arxiv.org/abs/1604.06778), the observation, its square, t, t^2,
    t^3 and 1, each of the observation's standardised over the task's valid steps (and the observation cut off at 10
    standard deviations), so that their units do not matter. With F such features and N valid steps,
    a ridge of `ridge * F / N` of their variance keeps the fit from absorbing what is particular to these episodes' own
    returns; what depends on time alone is not shrunk.

    Of an image the features are the mean brightness of each channel in 4 x 4 fields, without squares. Where features
    outnumber steps the fit is solved for steps instead of features, block by block of features, so that it needs memory
    for N^2 numbers. Float64, one solve batched over tasks.
    """
    K, T, E = rollout.mask.shape
    obs = _observations(rollout, T * E)
    wide = 2 * obs.shape[-1] > T * E
    rows = T * E * max(1, obs.shape[-1] // 64 if not wide else T * E // 64)
    solve = _of_steps if wide else _of_features
    squares = rollout.image is None

    @torch.no_grad()
    def fitted(chunk: slice) -> Tensor:
        mask, y = (x[chunk].double().flatten(1)[..., None] for x in (rollout.mask, targets))
        return solve(obs[chunk], mask, _time(rollout.mask[chunk]), y * mask, ridge, squares).reshape(-1, T, E)

    return torch.cat(thread_map(fitted, task_chunks(K, rows, rollout.mask.device)))


def time_baseline(rollout: Rollout, targets: Tensor) -> Tensor:
    """The mean of `targets` [K, T, E] over the task's episodes that have not ended at the same step."""
    mask = rollout.mask.double()
    mean = (targets * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp_min(1)
    return mean.expand_as(targets)


def _observations(rollout: Rollout, steps: float) -> Tensor:
    """What of the observations is used where a task has this many steps, [K, N, D]; N = T E."""
    K, T, E, O = rollout.obs.shape
    x = rollout.obs.reshape(K, T * E, O)
    if rollout.image is not None:
        return torch.nn.functional.adaptive_avg_pool2d(rollout.image.grid(x).flatten(0, 1), 4).reshape(K, T * E, -1)
    return torch.nn.functional.adaptive_avg_pool1d(x, WIDE) if min(O, steps) > WIDE else x


def inputs_of(rollout: Rollout) -> Tensor:
    """The inputs of a value network, [K, N, I]: the same of the observations, of any number of steps, and the time in
    hundreds of steps."""
    K, T, E = rollout.mask.shape
    time = torch.arange(T, device=rollout.mask.device).repeat_interleave(E) / 100
    return torch.cat([_observations(rollout, math.inf), time[None, :, None].expand(K, -1, -1)], -1)


def num_inputs(spaces: Spaces) -> int:
    """I, the number of those inputs."""
    return 1 + (16 * spaces.image.channels if spaces.image is not None else min(spaces.obs_dim, WIDE))


def _time(mask: Tensor) -> Tensor:
    """1, t, t^2, t^3 in the valid steps, float64 [K, N, 4]; t goes from -1 to 1 in the task's longest episode."""
    T, E = mask.shape[1:]
    last = (mask.amax(2).sum(1) - 1).clamp_min(1).double()
    t = 2 * torch.arange(T, device=mask.device, dtype=torch.float64) / last[:, None] - 1
    powers = torch.stack([torch.ones_like(t), t, t**2, t**3], -1)
    return powers[:, :, None].expand(-1, T, E, 4).flatten(1, 2) * mask.flatten(1)[..., None]


def _standardised(x: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the valid steps; zero where an entry does not vary by more than rounding."""
    count = mask.sum(1, keepdim=True)
    mean = (x * mask).sum(1, keepdim=True) / count
    centred = (x - mean) * mask
    std = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return torch.where(std > 1e-6 * mean.abs(), centred / std, 0.0)


def _features(x: Tensor, mask: Tensor, squares: bool) -> Tensor:
    """x [K, N, D] -> [K, N, D or 2 D], standardised."""
    x = _standardised(x.double(), mask).clamp(-10, 10)
    return torch.cat([x, _standardised(x.square(), mask)], -1) if squares else x


def _strengths(features: Tensor, mask: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """features [K]: how many of them vary. -> the ridge [K], and what it is for the time's features."""
    return ridge * features.clamp_min(1.0), _TIME_RIDGE * mask.sum((1, 2))


def _of_features(x: Tensor, mask: Tensor, time: Tensor, y: Tensor, ridge: float, squares: bool) -> Tensor:
    """The fitted values [K, N, 1] by the normal equations, as many as features."""
    z = _features(x, mask, squares)
    own, of_time = _strengths((z != 0).any(1).sum(1).double(), mask, ridge)
    z = torch.cat([z, time], -1)
    F = z.shape[-1] - 4
    penalty = torch.cat([own[:, None].expand(-1, F), of_time[:, None].expand(-1, 4)], -1)
    factor, _ = torch.linalg.cholesky_ex(z.mT @ z + torch.diag_embed(penalty))
    return z @ torch.cholesky_solve(z.mT @ y, factor)


def _of_steps(x: Tensor, mask: Tensor, time: Tensor, y: Tensor, ridge: float, squares: bool) -> Tensor:
    """The same by as many equations as steps: (Z Z^T + ridge) a = y, whose fitted values are y - ridge * a."""
    k, N = x.shape[:2]
    gram, vary = x.new_zeros(k, N, N, dtype=torch.float64), mask.new_zeros(k)
    for part in x.split(max(1, _BLOCK // (k * N)), -1):
        z = _features(part, mask, squares)
        gram += z @ z.mT
        vary += (z != 0).any(1).sum(1)
    own, of_time = (v[:, None, None] for v in _strengths(vary, mask, ridge))
    gram += time @ time.mT * (own / of_time)
    gram.diagonal(dim1=1, dim2=2).add_(own[:, 0])
    factor, _ = torch.linalg.cholesky_ex(gram)
    return y - own * torch.cholesky_solve(y, factor)
