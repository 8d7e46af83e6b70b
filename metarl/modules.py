"""Any `nn.Module` as a function of parameters with the task axis in front."""

import copy
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metarl.adapt import Params

PREFIX = "module."
"""What the names of a module's parameters begin with among other parameters."""


@dataclass(frozen=True)
class StackedModule:
    """A module that maps [N, *in_shape] to [N, A], with its own parameters for each of K tasks.

    Buffers are shared and stay as they are. The tasks run under `torch.func.vmap`, or one after the other where the
    module is one that `vmap` refuses (data-dependent control flow, in-place updates of buffers), which is slower and
    says so once, in a warning.

    Raises:
        ValueError: the module does not map [N, *in_shape] to [N, A].
    """

    module: nn.Module
    in_shape: tuple[int, ...]
    outputs: int
    """A."""
    batched: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", copy.deepcopy(self.module).float().requires_grad_(False))
        object.__setattr__(self, "batched", True)
        probe = torch.zeros(3, *self.in_shape)
        out = self._call(self._params(), probe)
        if not isinstance(out, Tensor) or out.shape != (3, self.outputs):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            sizes = ", ".join(map(str, ("N", *self.in_shape)))
            raise ValueError(f"the module must map [{sizes}] to [N, {self.outputs}]; for N = 3 it gave {got}")
        params = {name: value[None].expand(2, *value.shape) for name, value in self._params().items()}
        try:
            self._forward_vmap(params, probe.expand(2, *probe.shape))
        except (RuntimeError, ValueError, NotImplementedError) as error:
            warnings.warn(f"torch.func.vmap refuses this module, so its tasks run one by one: {error}", stacklevel=4)
            object.__setattr__(self, "batched", False)

    def init(self) -> Params:
        """The module's own present parameters, without a task axis."""
        return {name: value.detach().clone() for name, value in self._params().items()}

    def forward(self, params: Params, x: Tensor) -> Tensor:
        """params [K, ...] (others than the module's are left out), x [K, N, *in_shape] -> [K, N, A]."""
        own = {name: value for name, value in params.items() if name.startswith(PREFIX)}
        return self._forward_vmap(own, x) if self.batched else self._forward_loop(own, x)

    def _params(self) -> Params:
        return {f"{PREFIX}{name}": value for name, value in self.module.named_parameters()}

    def _call(self, params: Params, x: Tensor) -> Tensor:
        # Buffers go in as copies, or batch norm would write its running statistics into the module. Names are listed
        # here because functional_call, left to tie weights, does not undo its exchange for a module used twice.
        tensors = {f"{PREFIX}{n}": b.to(x.device, copy=True) for n, b in self.module.named_buffers()} | params
        own = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        canonical = {id(value): f"{PREFIX}{name}" for name, value in own.items()}
        named = {
            f"{prefix}.{name}".removeprefix("."): tensors[canonical[id(value)]]
            for prefix, module in self.module.named_modules()
            for name, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None
        }
        return functional_call(self.module, named, (x,), tie_weights=False)

    def _forward_vmap(self, params: Params, x: Tensor) -> Tensor:
        return vmap(self._call, randomness="different")(params, x)

    def _forward_loop(self, params: Params, x: Tensor) -> Tensor:
        return torch.stack([self._call({n: v[k] for n, v in params.items()}, x[k]) for k in range(x.shape[0])])
