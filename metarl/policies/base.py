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
    """What every policy has, with or without a memory."""

    @property
    def spaces(self) -> Spaces:
        """What it observes and how it acts."""
        ...

    @property
    def kind(self) -> str:
        """Its class's name, under which files know it (see `metarl.policies.kinds`)."""
        ...

    @property
    def memory(self) -> int:
        """How many numbers it remembers from step to step; 0 for a function of the present observation."""
        ...

    def init(self, generator: torch.Generator) -> Params:
        """Fresh meta-parameters, without a task axis."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `from_description(spaces, described)` of its class makes it from again, as JSON-able data."""
        ...


class Policy(AnyPolicy, Protocol):
    """What the gradient-based algorithms need of a policy; its `memory` is 0."""

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        """params [K, ...], obs [K, ..., O] -> the action distribution in every state."""
        ...


def check_std(init_std: float, min_std: float) -> None:
    if not 0 < min_std < init_std:
        raise ValueError(f"need 0 < min_std < init_std, got {min_std} and {init_std}")


def check_network(hidden: tuple[int, ...], activation: str, init_std: float, min_std: float) -> None:
    """Raise ValueError for settings of a network that make no sense."""
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

    Below the floor it is the floor's, with the derivative of one that has no floor (straight-through). A plain clamp,
    as in the code of MAML and ProMP, has the derivative zero there: what once went below would never come back.
    """
    if "log_std" not in params:
        return None
    own = params["log_std"]
    return own + (own.detach().clamp_min(math.log(min_std)) - own.detach())


def at_least(log_std: Tensor, min_std: float) -> Tensor:
    """`log_std` with what is below the floor put on it, where the next step starts from: without this the
    straight-through derivative could carry it ever further down, out of reach of the steps that lead back."""
    return log_std.clamp_min(math.log(min_std))


def std_statistics(dist: Distribution, min_std: float) -> dict[str, float]:
    """What is logged of a Gaussian policy's standard deviation (see docs/logging.md); nothing of another policy."""
    if not isinstance(dist, Gaussian):
        return {}
    on_floor = dist.log_std <= math.log(min_std) + 1e-5
    return {"policy/std": dist.log_std.exp().mean().item(), "policy/std_on_floor": on_floor.float().mean().item()}
