"""The TRPO step on a dict of parameters (Schulman et al. 2015, https://arxiv.org/abs/1502.05477, appendix C).

The objective comes as chunks of tasks; losses, gradients and Fisher products are sums over the chunks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarl.formulas.distributions import Distribution, fisher_product
from metarl.parallel import thread_map
from metarl.params import Params
from metarl.policies.once import check_twice
from metarl.rollout.finite import SMALLER_STEPS, NotFiniteError


@dataclass(frozen=True)
class Jacobian:
    """J, of a distribution's parameters in the flattened policy parameters, as two products."""

    jvp: Callable[[Tensor], Sequence[Tensor]]  # v -> J v, shaped like the distribution
    vjp: Callable[[Sequence[Tensor]], Tensor]  # w -> J^T w


@dataclass(frozen=True)
class Surrogate:
    """One chunk's share of the objective at some parameters, differentiable in them."""

    loss: Tensor  # scalar, to be lowered
    kl: Tensor  # scalar, KL(acting policy || this policy)
    dist: Distribution  # of this policy, in every state of the chunk
    weight: Tensor  # [k, T, E], each state's weight in `kl`
    jacobian: Jacobian | None = None
    """Where it is known by hand; `loss` is then a function of `dist`, whose tensors are leaves."""
    direct: Tensor | None = None
    """With a `jacobian`: what is to be lowered beside `loss`, as a function of the parameters themselves."""


Objective = Callable[[Params, bool], Surrogate]
"""(parameters, differentiable) -> Surrogate. Where not differentiable it may skip the graph."""


def flatten(params: Params) -> Tensor:
    """All parameters as one vector."""
    return _flat(list(params.values()))


