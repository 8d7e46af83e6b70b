"""The natural-gradient inner step: the gradient times the inverse of each task's own Fisher matrix.

Score functions grow as a policy's standard deviation shrinks; measured by the Fisher matrix a step does not (Kakade
2001, "A natural policy gradient"). The matrix is formed and solved for every task, so this is for small policies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from metarl.formulas.distributions import fisher_product
from metarl.inner.step import Direction
from metarl.params import Params
from metarl.policies.base import Policy

MOST = 2000
"""Numbers that may adapt: a Fisher matrix of this size takes 16 MB for every task."""


def natural_direction(policy: Policy, obs: Tensor, mask: Tensor, damping: float) -> Direction:
    """gradients -> (F + damping I)^-1 gradients, with F the Fisher matrix of the parameters that have a gradient,
    a mean over each task's valid steps. obs [K, T, E, O], mask [K, T, E]. Differentiable, through F too.

    Raises:
        ValueError: more than `MOST` numbers adapt.
    """

    obs, mask = distinct(obs, mask)

    def direction(params: Params, grads: Params, memory: Params) -> tuple[Params, Params]:
        fisher = fisher_matrix(policy, params, obs, mask, list(grads))
        eye = torch.eye(fisher.shape[-1], dtype=fisher.dtype, device=fisher.device)
        solved = torch.linalg.solve(fisher + damping * eye, _stack(grads))
        parts = solved.split([g[0].numel() for g in grads.values()], -1)
        return {n: part.reshape(g.shape) for (n, g), part in zip(grads.items(), parts, strict=True)}, memory

    return direction


def distinct(obs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every state once, with the number of its visits in the mask's place: [K, 1, U, O] and [K, 1, U] in the place of
    [K, T, E, O] and [K, T, E]. As they came where the first task's states show that most occur only once."""
    K, T, E, O = obs.shape
    if 2 * len(torch.unique(obs[0].reshape(-1, O), dim=0)) > T * E:
        return obs, mask
    states, place = torch.unique(obs.reshape(-1, O), dim=0, return_inverse=True)
    if len(states) >= T * E:
        return obs, mask
    visits = mask.new_zeros(K, len(states)).scatter_add_(1, place.reshape(K, -1), mask.reshape(K, -1))
    return states.expand(K, 1, -1, -1), visits[:, None]


def fisher_matrix(policy: Policy, params: Params, obs: Tensor, mask: Tensor, names: Sequence[str]) -> Tensor:
    """The Fisher matrix of every task's policy in its parameters `names`, [K, P, P]: J^T M J, mean over valid steps.

    Where `params` depend on other parameters through a graph, so does the matrix.
    """
    size = sum(params[name][0].numel() for name in names)
    if size > MOST:
        raise ValueError(f"the natural inner step solves with a matrix of the {size} numbers that adapt, and {MOST} "
                         "are its most: use a smaller network, or adapts='head'")  # fmt: skip
    weight = mask / mask.sum((1, 2), keepdim=True)
    with torch.enable_grad():
        differentiable = any(value.requires_grad for value in params.values())
        own = {n: params[n] if params[n].requires_grad else params[n].detach().requires_grad_() for n in names}
        dist = policy.distribution(params | own, obs)
        tangents = _tangents(list(dist), own, differentiable)
        products = fisher_product(dist, type(dist)(*tangents), weight)
        rows = [[x.transpose(0, 1).flatten(2) for x in pair] for pair in zip(tangents, products, strict=True)]
        fisher = torch.stack([t @ p.mT for t, p in rows]).sum(0)
    return fisher if differentiable else fisher.detach()


def _tangents(heads: Sequence[Tensor], own: Params, create_graph: bool) -> list[Tensor]:
    """J, the derivative of `heads` [K, ...] in every number of `own`: [P, K, ...].

    By the double-vjp trick, as in `metarl.outer.trust_region`: forward-mode derivatives of torch keep global state,
    and the tasks are worked on by several threads.
    """
    u = [torch.zeros_like(x, requires_grad=True) for x in heads]
    there = [i for i, x in enumerate(heads) if x.requires_grad]
    jt_u = torch.autograd.grad(
        [heads[i] for i in there], list(own.values()), [u[i] for i in there], create_graph=True, materialize_grads=True
    )
    flat = _stack(dict(zip(own, jt_u, strict=True)))  # [K, P]
    K, P = flat.shape
    basis = torch.eye(P, dtype=flat.dtype, device=flat.device)[:, None].expand(P, K, P)
    found = torch.autograd.grad(
        flat, u, basis, create_graph=create_graph, is_grads_batched=True, allow_unused=True
    )  # fmt: skip
    return [x.new_zeros(P, *x.shape) if t is None else t for x, t in zip(heads, found, strict=True)]


def _stack(params: Params) -> Tensor:
    return torch.cat([value.reshape(value.shape[0], -1) for value in params.values()], -1)
