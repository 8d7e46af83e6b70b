"""Running mean and variance of observations, and observations normalised by them.

Statistics are data like parameters: a dict of float64 tensors, `count` [], `mean` [O] and `m2` [O] (the sum of squared
differences from the mean), which an algorithm carries in its state. The empty dict means no normalisation. To use it:

    rollout = sampler.collect(..., obs_stats=state.obs_stats)                          # the policy sees normalised ones
    obs_stats = normalize.update(state.obs_stats, rollout.raw_obs, rollout.mask)           # for the next iteration
"""

from collections.abc import Callable

import torch
from gymnasium.spaces import Box
from torch import Tensor

from metarl.parallel import task_chunks
from metarl.policies.spaces import Spaces

ObsStats = dict[str, Tensor]

CLIP = 10.0
"""Normalised observations are clipped to this range, as in stable-baselines3's VecNormalize."""
SURVEY = 0x50B7E7
"""Stage number (in `rl2`, iteration number) whose random keys are used for the episodes of the first statistics."""
_LEAST_VARIANCE = 1e-8  # added to the variance, as there


def start(spaces: Spaces, device: torch.device | str = "cpu") -> ObsStats:
    """The statistics before the first observation.

    Raises:
        ValueError: the observations need no normalisation: images or choices.
    """
    if not isinstance(spaces.observation, Box) or spaces.image is not None:
        raise ValueError(
            f"normalize_obs is for vectors of numbers, but the observation space is {spaces.observation}: images are "
            "already scaled to [0, 1] and choices are one-hot vectors, so leave it out"
        )
    zero = torch.zeros(spaces.obs_dim, dtype=torch.float64, device=device)
    return {"count": zero.sum(), "mean": zero, "m2": zero.clone()}


def scaler(stats: ObsStats | None, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """The function from raw observations [..., O], float32 or float64, to float32 ones with mean 0 and standard
    deviation 1. The mean is subtracted in float64: values such as times in seconds since 1970 would lose most digits in
    float32.

    Before the first data it only clips; without statistics it changes nothing.
    """
    if not stats:
        return lambda obs: obs
    mean, variance = stats["mean"].to(device), (stats["m2"] / stats["count"].clamp_min(1)).to(device)
    seen = stats["count"].to(device) > 0
    inverse = {kind: torch.where(seen, 1 / _std(mean, variance, kind), 1.0) for kind in (torch.float32, torch.float64)}
    return lambda obs: ((obs.double() - mean) * inverse[obs.dtype]).clamp(-CLIP, CLIP).float()


def _std(mean: Tensor, variance: Tensor, kind: torch.dtype) -> Tensor:
    """What observations of this type are divided by. An entry that was constant, up to rounding, has no scale of its
    own: whatever it drifts by later would be far off. It is given a thousand times the rounding of its type."""
    rounding = torch.finfo(kind).eps * mean.abs()
    least = torch.where(variance.sqrt() <= rounding, 1000 * rounding, 0.0)
    return torch.maximum((variance + _LEAST_VARIANCE).sqrt(), least)


@torch.no_grad()
def update(stats: ObsStats, obs: Tensor, mask: Tensor) -> ObsStats:
    """The statistics updated with the valid steps of obs [K, T, E, O], mask [K, T, E]; empty ones stay empty.

    Uses the chunk-wise formula of Chan, Golub and LeVeque (1983), which stays accurate if the mean is large.
    """
    if not stats:
        return stats
    K, T, E, O = obs.shape
    assert mask.shape == (K, T, E) and stats["mean"].shape == (O,), (obs.shape, mask.shape, stats["mean"].shape)
    count, mean, m2 = stats["count"], stats["mean"], stats["m2"]
    for chunk in task_chunks(K, T * E, obs.device):
        x, weight = obs[chunk].reshape(-1, O).double(), mask[chunk].reshape(-1, 1).double()
        n_valid = weight.sum()
        chunk_mean = (x * weight).sum(0) / n_valid.clamp_min(1)
        difference, total = chunk_mean - mean, count + n_valid
        share = n_valid / total.clamp_min(1)
        m2 = m2 + (weight * (x - chunk_mean) ** 2).sum(0) + difference**2 * count * share
        count, mean = total, mean + difference * share
    return {"count": count, "mean": mean, "m2": m2}
