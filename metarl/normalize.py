"""Running mean and variance of observations, and observations made even by them.

Statistics are data like parameters: a dict of float64 tensors, `count` [], `mean` [O] and `m2` [O] (the sum of squared
differences from the mean), which an algorithm carries in its state. The empty dict means no normalisation. To use it:

    rollout = sampler.collect(..., obs_stats=state.obs_stats)                              # the policy sees even ones
    obs_stats = normalize.update(state.obs_stats, rollout.raw_obs, rollout.mask)           # for the next iteration
"""

from collections.abc import Callable

import torch
from gymnasium.spaces import Box
from torch import Tensor

from metarl.parallel import task_chunks
from metarl.spaces import Spaces

ObsStats = dict[str, Tensor]

CLIP = 10.0
"""Even observations are cut off there, as in stable-baselines3's VecNormalize."""
_LEAST_STD = 1e-8


def start(spaces: Spaces, device: torch.device | str = "cpu") -> ObsStats:
    """The statistics before the first observation.

    Raises:
        ValueError: observations of a kind that has no scale to be mended: images or choices.
    """
    if not isinstance(spaces.observation, Box) or spaces.image is not None:
        raise ValueError(
            f"normalize_obs is for vectors of numbers, and the observation space is {spaces.observation}: images are "
            "scaled to [0, 1] and choices one-hot vectors already, leave it out"
        )
    zero = torch.zeros(spaces.obs_dim, dtype=torch.float64, device=device)
    return {"count": zero.sum(), "mean": zero, "m2": zero.clone()}


def scaler(stats: ObsStats | None, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """The function from raw observations [..., O] to those with mean 0 and standard deviation 1.

    Before the first data it only cuts off; without statistics it changes nothing.
    """
    if not stats:
        return lambda obs: obs
    variance = stats["m2"] / stats["count"].clamp_min(1)
    std = variance.sqrt().clamp_min(_LEAST_STD)
    inverse = torch.where(stats["count"] > 0, 1 / std, torch.ones_like(std))
    mean, inverse = (x.to(device, torch.float32) for x in (stats["mean"], inverse))
    return lambda obs: ((obs - mean) * inverse).clamp(-CLIP, CLIP)


@torch.no_grad()
def update(stats: ObsStats, obs: Tensor, mask: Tensor) -> ObsStats:
    """The statistics with the valid steps of obs [K, T, E, O], mask [K, T, E] added; empty ones stay empty.

    Chunk by chunk by the formula of Chan, Golub and LeVeque (1983), which loses nothing where the mean is large.
    """
    if not stats:
        return stats
    K, T, E, O = obs.shape
    assert mask.shape == (K, T, E) and stats["mean"].shape == (O,), (obs.shape, mask.shape, stats["mean"].shape)
    count, mean, m2 = stats["count"], stats["mean"], stats["m2"]
    for chunk in task_chunks(K, T * E, obs.device):
        x, weight = obs[chunk].reshape(-1, O).double(), mask[chunk].reshape(-1, 1).double()
        own = weight.sum()
        own_mean = (x * weight).sum(0) / own.clamp_min(1)
        apart, total = own_mean - mean, count + own
        share = own / total.clamp_min(1)
        m2 = m2 + (weight * (x - own_mean) ** 2).sum(0) + apart**2 * count * share
        count, mean = total, mean + apart * share
    return {"count": count, "mean": mean, "m2": m2}
