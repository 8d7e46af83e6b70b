"""The Jacobian of an MLP policy's distribution through its own adaptation, by hand.

With S inner steps p_{s+1} = p_s - lr P grad L_s(p_s), P the projection on the parameters that move, the Jacobian of
the adapted policy in the initialisation is

    J = J_S (I - lr P H_{S-1}) ... (I - lr P H_0)

with H_s the Hessian of task k's inner loss. H_s is symmetric, so J v and J^T w both need only Hessian products, and
those take the forms that `metarl.mlp` writes out. The small part, the inner loss as a function of the network's
outputs, is left to automatic differentiation: any loss of the distribution will do.

The slow twin is `metarl.trust_region.autograd_jacobian`.
"""

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from metarl import mlp
from metarl.adapt import Params, expand
from metarl.distributions import Distribution
from metarl.policies import MLPPolicy, floored_log_std
from metarl.spaces import distribution_of
from metarl.trust_region import Jacobian, flatten, unflatten

Loss = Callable[[Distribution], Tensor]
"""A distribution in every state [K, T, E, A] -> one number per task [K]."""


class _InnerStep:
    """One inner step: its gradient, and products with its Hessian."""

    def __init__(self, policy: MLPPolicy, params: Params, obs: Tensor, loss: Loss, second_order: bool):
        k = obs.shape[0]
        tape = mlp.forward(params, obs.reshape(k, -1, obs.shape[-1]), policy.activation)
        A = tape.out.shape[-1]
        # The heads are leaves: what lies behind them is differentiated by hand.
        self.heads = [tape.out.detach().requires_grad_()]
        if "log_std" in params:
            self.heads.append(params["log_std"].detach().requires_grad_())
        with torch.enable_grad():
            log_std = floored_log_std({"log_std": self.heads[1]}, policy.min_std) if "log_std" in params else None
            dist = distribution_of(self.heads[0].reshape(*obs.shape[:-1], A), log_std, policy.spaces.sizes)
            self.head_grads = torch.autograd.grad(loss(dist).sum(), self.heads, create_graph=second_order)
        self.hessian = mlp.Hessian.at(tape, self.head_grads[0].detach())
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


@torch.no_grad()
def unrolled_jacobian(
    policy: MLPPolicy,
    meta: Params,
    n_tasks: int,
    inner: Sequence[tuple[Tensor, Loss]],
    obs: Tensor,
    lr: float,
    second_order: bool = True,
    frozen: Collection[str] = (),
) -> tuple[Distribution, Jacobian]:
    """Adapt `meta` to K tasks and linearise the adapted policies in it.

    Args:
        inner: for every inner step its observations [K, T, E, O] and its loss.
        obs: the states [K, T, E, O] in which the adapted policies are wanted.
        second_order: False leaves the inner Hessians out (first-order MAML).
        frozen: the parameters that the inner steps do not move.

    Returns:
        The adapted policies' distribution in `obs`, its tensors leaves that require a gradient; and J.
    """
    params = expand(meta, n_tasks)
    moving = [name for name in meta if name not in frozen]
    steps: list[_InnerStep] = []
    for states, loss in inner:
        step = _InnerStep(policy, params, states, loss, second_order)
        params = params | {name: params[name] - lr * step.gradient[name] for name in moving}
        steps.append(step)
    steps = steps if second_order else []

    tape = mlp.forward(params, obs.reshape(n_tasks, -1, obs.shape[-1]), policy.activation)
    log_std = floored_log_std(params, policy.min_std)
    # As automatic differentiation has it for a clamp.
    open_floor = params["log_std"] >= math.log(policy.min_std) if log_std is not None else None
    dist = distribution_of(tape.out.reshape(*obs.shape[:-1], -1), log_std, policy.spaces.sizes)
    dist = type(dist)(*(x.detach().requires_grad_() for x in dist))

    def jvp(v: Tensor) -> list[Tensor]:
        tangent = expand(unflatten(v, meta), n_tasks)
        for step in steps:
            product = step.hessian_product(tangent)
            tangent = tangent | {name: tangent[name] - lr * product[name] for name in moving}
        out = [mlp.jvp(tape, tangent)[0].reshape(dist[0].shape)]
        if open_floor is not None:
            out.append((tangent["log_std"] * open_floor).reshape(dist[-1].shape))
        return out

    def vjp(w: Sequence[Tensor]) -> Tensor:
        cotangent = mlp.vjp(tape, w[0].reshape(tape.out.shape))
        if open_floor is not None:
            cotangent["log_std"] = w[1].reshape(open_floor.shape) * open_floor
        for step in reversed(steps):
            product = step.hessian_product({n: x if n in moving else torch.zeros_like(x) for n, x in cotangent.items()})
            cotangent = {name: x - lr * product[name] for name, x in cotangent.items()}
        return flatten({name: cotangent[name].sum(0) for name in meta})

    return dist, Jacobian(torch.no_grad()(jvp), torch.no_grad()(vjp))
