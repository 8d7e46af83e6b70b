"""Trials as sequences for training: valid steps first, cut into chunks."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from metarl.parallel import CHUNK_ROWS, thread_map
from metarl.params import Params
from metarl.recurrent.trials import WIDE, Trials


@dataclass(frozen=True)
class Sequences:
    """B trials with their valid steps moved to the front, contiguously.

    Time is the leading axis, as recurrent networks expect. L' is the length of the longest trial.
    """

    x: Tensor  # [L', B, I]
    act: Tensor  # [L', B, ...]
    rew: Tensor  # [L', B]
    mask: Tensor  # [L', B], ones and then zeros
    log_prob: Tensor  # [L', B]
    value: Tensor  # [L', B]

    def __getitem__(self, trials: Tensor | slice) -> "Sequences":
        """Some of the trials."""
        return Sequences(**{f.name: getattr(self, f.name)[:, trials] for f in fields(self)})


def sequences(trials: Trials) -> Sequences:
    """Trials [K, L, E] -> B = K E of them, task-major, with their valid steps moved together."""
    mask = _time_first(trials.mask)
    named = {name: _time_first(getattr(trials, name)) for name in ("x", "act", "rew", "log_prob", "value")}
    length = mask.sum(0)
    longest = int(length.max())
    if longest < mask.shape[0] or bool((length < longest).any()):
        order = torch.argsort(mask, dim=0, descending=True, stable=True)[:longest]
        named = {name: _take(value, order) for name, value in named.items()}
        mask = _take(mask, order)
    return Sequences(mask=mask, **named)


def _time_first(value: Tensor) -> Tensor:
    """[K, L, E, ...] -> [L, K E, ...]."""
    return value.transpose(0, 1).flatten(1, 2).contiguous()


def _take(value: Tensor, order: Tensor) -> Tensor:
    """value [L, B, ...] at the times order [L', B] -> [L', B, ...]."""
    order = order.reshape(*order.shape, *[1] * (value.dim() - 2)).expand(*order.shape, *value.shape[2:])
    return value.gather(0, order)


def summed_up(
    loss: Callable[[Params, slice], tuple[Tensor, dict[str, Tensor]]], params: Params, mask: Tensor
) -> tuple[Params, dict[str, Tensor]]:
    """The gradient of a loss that is a mean over the valid steps of trials, and the loss's parts. mask [L, B]."""
    (L, B), total = mask.shape, mask.sum()

    def of_chunk(chunk: slice) -> tuple[list[Tensor], dict[str, Tensor]]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            value, parts = loss(leaves, chunk)
            weight = mask[:, chunk].sum() / total
            grads = torch.autograd.grad(value * weight, list(leaves.values()))
        return list(grads), {name: part.detach() * weight for name, part in parts.items()}

    first, *others = thread_map(of_chunk, trial_chunks(L, B, mask.device))
    grads = {name: sum(part[0][i] for part in others) + first[0][i] for i, name in enumerate(params)}
    return grads, {name: sum(part[1][name] for part in others) + first[1][name] for name in first[1]}


def trial_chunks(length: int, n_trials: int, device: torch.device) -> list[slice]:
    """B trials in chunks of about `parallel.CHUNK_ROWS` steps, but at least `WIDE` trials; on a GPU they are one
    chunk."""
    size = n_trials if device.type != "cpu" else max(WIDE, CHUNK_ROWS // length)
    return [slice(i, min(i + size, n_trials)) for i in range(0, n_trials, size)]