def unflatten(x: Tensor, like: Params) -> Params:
    """The inverse of `flatten`."""
    parts = x.split([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    tolerance: float = 1e-6,
    orthogonality: float = 0.001,
) -> tuple[Tensor, Tensor, int]:
    """Solve A x = b for a positive definite A given as a product. -> x, the residual b - A x, and the products taken.

    Hestenes and Stiefel (1952), from x = 0. Three things end it before `iterations`, and none depends on the size of
    `b` or of A:

    - the residual is at most `tolerance` times as long as `b`;
    - the curvature along a direction is not positive;
    - the residuals, orthogonal to each other in exact arithmetic, are not any more: the cosine of the new one with an
      earlier one exceeds `orthogonality`. The directions have then lost their conjugacy, and rounding in the products
      would decide all that follows (Parlett 1980, "The symmetric eigenvalue problem", chapter 13). What was found up
      to here is still right.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r.clone(), r @ r
    enough, earlier = tolerance**2 * rr, list[Tensor]()
    for taken in range(iterations):
        if not float(rr) > float(enough):
            return x, r, taken
        earlier.append(r / rr.sqrt())
        ap = product(p)
        curvature = p @ ap
        if not float(curvature) > 0:
            return x, r, taken + 1
        step = rr / curvature
        x, r = x + step * p, r - step * ap
        rr, rr_old = r @ r, rr
        if float((torch.stack(earlier) @ r).abs().amax()) > orthogonality * float(rr.sqrt()):
            return x, r, taken + 1
        p = r + (rr / rr_old) * p
    return x, r, iterations


def autograd_jacobian(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> Jacobian:
    """J of `outputs` in `leaves` by automatic differentiation.

    J^T u is linear in u, so its graph is built once and J v is its derivative in u (the double-vjp trick): no product
    runs the network forward again.

    Raises:
        RuntimeError: no second derivative, which that trick takes.
    """
    check_twice(outputs)
    u = [torch.zeros_like(x, requires_grad=True) for x in outputs]
    jt_u = _flat(torch.autograd.grad(outputs, leaves, u, create_graph=True, materialize_grads=True))
    return Jacobian(
        jvp=lambda v: torch.autograd.grad(jt_u, u, v, retain_graph=True),
        vjp=lambda w: _flat(torch.autograd.grad(outputs, leaves, list(w), retain_graph=True, materialize_grads=True)),
    )


def fisher_vector_product(surrogate: Surrogate, leaves: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """v -> F v with F the Hessian of the KL at the acting parameters: F v = J^T M (J v).

    J is the Jacobian of the distribution's parameters in `leaves`, the adaptation included; M the Fisher matrix in
    the distribution's own parameters. Nothing is differentiated twice.
    """
    outputs = list(surrogate.dist)
    jacobian = surrogate.jacobian or autograd_jacobian(outputs, leaves)
    dist = type(surrogate.dist)(*(x.detach() for x in outputs))
    weight = surrogate.weight.detach()
    return lambda v: jacobian.vjp(list(fisher_product(dist, type(dist)(*jacobian.jvp(v)), weight)))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in tensors])


@dataclass(frozen=True)
class _Linearised:
    """Everything that the step needs of one chunk at the acting parameters."""

    loss: Tensor
    gradient: Tensor
    product: Callable[[Tensor], Tensor]


def _linearise(objective: Objective, params: Params) -> _Linearised:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        here = objective(leaves, True)
        loss, gradient = _gradient(here, leaves, retain_graph=True)
        product = fisher_vector_product(here, list(leaves.values()))
    return _Linearised(loss, gradient, product)


def _gradient(here: Surrogate, leaves: Params, retain_graph: bool) -> tuple[Tensor, Tensor]:
    def own(loss: Tensor) -> Tensor:
        return _flat(
            torch.autograd.grad(loss, list(leaves.values()), retain_graph=retain_graph, materialize_grads=True)
        )

    if here.jacobian is None:
        return here.loss.detach(), own(here.loss)
    gradient = here.jacobian.vjp(torch.autograd.grad(here.loss, list(here.dist)))
    if here.direct is None:
        return here.loss.detach(), gradient
    return (here.loss + here.direct).detach(), gradient + own(here.direct)


def value_and_gradient(objectives: Sequence[Objective], params: Params) -> tuple[float, Params]:
    """The sum of `objectives` at `params`, and its gradient."""
    parts = thread_map(lambda objective: _value_and_gradient(objective, params), objectives)
    losses, gradients = zip(*parts, strict=True)
    return float(torch.stack(losses).sum()), unflatten(torch.stack(gradients).sum(0), params)


def _value_and_gradient(objective: Objective, params: Params) -> tuple[Tensor, Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        return _gradient(objective(leaves, True), leaves, retain_graph=False)


@dataclass(frozen=True)
class TrustRegion:
    """How far one step may go, and how it is found."""

    max_kl: float
    """Bound on the KL between the policies before and after the step."""
    damping: float = 1e-5
    """Added to the diagonal of the Fisher matrix."""
    cg_iterations: int = 5
    """Fisher products of the conjugate gradient method at most."""
    max_backtracks: int = 15
    """Candidates of the line search at most."""
    backtrack: float = 0.8
    """What each is shorter by, as a factor."""


def trpo_step(
    params: Params,
    objectives: Sequence[Objective],
    region: TrustRegion,
    kept_chunks: int | None = None,
    fisher: Sequence[Objective] | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Lower the sum of `objectives` within the trust region around `params`. -> new parameters and statistics.

    Args:
        fisher: objectives with which the Fisher products are made, on fewer data; None: `objectives`. The gradient and
            the line search, with the bound on the KL, are always those of `objectives`.
        kept_chunks: how many chunks keep their graphs from one Fisher product to the next. The other chunks rebuild
            theirs for every product: the same numbers in less memory, slower. None keeps all.
    """
    metric = objectives if fisher is None else fisher
    kept = len(metric) if kept_chunks is None else kept_chunks
    linear = thread_map(lambda objective: _linearise(objective, params), metric[:kept])
    own = [(x.loss, x.gradient) for x in linear] if fisher is None else []
    own += thread_map(lambda objective: _value_and_gradient(objective, params), objectives[len(own) :])
    loss, gradient = (torch.stack(parts).sum(0) for parts in zip(*own, strict=True))

    def product(v: Tensor) -> Tensor:
        along = v.to(gradient.dtype)
        parts = thread_map(lambda x: x.product(along), linear)
        parts += thread_map(lambda objective: _linearise(objective, params).product(along), metric[kept:])
        found = torch.stack(parts).sum(0).double() + region.damping * v
        if bool(v.isfinite().all()) and not bool(found.sum().isfinite()):
            raise NotFiniteError(f"the Fisher products of this outer step are not finite: {SMALLER_STEPS}")
        return found

    # The recursion runs in float64, which keeps its residuals orthogonal for some products longer than float32 would.
    direction, residual, taken = conjugate_gradient(product, gradient.double(), region.cg_iterations)
    curvature = direction @ (gradient.double() - residual)  # = direction @ product(direction), without another product
    stats = {"gradient_norm": float(gradient.norm()), "loss_before": float(loss), "cg_products": taken}
    if not float(curvature) > 0:
        return dict(params), stats | {"loss_after": float(loss), "kl": 0.0, "backtracks": -1, "accepted": False}
    step = (direction * torch.sqrt(2 * region.max_kl / curvature)).to(gradient.dtype)
    start = flatten(params).detach()
    for i in range(region.max_backtracks):
        new = unflatten(start - region.backtrack**i * step, params)
        new_loss, new_kl = value_and_kl(objectives, new)
        if new_loss < float(loss) and new_kl <= region.max_kl:
            return new, stats | {"loss_after": new_loss, "kl": new_kl, "backtracks": i, "accepted": True}
    kept_stats = {"loss_after": float(loss), "kl": 0.0, "backtracks": region.max_backtracks, "accepted": False}
    return dict(params), stats | kept_stats


def value_and_kl(objectives: Sequence[Objective], params: Params) -> tuple[float, float]:
    """The sum of `objectives` at `params` and that of their KL divergences, without a graph."""
    with torch.no_grad():
        parts = thread_map(torch.no_grad()(lambda objective: objective(params, False)), objectives)
    return float(torch.stack([p.loss for p in parts]).sum()), float(torch.stack([p.kl for p in parts]).sum())
