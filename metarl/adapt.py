"""The inner step: one gradient step for every task at once."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

Params = dict[str, Tensor]


def expand(params: Params, n_tasks: int) -> Params:
    """One copy of the meta-parameters per task, [...] -> [K, ...]; gradients flow back to the one original."""
    return {name: value.expand(n_tasks, *value.shape) for name, value in params.items()}


def sgd_step(
    params: Params,
    loss: Callable[[Params], Tensor],
    lr: float,
    create_graph: bool = False,
    frozen: Collection[str] = (),
) -> Params:
    """`params` [K, ...] after one gradient step on `loss(params)`, which is a [K] tensor; `frozen` ones stay.

    Task k's loss depends on task k's slice of the parameters only, so the gradient of the sum is every task's own
    gradient, and the step does not depend on how many tasks there are.

    Where `params` hang on other parameters by a graph, so do the results: with `create_graph` through the gradient
    as well (second order), without it through the addition alone (first order). Otherwise the results are detached.
    """
    attached = any(v.requires_grad for v in params.values())
    if not attached:
        params = {name: v.detach().requires_grad_() for name, v in params.items()}
    with torch.enable_grad():
        losses = loss(params)
        assert losses.dim() == 1, f"an inner loss has one number per task [K], got shape {tuple(losses.shape)}"
        moving = [name for name in params if name not in frozen]
        grads = torch.autograd.grad(
            losses.sum(), [params[n] for n in moving], create_graph=create_graph and attached, materialize_grads=True
        )  # zero for a parameter that the loss does not depend on: it stays
        new = params | {name: params[name] - lr * g for name, g in zip(moving, grads, strict=True)}
    return new if attached else {name: v.detach() for name, v in new.items()}
