"""Losses and accuracies of K tasks at once: means over each task's examples, [K]."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from metarl.supervised.sets import LossName

Loss = Callable[[Tensor, Tensor], Tensor]


def mse(out: Tensor, y: Tensor) -> Tensor:
    """Squared error: out, y [K, N, A] -> [K], the mean over examples and outputs."""
    _check_values(out, y)
    return (out - y).square().mean((1, 2))


def bce(logits: Tensor, y: Tensor) -> Tensor:
    """-log p(y) of independent binary outputs: logits, y [K, N, A], y in {0, 1} -> [K], mean over both axes."""
    _check_values(logits, y)
    return functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean((1, 2))


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p(y) of one class out of C: logits [K, N, C], y [K, N] in 0..C-1 -> [K]."""
    _check_classes(logits, y)
    return -torch.log_softmax(logits, -1).gather(-1, y[..., None])[..., 0].mean(1)


def bce_accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Fraction of correct binary outputs, where a positive logit means 1: logits, y [K, N, A] -> [K]."""
    _check_values(logits, y)
    return ((logits > 0) == (y > 0.5)).to(logits.dtype).mean((1, 2))


def class_accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Fraction of examples whose class has the largest logit: logits [K, N, C], y [K, N] -> [K]."""
    _check_classes(logits, y)
    return (logits.argmax(-1) == y).to(logits.dtype).mean(1)


LOSSES: dict[LossName, Loss] = {"mse": mse, "bce": bce, "cross_entropy": cross_entropy}

ACCURACIES: dict[LossName, Loss] = {"bce": bce_accuracy, "cross_entropy": class_accuracy}
"""By loss; "mse" has no accuracy."""


def _check_values(out: Tensor, y: Tensor) -> None:
    assert out.dim() == 3 and out.shape == y.shape, (
        f"outputs and targets need the same shape [K, N, A], got {tuple(out.shape)} and {tuple(y.shape)}"
    )


def _check_classes(logits: Tensor, y: Tensor) -> None:
    assert logits.dim() == 3 and y.shape == logits.shape[:2], (
        f"need logits [K, N, C] and classes [K, N], got {tuple(logits.shape)} and {tuple(y.shape)}"
    )
    assert not y.is_floating_point(), f"classes are whole numbers, got {y.dtype}"
