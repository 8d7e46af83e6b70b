"""Networks as descriptions (frozen) and parameters as data: `init(generator)` and `outputs(params [K, ...], x)`."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from metarl.params import Params
from metarl.policies.base import dense_layers
from metarl.policies.stacked_mlp import ACTIVATIONS, forward
from metarl.policies.stacked_module import StackedModule


class Network(Protocol):
    """The interface of a network."""

    @property
    def activation(self) -> str | None:
        """The activation after every hidden layer; None where the network is the user's own module."""
        ...

    def init(self, generator: torch.Generator) -> Params:
        """Initial meta-parameters, without a task axis."""
        ...

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """params [K, ...], x [K, N, ...] -> [K, N, A]."""
        ...


@dataclass(frozen=True)
class MLPNetwork:
    """A multi-layer perceptron for K tasks in one batched product per layer; inputs of any shape are flattened."""

    x_shape: tuple[int, ...]
    n_outputs: int
    hidden: tuple[int, ...] = (40, 40)
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {self.activation!r}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden layers need at least one unit each, got {self.hidden}")

    def init(self, generator: torch.Generator) -> Params:
        """Xavier-uniform weights and zero biases."""
        return dense_layers(generator, (math.prod(self.x_shape), *self.hidden, self.n_outputs))

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        assert x.shape[2:] == self.x_shape, f"inputs have the shape {tuple(x.shape[2:])}, not {self.x_shape}"
        return forward(params, x.flatten(2), self.activation).out


class ModuleNetwork:
    """Any `nn.Module` that maps [N, *x_shape] to [N, A], made adaptable; see
    `metarl.policies.stacked_module.StackedModule`.

    Raises:
        ValueError: the module does not map inputs to outputs in this way.
    """

    def __init__(self, module: nn.Module, x_shape: tuple[int, ...], n_outputs: int):
        self.stacked = StackedModule(module, x_shape, n_outputs)
        self.activation: str | None = None

    def init(self, generator: torch.Generator) -> Params:
        """The module's current parameters; `generator` is not used."""
        return self.stacked.init()

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        return self.stacked.forward(params, x)
