"""Policy losses: tensors [K, T, E] in, one number per task [K] out, to be minimised.

Each is a mean over the task's own valid steps, so that an inner step size means the same at any number of tasks or
episodes.
"""

from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each task's valid steps. x, mask [K, T, E] -> [K]."""
    _check(x, mask)
    return (x * mask).sum((1, 2)) / mask.sum((1, 2))


def policy_gradient(log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Likelihood-ratio policy gradient (REINFORCE): its gradient is -E[grad log pi * A]."""
    _check(log_prob, advantage, mask)
    return -masked_mean(log_prob * advantage, mask)


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """The importance-weighted surrogate of TRPO (Schulman et al. 2015, eq. 14)."""
    _check(log_prob, old_log_prob, advantage, mask)
    return -masked_mean((log_prob - old_log_prob).exp() * advantage, mask)


def _check(*tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    assert len(shapes) == 1 and tensors[0].dim() == 3, f"expected equal shapes [K, T, E], got {sorted(shapes)}"
