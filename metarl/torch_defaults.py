"""PyTorch's standard defaults for this package's computations, whatever the caller has set.

A script may compute in float64 (`torch.set_default_dtype`), on a GPU (`torch.set_default_device`), without gradients
(`torch.no_grad`, `torch.inference_mode`) or in half precision (`torch.autocast`). None of this may change a result here
or cause an error about types, so every public function that computes is wrapped in `torch_defaults`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_DEVICES = ("cpu", "cuda")


def torch_defaults(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, run with float32, CPU, gradients enabled and autocast disabled; previous settings are restored."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if _are_usual():
            return function(*args, **kwargs)
        with usual_defaults():
            return function(*args, **kwargs)

    return wrapped


def _are_usual() -> bool:
    return (
        torch.get_default_dtype() == torch.float32
        and torch.is_grad_enabled()
        and not torch.is_inference_mode_enabled()
        and torch.get_default_device().type == "cpu"
        and not any(torch.is_autocast_enabled(kind) for kind in _DEVICES)
    )


@contextlib.contextmanager
def usual_defaults() -> Iterator[None]:
    """The context in which `torch_defaults` runs a function.

    Only settings that differ are changed: a default device, for example, makes Python intercept every torch call.
    """
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in _DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
