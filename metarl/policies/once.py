"""Autograd functions marked with `once_differentiable`, whose second derivatives torch leaves out without an error.

Torch treats their gradient as a constant, or as an error that depends on no parameter. They are therefore searched for
in the graph, and a second derivative through them is refused.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MARKED = once_differentiable(lambda *_: None).__code__
"""Of every `backward` with that mark."""


def marked_once(outputs: Iterable[Tensor]) -> str:
    """The name of a function with that mark which `outputs` were computed with, "" if there is none."""
    seen: set[Any] = set()
    nodes: list[Any] = [x.grad_fn for x in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        if function is not None and getattr(function.backward, "__code__", None) is _MARKED:
            return str(function.__name__)
        nodes += [following for following, _ in node.next_functions]
    return ""


def check_twice(outputs: Iterable[Tensor]) -> None:
    """Raise RuntimeError, as torch does for other functions, if `outputs` have no second derivative."""
    if name := marked_once(outputs):
        raise RuntimeError(_refusal(name))


def differentiable_once(x: Tensor, name: str) -> Tensor:
    """`x`, whose second derivative is a RuntimeError; `name` is the function that it lacks one for."""
    out: Tensor = _Once.apply(x, name)
    return out


def _refusal(name: str) -> str:
    return f"cannot differentiate twice {name}, marked with @once_differentiable"


class _Once(torch.autograd.Function):
    """The identity, which can be differentiated once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Never.apply(grads[0], ctx.name), None


class _Never(torch.autograd.Function):
    """The identity, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(_refusal(ctx.name))
