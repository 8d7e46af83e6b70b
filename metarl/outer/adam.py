"""Adam on the meta-objective."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from metarl.formulas import optimizers
from metarl.inner.learned import split
from metarl.inner.settings import AdamSettings, GradientSettings, cosine
from metarl.inner.state import State, init
from metarl.outer.objective import trained
from metarl.outer.trust_region import Objective, value_and_gradient, value_and_kl
from metarl.params import Params
from metarl.policies.base import Policy
from metarl.rollout.finite import SMALLER_STEPS, NotFiniteError
from metarl.tasks import TaskFamily


def adam_init(
    config: GradientSettings, policy: Policy, family: TaskFamily | None, seed: int, device: torch.device | str = "cpu"
) -> State:
    """`metarl.inner.state.init` with Adam's statistics."""
    state = init(config, policy, family, seed, device)
    return replace(state, optimizer=optimizers.adam_start(trained(config, state)))


def adam_steps(
    settings: AdamSettings, parts: Sequence[Objective], meta: Params, memory: Params, iteration: int, steps: int
) -> tuple[Params, Params, dict[str, float]]:
    """Lower the sum of `parts` by `steps` steps of Adam from `meta`. -> new parameters, Adam's memory, statistics.

    Raises:
        NotFiniteError: a gradient, or the loss after the last step.
    """
    factor = cosine(iteration, settings.anneal_over, settings.anneal_to)
    own, _ = split(meta)
    before: dict[str, float] = {}
    for _ in range(steps):
        loss, gradient = value_and_gradient(parts, meta)
        most = settings.max_grad_norm or math.inf
        gradient, norm = optimizers.clip_norm(gradient, most)
        if not math.isfinite(float(norm)):
            raise NotFiniteError(f"the meta-gradient of iteration {iteration + 1} has the norm {float(norm)}: the "
                                 "steps are too large, lower inner_lr or outer_lr")  # fmt: skip
        before = before or {"gradient_norm": float(norm), "loss_before": loss}
        direction, memory = optimizers.adam(gradient, memory)
        lr = {name: factor * (settings.outer_lr if name in own else settings.learned_outer_lr) for name in meta}
        meta = {name: value - lr[name] * direction[name] for name, value in meta.items()}
    loss, kl = value_and_kl(parts, meta)
    if not math.isfinite(loss):
        raise NotFiniteError(f"the outer loss after the step of iteration {iteration + 1} is {loss}: {SMALLER_STEPS}")
    return meta, memory, before | {"loss_after": loss, "kl": kl, "lr": factor * settings.outer_lr}
