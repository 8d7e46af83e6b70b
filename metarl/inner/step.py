"""The inner step: one gradient step for every task at once; which parameters move, and how far.

Nothing here is about reinforcement learning: a loss is any function of stacked parameters with one number per task.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from metarl.params import Params

StepSize = float | Mapping[str, Tensor]
"""One step size for all parameters, or one for each by name: a tensor that broadcasts against [K, ...]."""

Direction = Callable[[Params, Params, Params], tuple[Params, Params]]
"""(parameters, gradients, memory) -> directions to step against, and the memory for the next step."""


def sgd_step(
    params: Params,
    loss: Callable[[Params], Tensor],
    lr: StepSize,
    create_graph: bool = False,
    frozen: Collection[str] = (),
) -> Params:
    """`params` [K, ...] after one gradient step on `loss(params)`, which is a [K] tensor; `frozen` ones stay.

    Task k's loss depends on task k's slice of the parameters only, so the gradient of the sum is every task's own
    gradient, and the step does not depend on how many tasks there are.

    Where `params` hang on other parameters by a graph, so do the results: with `create_graph` through the gradient
    as well (second order), without it through the addition alone (first order). Otherwise the results are detached.
    Step sizes that require a gradient get one in either case.
    """
    return inner_step(params, loss, lr, create_graph, frozen)[0]


def inner_step(
    params: Params,
    loss: Callable[[Params], Tensor],
    lr: StepSize,
    create_graph: bool = False,
    frozen: Collection[str] = (),
    direction: Direction | None = None,
    memory: Params | None = None,
) -> tuple[Params, Params]:
    """`sgd_step` along any direction that a function makes of the gradients. -> parameters, memory.

    Args:
        direction: None is the gradient itself; else like `metarl.formulas.optimizers.momentum`, given the parameters
            too (without `create_graph` as constants).
        memory: what `direction` returned in the step before; None or empty at the first.
    """
    sizes = [] if isinstance(lr, float | int) else list(lr.values())
    attached = any(v.requires_grad for v in (*params.values(), *sizes))
    second = create_graph and attached
    moving = [name for name in params if name not in frozen]
    leaves = {name: params[name].detach().requires_grad_() for name in moving if not params[name].requires_grad}
    params = params | leaves
    with torch.enable_grad():
        losses = loss(params)
        assert losses.dim() == 1, f"an inner loss has one number per task [K], got shape {tuple(losses.shape)}"
        grads = torch.autograd.grad(
            losses.sum(), [params[n] for n in moving], create_graph=second, materialize_grads=True
        )  # zero for a parameter that the loss does not depend on: it stays
        steps, memory = dict(zip(moving, grads, strict=True)), {} if memory is None else memory
        if direction is not None:
            steps, memory = direction(params if second else _detached(params), steps, memory)
        size = (lambda _: lr) if isinstance(lr, float | int) else lr.__getitem__
        new = params | {name: params[name] - size(name) * step for name, step in steps.items()}
    if not attached:
        new, memory = _detached(new), _detached(memory)
    return new, memory


def _detached(params: Params) -> Params:
    return {name: value.detach() for name, value in params.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Step sizes and masks that are learned
