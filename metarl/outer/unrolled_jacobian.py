"""The Jacobian of an MLP policy's distribution through its own adaptation, by hand.

With S inner steps p_{s+1} = p_s - D_s grad L_s(p_s), D_s the diagonal matrix of the step sizes (zero for parameters
that do not move), the Jacobian of the adapted policy in the initialisation is

    J = J_S (I - D_{S-1} H_{S-1}) ... (I - D_0 H_0)

with H_s the Hessian of task k's inner loss. H_s is symmetric, so J v and J^T w both need only Hessian products, and
those take the forms that `metarl.policies.stacked_mlp` writes out. Where step sizes are learned, p_{s+1} also moves by
-dD_s grad L_s.
The small part, the inner loss as a function of the network's outputs, is left to automatic differentiation: any loss
of the distribution will do.

The slow twin is `metarl.outer.trust_region.autograd_jacobian`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarl.formulas.distributions import Distribution
from metarl.inner.learned import NOISE, noise_change
from metarl.inner.step import StepSize
from metarl.outer.trust_region import Jacobian, flatten, unflatten
from metarl.params import Params, expand
from metarl.policies import stacked_mlp
from metarl.policies.base import floored_log_std
from metarl.policies.mlp import MLPPolicy
from metarl.policies.spaces import distribution_of

Loss = Callable[[Distribution], Tensor]
"""A distribution in every state [K, T, E, A] -> one number per task [K]."""


class _InnerStep:
    """One inner step: its gradient, and products with its Hessian."""

    def __init__(self, policy: MLPPolicy, params: Params, obs: Tensor, loss: Loss, second_order: bool):
        k = obs.shape[0]
        tape = stacked_mlp.forward(params, obs.reshape(k, -1, obs.shape[-1]), policy.activation)
        A = tape.out.shape[-1]
        # The heads are leaves: what lies behind them is differentiated by hand.
        self.heads = [tape.out.detach().requires_grad_()]
        if "log_std" in params:
            self.heads.append(params["log_std"].detach().requires_grad_())
        with torch.enable_grad():
            log_std = floored_log_std({"log_std": self.heads[1]}, policy.min_std) if "log_std" in params else None
            dist = distribution_of(self.heads[0].reshape(*obs.shape[:-1], A), log_std, policy.spaces.sizes)
            self.head_grads = torch.autograd.grad(loss(dist).sum(), self.heads, create_graph=second_order)
        self.hessian = stacked_mlp.Hessian.at(tape, self.head_grads[0].detach())
        self.gradient = self.hessian.gradient
        if "log_std" in params:
            self.gradient = self.gradient | {"log_std": self.head_grads[1].detach()}

    def hessian_product(self, v: Params) -> Params:
        """H v, for v [K, ...]."""
        own: list[Tensor] = []

        def head_product(out_dot: Tensor) -> Tensor:
            # The loss's Hessian in the heads is symmetric: a backward pass through its gradient multiplies by it.
            tangents = [out_dot, *([v["log_std"]] if "log_std" in v else [])]
            own.extend(torch.autograd.grad(self.head_grads, self.heads, tangents, retain_graph=True))
            return own[0]

        product = self.hessian.product(v, head_product)
        return product | {"log_std": own[1]} if "log_std" in v else product


SizeOf = Callable[[Params, int], StepSize]
"""(what is learned about the inner loop, number of the inner step) -> its step size."""


@dataclass(frozen=True)
class InnerSteps:
    """The inner steps of an adaptation, as they are differentiated by hand."""

    losses: Sequence[tuple[Tensor, Loss]]
    """For every step its observations [K, T, E, O] and its loss."""
    size_of: SizeOf
    moving: Collection[str]
    """The parameters that the steps move."""
    second_order: bool = True
    """False leaves the Hessians out (first-order MAML)."""
    stages: Sequence[Params] | None = None
    """The adapted parameters after 0, 1, ... steps, if they are known; `losses` then give derivatives alone."""


@torch.no_grad()
def unrolled_jacobian(
    policy: MLPPolicy,
    meta: Params,
    learned: Params,
    n_tasks: int,
    inner: InnerSteps,
    obs: Tensor,
    held: Collection[str] = (),
) -> tuple[Distribution, Jacobian]:
    """Adapt `meta` to K tasks and linearise the adapted policies in it, and in what is learned about the steps.

    Args:
        learned: further meta-parameters, after those of `meta` in the Jacobian: step sizes and masks.
        obs: the states [K, T, E, O] in which the adapted policies are wanted.
        held: names in `meta` that are constants, not arguments of the Jacobian.

    Returns:
        The adapted policies' distribution in `obs`, its tensors leaves that require a gradient; and J.
    """
    params, moving, second_order = expand(meta, n_tasks), inner.moving, inner.second_order
    steps: list[_InnerStep] = []
    known = {name: x for name, x in learned.items() if name != NOISE}
    sizes = _Sizes(inner.size_of, known, len(inner.losses), moving)
    for i, (states, loss) in enumerate(inner.losses):
        step = _InnerStep(policy, params, states, loss, second_order)
        params = params | {name: params[name] - sizes.at[i][name] * step.gradient[name] for name in moving}
        if (change := noise_change(learned, i)) is not None:
            params["log_std"] = params["log_std"] + change
        if inner.stages is not None:
            params = inner.stages[i + 1]
        steps.append(step)

    tape = stacked_mlp.forward(params, obs.reshape(n_tasks, -1, obs.shape[-1]), policy.activation)
    log_std = floored_log_std(params, policy.min_std)
    dist = distribution_of(tape.out.reshape(*obs.shape[:-1], -1), log_std, policy.spaces.sizes)
    dist = type(dist)(*(x.detach().requires_grad_() for x in dist))

    def jvp(v: Tensor) -> list[Tensor]:
        along = unflatten(v, {name: x for name, x in (meta | learned).items() if name not in held})
        tangent = expand({name: along.get(name, torch.zeros_like(x)) for name, x in meta.items()}, n_tasks)
        size_dots = sizes.jvp(along)
        for i, step in enumerate(steps):
            change = {name: torch.zeros_like(step.gradient[name]) for name in moving}
            if second_order:
                product = step.hessian_product(tangent)
                change = {name: sizes.at[i][name] * product[name] for name in moving}
            if size_dots:
                change = {name: change[name] + size_dots[i][name] * step.gradient[name] for name in moving}
            tangent = tangent | {name: tangent[name] - change[name] for name in moving}
            if (dot := noise_change(along, i)) is not None:
                tangent["log_std"] = tangent["log_std"] + dot
        out = [stacked_mlp.jvp(tape, tangent)[0].reshape(dist[0].shape)]
        if log_std is not None:  # straight through its floor
            out.append(tangent["log_std"].reshape(dist[-1].shape))
        return out

    def vjp(w: Sequence[Tensor]) -> Tensor:
        cotangent = stacked_mlp.vjp(tape, w[0].reshape(tape.out.shape))
        if log_std is not None:
            cotangent["log_std"] = w[1].reshape(log_std.shape)
        of_sizes: list[Params] = []
        noise = {NOISE: torch.zeros_like(learned[NOISE])} if NOISE in learned else {}
        for i in range(len(steps) - 1, -1, -1):
            if noise and i < len(learned[NOISE]):
                noise[NOISE][i] = cotangent["log_std"].sum(0)
            if sizes.graph:
                of_sizes.insert(0, {name: -steps[i].gradient[name] * cotangent[name] for name in moving})
            if second_order:
                scaled = {name: torch.zeros_like(x) for name, x in cotangent.items()}
                scaled |= {name: sizes.at[i][name] * cotangent[name] for name in moving}
                product = steps[i].hessian_product(scaled)
                cotangent = {name: x - product[name] for name, x in cotangent.items()}
        own = {name: cotangent[name].sum(0) for name in meta if name not in held}
        of_learned = sizes.vjp(of_sizes) | noise
        return flatten(own | {name: of_learned[name] for name in learned})

    return dist, Jacobian(torch.no_grad()(jvp), torch.no_grad()(vjp))


class _Sizes:
    """The step sizes of all inner steps, and their derivatives in what is learned about them."""

    def __init__(self, size_of: SizeOf, learned: Params, steps: int, moving: Collection[str]):
        self.moving = moving
        self.learned = {name: value.detach().requires_grad_() for name, value in learned.items()}
        with torch.enable_grad():
            sizes = [size_of(self.learned, i) for i in range(steps)]
        self.graph = [s for s in sizes if isinstance(s, Mapping)]
        self.at: list[Any] = [
            {n: s[n].detach() for n in moving} if isinstance(s, Mapping) else dict.fromkeys(moving, s) for s in sizes
        ]

    def _outputs(self) -> list[Tensor]:
        return [size[name] for size in self.graph for name in self.moving]

    def vjp(self, cotangents: Sequence[Params]) -> Params:
        """Cotangents of every step's sizes [K, ...] -> of what is learned."""
        if not self.graph:
            return {name: torch.zeros_like(value) for name, value in self.learned.items()}
        reduced = [c.sum(0).sum_to_size(size[name].shape) for size, step in zip(self.graph, cotangents, strict=True)
                   for name, c in ((n, step[n]) for n in self.moving)]  # fmt: skip
        grads = torch.autograd.grad(self._outputs(), list(self.learned.values()), reduced, retain_graph=True,
                                    materialize_grads=True)  # fmt: skip
        return dict(zip(self.learned, grads, strict=True))

    def jvp(self, along: Params) -> list[Params]:
        """The derivative of every step's sizes; empty if nothing is learned."""
        if not self.graph:
            return []
        outputs = self._outputs()
        with torch.enable_grad():  # J^T u is linear in u, and its derivative in u along v is J v
            u = [torch.zeros_like(x, requires_grad=True) for x in outputs]
            jt_u = torch.autograd.grad(
                outputs, list(self.learned.values()), u, create_graph=True, materialize_grads=True
            )
            dots = torch.autograd.grad(jt_u, u, [along[name] for name in self.learned], retain_graph=True,
                                       materialize_grads=True)  # fmt: skip
        n = len(self.moving)
        return [dict(zip(self.moving, dots[i : i + n], strict=True)) for i in range(0, len(dots), n)]
