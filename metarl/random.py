"""Random numbers as a pure function of a key: Philox4x32-10 in tensor operations.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). There is no generator state, so a number does
not depend on earlier draws, on how many tasks run at once, on the device or on the number of processes.

The key of an episode is a 62-bit seed, made by `episode_seeds` from (run seed, meta-iteration, stage, task, episode).
Several independent streams are derived from each such seed (the environment's numbers, the action noise).
"""

import math

import torch
from torch import Tensor

ENVIRONMENT, ACTION = 0, 1  # streams of an episode's seed
_MASK = 0xFFFFFFFF
_SEEDING = 0xA5EED


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four counter words and two key words (int64 tensors that hold 32-bit values) -> four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words needs 64 bits; int64 wraps, and the mask after the shift drops the sign.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def words(seeds: Tensor, start: int | Tensor, count: int, stream: int) -> Tensor:
    """32-bit words number `start` to `start + count` of every seed's `stream`. seeds [...] -> int64 [..., count].

    `start` may be a tensor [...] with one position per seed.
    """
    if count == 0:  # ten rounds on nothing take a fifth of a millisecond, in every reset of a family without draws
        return seeds.new_zeros(*seeds.shape, 0)
    if isinstance(start, Tensor):
        every = torch.arange(count, device=seeds.device) + start[..., None] % 4
        return _blocks(seeds, start[..., None] // 4 + torch.arange(-(-count // 4) + 1, device=seeds.device),
                       stream).gather(-1, every)  # fmt: skip
    first, last = start // 4, -(-(start + count) // 4)
    out = _blocks(seeds, torch.arange(first, last, device=seeds.device), stream)
    return out[..., start - 4 * first : start - 4 * first + count]


def _blocks(seeds: Tensor, block: Tensor, stream: int) -> Tensor:
    """The four words of every block. seeds [...], block [n] or [..., n] -> int64 [..., 4 n]."""
    key = (seeds[..., None] & _MASK, seeds[..., None] >> 32 & _MASK)
    counter = (block & _MASK, block >> 32, torch.full_like(block, stream), torch.zeros_like(block))
    return torch.stack(torch.broadcast_tensors(*philox(counter, key)), -1).flatten(-2)


def uniform(seeds: Tensor, start: int | Tensor, count: int, stream: int) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2**-24. seeds [...] -> [..., count]; `start` as in `words`."""
    return (words(seeds, start, count, stream) >> 8).to(torch.float32) * 2.0**-24


def normal(seeds: Tensor, start: int, count: int, stream: int) -> Tensor:
    """Standard normal float32 numbers by Box and Muller's method. seeds [...] -> [..., count]."""
    first, last = start // 2, -(-(start + count) // 2)
    w = (words(seeds, 2 * first, 2 * (last - first), stream) >> 8).to(torch.float32).unflatten(-1, (-1, 2))
    radius = torch.sqrt(-2.0 * torch.log((w[..., 0] + 1.0) * 2.0**-24))  # + 1: the logarithm of zero never occurs
    angle = w[..., 1] * (2.0 * math.pi * 2.0**-24)
    out = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1).flatten(-2)
    return out[..., start - 2 * first : start - 2 * first + count]


def to_normal(draws: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) -> standard normal ones, by the inverse of the normal distribution function.

    For families whose randomness arrives as uniform `draws`. Zero, which would become -inf, counts as half a step.
    """
    return torch.special.ndtri(draws.clamp(min=2.0**-25))


def episode_seeds(seed: int, iteration: int, stage: int, n_tasks: int, episodes: int) -> Tensor:
    """The keys of K tasks' episodes in one stage of one meta-iteration: int64 [K, E], each in [0, 2**62)."""
    task, episode = torch.arange(n_tasks)[:, None], torch.arange(episodes)[None, :]
    return seeds_at(seed, task, episode, torch.tensor(iteration), torch.tensor(stage)).expand(n_tasks, episodes)


def seeds_at(seed: int, task: Tensor, episode: Tensor, iteration: Tensor, stage: Tensor) -> Tensor:
    """The same for arbitrary indices: int64 tensors that broadcast against each other -> one key each."""
    key = (torch.tensor(seed & _MASK), torch.tensor(seed >> 32 & _MASK))
    w = philox((task, episode, iteration, stage), key)
    return w[0] | (w[1] & 0x3FFFFFFF) << 32


def generator_seed(seed: int, purpose: int) -> int:
    """A 62-bit seed for a generator that is used immediately and then discarded (for initial weights, for example)."""
    return int(episode_seeds(seed, 0, _SEEDING + purpose, 1, 1))
