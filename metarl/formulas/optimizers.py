"""Gradient transformations as pure functions: (gradients, memory) -> (directions, memory).

They serve both loops. In the outer loop, `params - lr * direction` is the optimiser's step; in the inner loop, where
every tensor has a leading task axis, it is every task's own step, and it can be differentiated.
"""

import torch
from torch import Tensor

from metarl.params import Params

COUNT = "count"
"""The key of the step count in Adam's memory."""


def momentum(grads: Params, memory: Params, beta: float = 0.9) -> tuple[Params, Params]:
    """Heavy-ball momentum as in `torch.optim.SGD(momentum=beta)`: v <- beta v + g. An empty memory starts at zero."""
    new = {name: beta * memory[name] + g if name in memory else g for name, g in grads.items()}
    return new, dict(new)


def adam(
    grads: Params, memory: Params, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> tuple[Params, Params]:
    """Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1). An empty memory starts at zero.

    It is differentiable even where a gradient is zero: eps^2 / 100 is added to the second moment under the root, which
    increases the divisor by less than a tenth of `eps`, and by less than a hundredth where the root is larger than
    `eps`.
    """
    first, second = betas
    one = next(iter(grads.values()))
    count = memory.get(COUNT, torch.zeros((), device=one.device, dtype=torch.float64)) + 1
    out, new = {}, {COUNT: count}
    for name, g in grads.items():
        mean = first * memory.get(f"mean/{name}", torch.zeros_like(g)) + (1 - first) * g
        square = second * memory.get(f"square/{name}", torch.zeros_like(g)) + (1 - second) * g**2
        new |= {f"mean/{name}": mean, f"square/{name}": square}
        corrected = square / (1 - second**count).to(g.dtype)
        out[name] = mean / (1 - first**count).to(g.dtype) / (torch.sqrt(corrected + (0.1 * eps) ** 2) + eps)
    return out, new


def clip_norm(grads: Params, most: float) -> tuple[Params, Tensor]:
    """`grads` clipped to a joint Euclidean norm of at most `most`, and the norm before clipping."""
    norm = torch.stack([g.norm() for g in grads.values()]).norm()
    if most == float("inf"):
        return grads, norm
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    return {name: g * factor for name, g in grads.items()}, norm


def adam_start(params: Params) -> Params:
    """The memory of `adam` before its first step, with all entries present, so that it can be saved and compared."""
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    count = torch.zeros((), dtype=torch.float64, device=next(iter(params.values())).device)
    moments = {f"{kind}/{name}": zero.clone() for name, zero in zeros.items() for kind in ("mean", "square")}
    return {COUNT: count, **moments}
