"""The action distributions, as pure functions of their parameters.

Every function reduces over the action axis A and keeps the leading axes. It sums over action dimensions and never
averages: a mean would divide the score, and hence the effect of every step size, by A.
"""

import functools
import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """A diagonal Gaussian. `log_std` does not depend on the state: [K, 1, ..., 1, A], broadcast against `mean`."""

    mean: Tensor  # [..., A]
    log_std: Tensor  # broadcastable to mean


class Categorical(NamedTuple):
    """A distribution over A choices."""

    logits: Tensor  # [..., A], any additive constant


class _Logits(NamedTuple):
    logits: Tensor


class MultiCategorical(_Logits):
    """D independent choices, the d-th among `sizes[d]`: `logits` [..., A] has their logits one after the other.

    The sizes are not a tensor and therefore not a field: they belong to the class, which `multi_categorical` creates.
    `list(dist)` and `type(dist)(*tensors)` thus work in the same way for every distribution.
    """

    sizes: ClassVar[tuple[int, ...]] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.sizes, self.logits)


@functools.cache
def multi_categorical(sizes: tuple[int, ...]) -> type[MultiCategorical]:
    """The class of the distributions over D = len(sizes) choices; `multi_categorical((2, 3))(logits [..., 5])`."""
    assert len(sizes) > 0 and all(n >= 1 for n in sizes), sizes
    return type("MultiCategorical", (MultiCategorical,), {"sizes": sizes, "__doc__": MultiCategorical.__doc__})


def _rebuild(sizes: tuple[int, ...], logits: Tensor) -> MultiCategorical:
    return multi_categorical(sizes)(logits)


Distribution = Gaussian | Categorical | MultiCategorical

_IMPOSSIBLE = -1e30
"""The logit of a padding entry. It is not -inf, whose product with probability zero is NaN."""


def _blocks(dist: MultiCategorical, x: Tensor, fill: float) -> Tensor:
    """x [..., A] -> [..., D, most choices], one row per choice, with short rows padded by `fill`."""
    sizes, most = dist.sizes, max(dist.sizes)
    assert x.shape[-1] == sum(sizes), (x.shape, sizes)
    if min(sizes) == most:
        return x.unflatten(-1, (len(sizes), most))
    return torch.nn.functional.pad(x, (0, 1), value=fill)[..., _entry_indices(sizes, x.device)]


