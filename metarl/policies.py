"""Policies as descriptions (frozen) and parameters as data (dicts of tensors), stacked over tasks.

Every policy has `init(generator) -> Params` and `distribution(params [K, ...], obs [K, ..., O]) -> Distribution`.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from metarl.adapt import Params
from metarl.distributions import Distribution, Gaussian
from metarl.mlp import ACTIVATIONS, forward
from metarl.modules import StackedModule
from metarl.spaces import Spaces, distribution_of


class Policy(Protocol):
    """What the algorithms need of a policy."""

    @property
    def spaces(self) -> Spaces:
        """What it observes and how it acts."""
        ...

    def init(self, generator: torch.Generator) -> Params:
        """Fresh meta-parameters, without a task axis."""
        ...

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        """params [K, ...], obs [K, ..., O] -> the action distribution in every state."""
        ...


def _check_std(init_std: float, min_std: float) -> None:
    if not 0 < min_std < init_std:
        raise ValueError(f"need 0 < min_std < init_std, got {min_std} and {init_std}")


def check_network(hidden: tuple[int, ...], activation: str, init_std: float, min_std: float) -> None:
    """Raise ValueError for settings of a network that make no sense."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden layers need at least one unit each, got {hidden}")
    _check_std(init_std, min_std)


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


@dataclass(frozen=True)
class MLPPolicy:
    """A multi-layer perceptron with a Gaussian or categorical head, for K tasks in one batched product per layer."""

    spaces: Spaces
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    init_std: float = 1.0
    """Initial standard deviation of a Gaussian head, in policy units (1 is half the range of a bounded action)."""
    min_std: float = 1e-3
    input_gain: float = 1.0
    """Factor on the first layer's initial weights: above 1 where observations are small numbers."""
    output_gain: float = 0.01
    """Factor on the last layer's initial weights: actions near zero at first, whatever the observation."""
    context: int = 0
    """Numbers in a context vector, an input to the first layer beside the observation (CAVIA, Zintgraf et al. 2019,
    https://arxiv.org/abs/1810.03642, section 3). It is a parameter, `context` [C], and starts as zero."""

    def __post_init__(self) -> None:
        check_network(self.hidden, self.activation, self.init_std, self.min_std)

    def init(self, generator: torch.Generator) -> Params:
        """Xavier-uniform weights (the first and the last layer's times their gains) and zero biases."""
        params = dense_layers(generator, (self.spaces.obs_dim, *self.hidden, self.spaces.act_dim))
        params["w0"] *= self.input_gain
        params[f"w{len(self.hidden)}"] *= self.output_gain
        if not self.spaces.discrete:
            params["log_std"] = log_std_init(self.spaces, self.init_std)
        if self.context:
            width = params["b0"].shape[0]
            params["context"] = torch.zeros(self.context)
            params["context_weight"] = xavier(generator, (self.context, width), self.context, width)
        return params

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        assert obs.shape[-1] == self.spaces.obs_dim, (obs.shape, self.spaces.obs_dim)
        x = obs.reshape(obs.shape[0], -1, obs.shape[-1])  # [K, T, E, O] is stored so that this is a view
        out = forward(folded(params), x, self.activation).out
        log_std = floored_log_std(params, self.min_std)
        return distribution_of(out.reshape(*obs.shape[:-1], out.shape[-1]), log_std, self.spaces.sizes)


def folded(params: Params) -> Params:
    """The parameters [K, ...] of the network without a context vector that does the same: being the same in every
    state, the context is a further bias of the first layer."""
    if "context" not in params:
        return params
    own = {name: value for name, value in params.items() if not name.startswith("context")}
    return own | {"b0": own["b0"] + (params["context"][:, None] @ params["context_weight"])[:, 0]}


def without_context(policy: Policy, params: Params) -> tuple[Policy, Params]:
    """A policy without a context vector that acts as `policy` does with these `params` [K, ...]."""
    if not isinstance(policy, MLPPolicy):
        return policy, params
    return replace(policy, context=0), folded(params)


@dataclass(frozen=True)
class ModulePolicy:
    """Any `nn.Module` that maps [N, O] to [N, A] (action means in policy units, or logits), made adaptable.

    Every task has its own copy of the module's parameters; see `metarl.modules.StackedModule`.

    Raises:
        ValueError: the module does not map [N, O] to [N, A].
    """

    spaces: Spaces
    module: nn.Module
    init_std: float = 1.0
    min_std: float = 1e-3
    stacked: StackedModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_std(self.init_std, self.min_std)
        stacked = StackedModule(self.module, (self.spaces.obs_dim,), self.spaces.act_dim)
        object.__setattr__(self, "stacked", stacked)
        object.__setattr__(self, "module", stacked.module)

    @property
    def batched(self) -> bool:
        """Whether the tasks run under `torch.func.vmap`."""
        return self.stacked.batched

    def init(self, generator: torch.Generator) -> Params:
        """The module's own present parameters; `generator` is not used."""
        params = self.stacked.init()
        return params if self.spaces.discrete else params | {"log_std": log_std_init(self.spaces, self.init_std)}

    def distribution(self, params: Params, obs: Tensor) -> Distribution:
        x = obs.reshape(obs.shape[0], -1, obs.shape[-1])
        out = self.stacked.forward(params, x)
        log_std = floored_log_std(params, self.min_std)
        return distribution_of(out.reshape(*obs.shape[:-1], out.shape[-1]), log_std, self.spaces.sizes)
