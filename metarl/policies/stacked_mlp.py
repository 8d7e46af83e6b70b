"""The stacked MLP and its derivatives, written out: forward, J v, J^T c and Hessian products.

Automatic differentiation gives the same numbers (and is what every other network uses), but these products are most
of the cost of a trust-region meta-update. By hand each matrix product is done in the layout that the next one wants,
and each pass over memory does as much as it can.

Letters, for layer i with input h_{i-1} (h_0 is the observation):
    z_i = h_{i-1} W_i + b_i     h_i = f(z_i)     e_i = dloss/dh_i     d_i = dloss/dz_i = f'(z_i) e_i
The suffix `_dot` means the derivative along a direction of the parameters. The last layer has no f.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from metarl.params import Params


def _recorded() -> bool:
    """Whether PyTorch may follow what is done to tensors: for a backward pass, a forward derivative or `vmap`."""
    following = torch.is_grad_enabled() or forward_ad._current_level >= 0
    return following or torch._C._functorch.peek_interpreter_stack() is not None


def tanh(z: Tensor) -> Tensor:
    """The hyperbolic tangent; where nothing is recorded for a derivative, it may be written in place of `z`.

    NumPy's is a loop of vector instructions on every processor, PyTorch's is MKL's, which on an AMD processor takes
    four times as long. Both are within two units in the last place.
    """
    if z.device.type != "cpu" or _recorded() or not z.is_contiguous():
        return torch.tanh(z)
    numbers = z.numpy()
    np.tanh(numbers, out=numbers)
    return z


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": tanh,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
}


def _times_slope(activation: str, g: Tensor, h: Tensor) -> Tensor:
    """g f'(z) from h = f(z), in place of g."""
    if activation == "tanh":
        return torch.ops.aten.tanh_backward.grad_input(g, h, grad_input=g)  # one pass over memory for g (1 - h^2)
    return g.mul_(h > 0) if activation == "relu" else g.mul_(torch.clamp(h + 1, max=1.0))


def _bend(activation: str, h: Tensor, e: Tensor) -> Tensor | None:
    """f''(z) e / f'(z) from h = f(z); None where it is zero everywhere."""
    if activation == "tanh":
        return -2 * h * e
    return None if activation == "relu" else e * (h <= 0)


NARROW = 8
"""Up to this width a matrix is a few rows of long vectors for the matrix product rather than a tall thin block: on a
CPU a third of the time."""


def _affine(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """h w + b, for h [K, N, n], w [K, n, m], b [K, m]."""
    if w.shape[-1] <= NARROW < w.shape[-2]:
        return torch.baddbmm(b[:, :, None], w.mT.contiguous(), h.mT).mT.contiguous()
    return (h @ w).add_(b[:, None]) if not torch.is_grad_enabled() else torch.baddbmm(b[:, None], h, w)


def _add_product(z: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """z + h w, in place of z."""
    if w.shape[-1] <= NARROW < w.shape[-2]:
        return z.add_((w.mT.contiguous() @ h.mT).mT)
    return z.baddbmm_(h, w)


def _weight_gradient(h: Tensor, d: Tensor) -> Tensor:
    """h^T d, summed over states."""
    return (d.mT @ h).mT if d.shape[-1] <= NARROW < h.shape[-1] else h.mT @ d


@dataclass(frozen=True)
class Tape:
    """A forward pass of K stacked networks on N states each, and what its derivatives need."""

    activation: str
    weights: list[Tensor]  # W_i [K, n, m]
    inputs: list[Tensor]  # h_{i-1} [K, N, n]: the observation, then the hidden layers
    out: Tensor  # [K, N, A]


def forward(params: Params, x: Tensor, activation: str) -> Tape:
    """params w0, b0, w1, ... [K, ...], x [K, N, O]."""
    weights, inputs = [], [x]
    last = sum(name.startswith("w") for name in params) - 1
    for i in range(last):
        weights.append(params[f"w{i}"])
        inputs.append(ACTIVATIONS[activation](_affine(inputs[-1], weights[-1], params[f"b{i}"])))
    weights.append(params[f"w{last}"])
    return Tape(activation, weights, inputs, _affine(inputs[-1], weights[-1], params[f"b{last}"]))


def jvp(tape: Tape, v: Params) -> tuple[Tensor, list[Tensor]]:
    """J v: the output's derivative along `v` [K, N, A], and h_dot of the hidden layers."""
    h_dots: list[Tensor] = []
    z_dot = _affine(tape.inputs[0], v["w0"], v["b0"])
    for i in range(1, len(tape.weights)):
        h_dots.append(_times_slope(tape.activation, z_dot, tape.inputs[i]))
        z_dot = _add_product(_affine(tape.inputs[i], v[f"w{i}"], v[f"b{i}"]), h_dots[-1], tape.weights[i])
    return z_dot, h_dots


def vjp(tape: Tape, c: Tensor) -> Params:
    """J^T c for c [K, N, A]."""
    out, d = {}, c
    for i in range(len(tape.weights) - 1, -1, -1):
        out[f"w{i}"], out[f"b{i}"] = _weight_gradient(tape.inputs[i], d), d.sum(1)
        if i > 0:
            d = _times_slope(tape.activation, d @ tape.weights[i].mT, tape.inputs[i])
    return out


@dataclass(frozen=True)
class Hessian:
    """The Hessian in the parameters of a loss of the outputs, at one forward pass; and the gradient."""

    tape: Tape
    gradient: Params
    d: list[Tensor]  # d_i [K, N, m], the last one dloss/dout
    bends: list[Tensor | None]  # of the hidden layers

    @staticmethod
    def at(tape: Tape, c: Tensor) -> "Hessian":
        """c = dloss/dout [K, N, A]."""
        gradient: Params = {}
        d, bends = [c], []
        for i in range(len(tape.weights) - 1, -1, -1):
            gradient[f"w{i}"], gradient[f"b{i}"] = _weight_gradient(tape.inputs[i], d[-1]), d[-1].sum(1)
            if i > 0:
                e = d[-1] @ tape.weights[i].mT
                bends.append(_bend(tape.activation, tape.inputs[i], e))
                d.append(_times_slope(tape.activation, e, tape.inputs[i]))
        return Hessian(tape, gradient, d[::-1], bends[::-1])

    def product(self, v: Params, c_dot_of: Callable[[Tensor], Tensor]) -> Params:
        """H v. `c_dot_of(out_dot)` is the derivative of c = dloss/dout along the direction: the loss's own part."""
        tape = self.tape
        out_dot, h_dots = jvp(tape, v)
        d_dot, result = c_dot_of(out_dot), {}
        for i in range(len(tape.weights) - 1, -1, -1):
            result[f"w{i}"], result[f"b{i}"] = _weight_gradient(tape.inputs[i], d_dot), d_dot.sum(1)
            if i > 0:
                result[f"w{i}"] += _weight_gradient(h_dots[i - 1], self.d[i])
                e_dot = (d_dot @ tape.weights[i].mT).baddbmm_(self.d[i], v[f"w{i}"].mT)
                d_dot, bend = _times_slope(tape.activation, e_dot, tape.inputs[i]), self.bends[i - 1]
                if bend is not None:
                    d_dot.addcmul_(bend, h_dots[i - 1])
        return result
