"""The multi-layer perceptron for many tasks at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from metarl.formulas.distributions import Distribution
from metarl.params import Params
from metarl.policies.base import Policy, check_network, dense_layers, floored_log_std, log_std_init, xavier
from metarl.policies.spaces import Spaces, distribution_of
from metarl.policies.stacked_mlp import forward


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
    """Factor on the first layer's initial weights; use a value above 1 if observations are small."""
    output_gain: float = 0.01
    """Factor on the last layer's initial weights; small values make initial actions near zero for any observation."""
    context: int = 0
    """Size of a context vector fed to the first layer along with the observation (CAVIA, Zintgraf et al. 2019,
    https://arxiv.org/abs/1810.03642, section 3). It is a parameter, `context` [C], initially zero."""

    def __post_init__(self) -> None:
        check_network(self.hidden, self.activation, self.init_std, self.min_std)

    @property
    def kind(self) -> str:
        return type(self).__name__

    @property
    def memory(self) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        """The network and its standard deviations, without gains and context, which only affect initialisation."""
        return {"init_std": self.init_std, "min_std": self.min_std, "hidden": list(self.hidden),
                "activation": self.activation}  # fmt: skip

    @classmethod
    def from_description(cls, spaces: Spaces, described: Mapping[str, Any]) -> Self:
        """The policy that `describe` was called on, except for settings that only affect its initialisation."""
        return cls(spaces, tuple(described["hidden"]), described["activation"], described["init_std"],
                   described["min_std"])  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """The algorithm settings that create the same network."""
        return {"min_std": self.min_std, "hidden": tuple(self.hidden), "activation": self.activation, "network": "mlp"}

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
    """The parameters [K, ...] of an equivalent network without a context vector: since it is the same in every state,
    the context acts as an additional bias of the first layer."""
    if "context" not in params:
        return params
    remaining = {name: value for name, value in params.items() if not name.startswith("context")}
    return remaining | {"b0": remaining["b0"] + (params["context"][:, None] @ params["context_weight"])[:, 0]}


def without_context(policy: Policy, params: Params) -> tuple[Policy, Params]:
    """A policy without a context vector that acts as `policy` does with these `params` [K, ...]."""
    if not isinstance(policy, MLPPolicy):
        return policy, params
    return replace(policy, context=0), folded(params)
