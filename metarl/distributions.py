"""The action distributions, as pure functions of their parameters.

Every function reduces over the action axis A and keeps the leading axes. The sums are over action dimensions, never
means: a mean would divide the score, and so every step size, by A.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """A diagonal Gaussian. `log_std` does not depend on the state: [K, 1, ..., 1, A], broadcast against `mean`."""

    mean: Tensor  # [..., A]
    log_std: Tensor  # broadcastable to mean


class Categorical(NamedTuple):
    """A distribution over A choices."""

    logits: Tensor  # [..., A], any additive constant


Distribution = Gaussian | Categorical


def log_prob(dist: Distribution, action: Tensor) -> Tensor:
    """Log density (or probability) of `action`: [..., A] for a Gaussian, integers [...] for a categorical -> [...]."""
    if isinstance(dist, Gaussian):
        assert action.shape == dist.mean.shape, (action.shape, dist.mean.shape)
        z = (action - dist.mean) * torch.exp(-dist.log_std)
        return (-0.5 * z**2 - dist.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    assert action.shape == dist.logits.shape[:-1], (action.shape, dist.logits.shape)
    return torch.log_softmax(dist.logits, -1).gather(-1, action[..., None])[..., 0]


def kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p || q), [...]. In TRPO p is the policy that acted."""
    if isinstance(p, Gaussian):
        assert isinstance(q, Gaussian) and p.mean.shape == q.mean.shape, (p.mean.shape, q)
        variance_ratio = torch.exp(2 * (p.log_std - q.log_std))
        distance = ((p.mean - q.mean) * torch.exp(-q.log_std)) ** 2
        return (q.log_std - p.log_std + 0.5 * (variance_ratio + distance - 1)).sum(-1)
    assert isinstance(q, Categorical) and p.logits.shape == q.logits.shape, (p.logits.shape, q)
    log_p, log_q = torch.log_softmax(p.logits, -1), torch.log_softmax(q.logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def entropy(dist: Distribution) -> Tensor:
    """Differential (Gaussian) or Shannon (categorical) entropy in nats, [...]."""
    if isinstance(dist, Gaussian):
        return (dist.log_std + 0.5 * math.log(2 * math.pi * math.e)).expand_as(dist.mean).sum(-1)
    log_p = torch.log_softmax(dist.logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def sample(dist: Distribution, noise: Tensor) -> Tensor:
    """An action from outside randomness: standard normals [..., A], or one uniform number [..., 1] (categorical)."""
    if isinstance(dist, Gaussian):
        return dist.mean + torch.exp(dist.log_std) * noise
    cumulative = torch.softmax(dist.logits, -1).cumsum(-1)[..., :-1]  # without the last: rounding cannot overrun it
    return (noise >= cumulative).sum(-1)


def mode(dist: Distribution) -> Tensor:
    """The most likely action."""
    return dist.mean if isinstance(dist, Gaussian) else dist.logits.argmax(-1)


def fisher_product(dist: Distribution, tangent: Distribution, weight: Tensor) -> Distribution:
    """The Fisher matrix in the distribution's own parameters, times `tangent`, summed with `weight` [...] over states.

    It is the Hessian of `(weight * kl(dist.detach(), dist)).sum()` in (mean, log_std) or in logits.
    """
    if isinstance(dist, Gaussian):
        assert isinstance(tangent, Gaussian)
        mean = weight[..., None] * torch.exp(-2 * dist.log_std) * tangent.mean
        total = weight.sum(tuple(range(1, weight.dim()))).reshape(-1, *[1] * (dist.log_std.dim() - 1))
        return Gaussian(mean, 2 * total * tangent.log_std)
    assert isinstance(tangent, Categorical)
    p = torch.softmax(dist.logits, -1)
    centred = tangent.logits - (p * tangent.logits).sum(-1, keepdim=True)
    return Categorical(weight[..., None] * p * centred)