@functools.lru_cache(64)
def _entry_indices(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """[D, most choices]: the indices in [A + 1] of a block's entries; A stands for padding."""
    starts = [sum(sizes[:d]) for d in range(len(sizes))]
    rows = [[s + i if i < n else sum(sizes) for i in range(max(sizes))] for s, n in zip(starts, sizes, strict=True)]
    return torch.tensor(rows, device=device)


def _unblocks(dist: MultiCategorical, blocks: Tensor) -> Tensor:
    """The inverse of `_blocks`: [..., D, most choices] -> [..., A]."""
    if min(dist.sizes) == max(dist.sizes):
        return blocks.flatten(-2)
    valid = _entry_indices(dist.sizes, blocks.device) < sum(dist.sizes)
    return blocks[..., valid]


def _rows(dist: Categorical | MultiCategorical) -> Tensor:
    """The logits as [..., choices], with an additional axis D if there are several choices."""
    return dist.logits if isinstance(dist, Categorical) else _blocks(dist, dist.logits, _IMPOSSIBLE)


def _total(dist: Categorical | MultiCategorical, x: Tensor) -> Tensor:
    """The sum over independent choices of a quantity computed for each."""
    return x if isinstance(dist, Categorical) else x.sum(-1)


def log_prob(dist: Distribution, action: Tensor) -> Tensor:
    """Log density (or probability) of `action` -> [...].

    `action` is [..., A] for a Gaussian, integers [...] for one choice, integers [..., D] for several.
    """
    if isinstance(dist, Gaussian):
        assert action.shape == dist.mean.shape, (action.shape, dist.mean.shape)
        z = (action - dist.mean) * torch.exp(-dist.log_std)
        return (-0.5 * z**2 - dist.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    rows = _rows(dist)
    assert action.shape == rows.shape[:-1], (action.shape, rows.shape)
    return _total(dist, torch.log_softmax(rows, -1).gather(-1, action[..., None])[..., 0])


def kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p || q), [...]. In TRPO p is the policy that acted."""
    if isinstance(p, Gaussian):
        assert isinstance(q, Gaussian) and p.mean.shape == q.mean.shape, (p.mean.shape, q)
        variance_ratio = torch.exp(2 * (p.log_std - q.log_std))
        distance = ((p.mean - q.mean) * torch.exp(-q.log_std)) ** 2
        return (q.log_std - p.log_std + 0.5 * (variance_ratio + distance - 1)).sum(-1)
    assert type(q) is type(p) and p.logits.shape == q.logits.shape, (p.logits.shape, q)
    log_p, log_q = torch.log_softmax(_rows(p), -1), torch.log_softmax(_rows(q), -1)
    return _total(p, (log_p.exp() * (log_p - log_q)).sum(-1))


def entropy(dist: Distribution) -> Tensor:
    """Differential (Gaussian) or Shannon (categorical) entropy in nats, [...]."""
    if isinstance(dist, Gaussian):
        return (dist.log_std + 0.5 * math.log(2 * math.pi * math.e)).expand_as(dist.mean).sum(-1)
    log_p = torch.log_softmax(_rows(dist), -1)
    return -_total(dist, (log_p.exp() * log_p).sum(-1))


def sample(dist: Distribution, noise: Tensor) -> Tensor:
    """An action from given random numbers: standard normals [..., A], one uniform number [..., 1] for one choice, or
    one per choice [..., D]."""
    if isinstance(dist, Gaussian):
        return dist.mean + torch.exp(dist.log_std) * noise
    if isinstance(dist, MultiCategorical):
        assert noise.shape[-1] == len(dist.sizes), (noise.shape, dist.sizes)
        # A choice that is not there adds nothing to the sum before it, which rounding may leave just below 1.
        last = torch.tensor(dist.sizes, device=noise.device) - 1
        cumulative = torch.softmax(_rows(dist), -1).cumsum(-1)[..., :-1]
        return torch.minimum((noise[..., None] >= cumulative).sum(-1), last)
    cumulative = torch.softmax(dist.logits, -1).cumsum(-1)[..., :-1]  # without the last: rounding cannot overrun it
    return (noise >= cumulative).sum(-1)


def mode(dist: Distribution) -> Tensor:
    """The most likely action."""
    return dist.mean if isinstance(dist, Gaussian) else _rows(dist).argmax(-1)


def probabilities(dist: Categorical | MultiCategorical) -> Tensor:
    """The probability of every choice, [..., A]; for several choices, their distributions are concatenated."""
    if isinstance(dist, MultiCategorical):
        return _unblocks(dist, torch.softmax(_rows(dist), -1))
    return torch.softmax(dist.logits, -1)


def fisher_product(dist: Distribution, tangent: Distribution, weight: Tensor) -> Distribution:
    """The Fisher matrix in the distribution's own parameters, times `tangent`, summed with `weight` [...] over states.

    It is the Hessian of `(weight * kl(dist.detach(), dist)).sum()` in (mean, log_std) or in logits.
    """
    if isinstance(dist, Gaussian):
        assert isinstance(tangent, Gaussian)
        mean = weight[..., None] * torch.exp(-2 * dist.log_std) * tangent.mean
        total = weight.sum(tuple(range(1, weight.dim()))).reshape(-1, *[1] * (dist.log_std.dim() - 1))
        return Gaussian(mean, 2 * total * tangent.log_std)
    assert type(tangent) is type(dist)
    if isinstance(dist, MultiCategorical):
        # Independent choices: their Fisher matrices stand on the diagonal.
        rows, along = _rows(dist), _blocks(dist, tangent.logits, 0.0)
        return type(dist)(_unblocks(dist, weight[..., None, None] * _choice_fisher(rows, along)))
    return Categorical(weight[..., None] * _choice_fisher(dist.logits, tangent.logits))


def _choice_fisher(logits: Tensor, along: Tensor) -> Tensor:
    """The product of (diag(p) - p p^T) with `along`, over the last axis."""
    p = torch.softmax(logits, -1)
    return p * (along - (p * along).sum(-1, keepdim=True))
