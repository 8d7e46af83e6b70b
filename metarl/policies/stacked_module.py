"""Any `nn.Module` as a function of parameters with a leading task axis."""

import contextlib
import copy
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from metarl.params import Params
from metarl.policies.once import differentiable_once, marked_once

PREFIX = "module."
"""Prefix of the names of a module's parameters among other parameters."""


_NO_SECOND_DERIVATIVE = re.compile(r"derivative for .* is not implemented|differentiate twice", re.DOTALL)


@contextlib.contextmanager
def second_derivatives_of(network: Any) -> Iterator[None]:
    """Where torch cannot differentiate twice within it, a ValueError names the `network`, a module or a policy."""
    try:
        yield
    except RuntimeError as error:
        if not _NO_SECOND_DERIVATIVE.search(str(error)):
            raise
        reason = " ".join(str(error).splitlines()[0].split()).rstrip(".")
        what = "module" if isinstance(network, nn.Module) else "policy"
        raise ValueError(
            f"the {what} {type(network).__name__} has no second derivative, which the outer step takes (torch: "
            f"{reason}). Write that part with operations that have one, or use first_order=True with an outer step by "
            "Adam, as in maml_vpg or maml_ppo (TRPO's own step takes second derivatives too)"
        ) from error


@dataclass(frozen=True)
class StackedModule:
    """A module that maps [N, *in_shape] to [N, A], with its own parameters for each of K tasks.

    Buffers are shared and not updated. The tasks run under `torch.func.vmap`, or one after the other if `vmap` refuses
    the module (data-dependent control flow, in-place updates of buffers), which is slower and gives one warning.
    Attention is computed by its plain formula: the fused kernels have no second derivative, which the outer loop needs.

    Raises:
        ValueError: the module does not map [N, *in_shape] to [N, A], cannot be copied, has no parameters, or cannot be
            differentiated.

    Warns:
        UserWarning: `vmap` refuses the module, or its output is drawn at random (dropout).
    """

    module: nn.Module
    in_shape: tuple[int, ...]
    outputs: int
    """A."""
    batched: bool = field(init=False)

    attention: bool = field(init=False)
    """Whether attention layers were found."""
    once: str = field(init=False, default="")
    """The name of an autograd function in it that has a first derivative only, if one was found."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", _copied(self.module))
        object.__setattr__(self, "batched", True)
        object.__setattr__(self, "attention", False)
        probe = torch.zeros(3, *self.in_shape)
        with _Watch() as watch:
            out = self._probed(probe)
        object.__setattr__(self, "attention", watch.attention)
        if not isinstance(out, Tensor) or out.shape != (3, self.outputs):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            sizes = ", ".join(map(str, ("N", *self.in_shape)))
            raise ValueError(f"the module must map [{sizes}] to [N, {self.outputs}]; for N = 3 it gave {got}")
        if not self._params():
            raise ValueError(f"the module {type(self.module).__name__} has no parameters, so it cannot adapt")
        params = {name: value[None].expand(2, *value.shape) for name, value in self._params().items()}
        try:
            self._forward_vmap(params, probe.expand(2, *probe.shape))
        except (RuntimeError, ValueError, NotImplementedError) as error:
            warnings.warn(f"torch.func.vmap refuses this module, so its tasks run one by one: {error}", stacklevel=4)
            object.__setattr__(self, "batched", False)
        self._check_derivative(probe)
        object.__setattr__(self, "once", self._differentiable_once(probe))
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p for m in self.module.modules()):
            warnings.warn("the module has dropout in training mode: every call draws other outputs, from a generator "
                          "that is not the run's, so runs cannot be repeated and an action's probability differs "
                          "between acting and learning; pass module.eval() to switch it off", stacklevel=4)  # fmt: skip

    def _probed(self, probe: Tensor) -> Any:
        try:
            return self._call(self._params(), probe)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shape = ", ".join(map(str, probe.shape))
            text = " ".join(str(error).split())
            raise ValueError(f"the module fails for float32 inputs [{shape}], three observations: {text}") from error

    def _check_derivative(self, probe: Tensor) -> None:
        """Raise ValueError where torch cannot differentiate the module, by two tasks with the same parameters."""
        params = {n: v[None].repeat(2, *[1] * v.dim()).requires_grad_() for n, v in self._params().items()}
        x = probe[None].repeat(2, *[1] * probe.dim())
        try:
            with torch.enable_grad():
                out = self.forward(params, x)
                if out.requires_grad:
                    torch.autograd.grad(out.sum(), list(params.values()), allow_unused=True)
        except RuntimeError as error:
            remedy = "write it without operations in place (h = h + 1 and not h += 1, nn.ReLU(inplace=False))"
            text = " ".join(str(error).split())
            raise ValueError(f"the module cannot be differentiated: {remedy}. torch says: {text[:200]}") from error
        if not out.requires_grad:
            raise ValueError("the module's output does not depend on its parameters by a differentiable path: leave "
                             "detach() and no_grad() out of it")  # fmt: skip

    def _differentiable_once(self, probe: Tensor) -> str:
        """The autograd function of the module that has no second derivative (see `metarl.policies.once`)."""
        params = {name: value.detach().clone().requires_grad_() for name, value in self._params().items()}
        with torch.enable_grad():
            out = self._call(params, probe)
        return marked_once([out])

    def init(self) -> Params:
        """The module's current parameters, without a task axis."""
        return {name: value.detach().clone() for name, value in self._params().items()}

    def forward(self, params: Params, x: Tensor) -> Tensor:
        """params [K, ...] (others than the module's are left out), x [K, N, *in_shape] -> [K, N, A]."""
        module_params = {name: value for name, value in params.items() if name.startswith(PREFIX)}
        out = self._forward_vmap(module_params, x) if self.batched else self._forward_loop(module_params, x)
        return differentiable_once(out, self.once) if self.once else out

    def _params(self) -> Params:
        return {f"{PREFIX}{name}": value for name, value in self.module.named_parameters()}

    def _call(self, params: Params, x: Tensor) -> Tensor:
        # Buffers go in as copies, or batch norm would write its running statistics into the module. Names are listed
        # here because functional_call, left to tie weights, does not undo its exchange for a module used twice.
        tensors = {f"{PREFIX}{n}": b.to(x.device, copy=True) for n, b in self.module.named_buffers()} | params
        originals = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        canonical = {id(value): f"{PREFIX}{name}" for name, value in originals.items()}
        named = {
            f"{prefix}.{name}".removeprefix("."): tensors[canonical[id(value)]]
            for prefix, module in self.module.named_modules()
            for name, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None
        }
        with plain_attention() if self.attention else contextlib.nullcontext():
            return functional_call(self.module, named, (x,), tie_weights=False)

    def _forward_vmap(self, params: Params, x: Tensor) -> Tensor:
        return vmap(self._call, randomness="different")(params, x)

    def _forward_loop(self, params: Params, x: Tensor) -> Tensor:
        return torch.stack([self._call({n: v[k] for n, v in params.items()}, x[k]) for k in range(x.shape[0])])


def _copied(module: nn.Module) -> nn.Module:
    """A copy of the module in float32 whose parameters are data."""
    if any(isinstance(value, nn.parameter.UninitializedParameter) for value in module.parameters()):
        raise ValueError("the module has lazy layers without parameters yet: call it once on a batch of observations")
    try:
        return copy.deepcopy(module).float().requires_grad_(False)
    except RuntimeError as error:
        raise ValueError(f"a {type(module).__name__} cannot be adapted, pass the nn.Module that it was made from: "
                         f"{error}") from error  # fmt: skip


class _Watch(TorchFunctionMode):
    """Notes whether attention is computed within."""

    attention = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.attention |= name in ("scaled_dot_product_attention", "multi_head_attention_forward")
        return func(*args, **(kwargs or {}))


_lock = threading.Lock()
_users = 0
_restore = contextlib.ExitStack()


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """A block in which attention is computed by its formula, without fused kernels. Torch's switches are per process,
    and tasks run in several threads: the first one sets them, the last one restores them."""
    global _users
    with _lock:
        if _users == 0:
            _restore.enter_context(sdpa_kernel(SDPBackend.MATH))
            _restore.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _restore.close()
