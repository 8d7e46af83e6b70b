"""Policies as descriptions (frozen) and parameters as data (dicts of tensors), stacked over tasks.

Every policy has `init(generator) -> Params` and `distribution(params [K, ...], obs [K, ..., O]) -> Distribution`.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from metarl.formulas.distributions import Distribution, Gaussian
from metarl.params import Params
from metarl.policies.spaces import Spaces
from metarl.policies.stacked_mlp import ACTIVATIONS


class AnyPolicy(Protocol):
    """The interface of every policy, with or without a memory."""

    @property
    def spaces(self) -> Spaces:
        """Its observation and action spaces."""
        ...

    @property
    def kind(self) -> str:
        """Its class's name, which identifies it in files (see `metarl.policies.kinds`)."""
        ...

    @property
    def memory(self) -> int:
        """Size of the memory carried from step to step; 0 for a function of the current observation."""
        ...

    def init(self, generator: torch.Generator) -> Params:
        """Initial meta-parameters, without a task axis."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-serialisable data from which `from_description(spaces, described)` of its class recreates it."""
        ...


class Policy(AnyPolicy, Protocol):
    """The interface of a policy for the gradient-based algorithms; its `memory` is 0."""

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        """params [K, ...], obs [K, ..., O] -> the action distribution in every state."""
        ...


def check_std(init_std: float, min_std: float) -> None:
    if not 0 < min_std < init_std:
        raise ValueError(f"need 0 < min_std < init_std, got {min_std} and {init_std}")


def check_network(hidden: tuple[int, ...], activation: str, init_std: float, min_std: float) -> None:
    """Raise ValueError for invalid settings of a network."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden layers need at least one unit each, got {hidden}")
    check_std(init_std, min_std)


def log_std_init(spaces: Spaces, init_std: float) -> Tensor:
    """The initial log standard deviation of a Gaussian head, [A]."""
    return torch.full((spaces.act_dim,), math.log(init_std))


def xavier(generator: torch.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Tensor:
    """Uniform weights of Glorot and Bengio (2010)."""
    return (torch.rand(*shape, generator=generator) * 2 - 1) * math.sqrt(6 / (fan_in + fan_out))


def dense_layers(generator: torch.Generator, sizes: tuple[int, ...]) -> Params:
    """Xavier-uniform weights and zero biases of layers from `sizes[0]` inputs to `sizes[-1]` outputs: w0, b0, ..."""
    params: Params = {}
    for i, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        params[f"w{i}"], params[f"b{i}"] = xavier(generator, (n, m), n, m), torch.zeros(m)
    return params


def floored_log_std(params: Params, min_std: float) -> Tensor | None:
    """The log standard deviation [K, A] of a Gaussian head, None of a categorical one.

    Below the floor the value is clamped, but gradients pass straight through. A plain clamp, as in the code of MAML and
    ProMP, has a zero derivative there: a parameter that once went below could never come back.
    """
    if "log_std" not in params:
        return None
    log_std = params["log_std"]
    return log_std + (log_std.detach().clamp_min(math.log(min_std)) - log_std.detach())


def at_least(log_std: Tensor, min_std: float) -> Tensor:
    """`log_std`, with values below the floor set to it before the next step. Otherwise the straight-through derivative
    could move it ever further down, too far for later steps to bring it back."""
    return log_std.clamp_min(math.log(min_std))


def std_statistics(dist: Distribution, min_std: float) -> dict[str, float]:
    """Statistics of a Gaussian policy's standard deviation (see docs/logging.md); empty for other policies."""
    if not isinstance(dist, Gaussian):
        return {}
    on_floor = dist.log_std <= math.log(min_std) + 1e-5
    return {"policy/std": dist.log_std.exp().mean().item(), "policy/std_on_floor": on_floor.float().mean().item()}
