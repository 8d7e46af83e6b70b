"""What the outer loop lowers: the loss of the adapted policies as a function of the meta-parameters, on given data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metarl.formulas import distributions, losses
from metarl.formulas.distributions import Distribution
from metarl.inner.learned import split, step_size
from metarl.inner.loop import Experience, InnerStep, chunks, lr_unit, step
from metarl.inner.loss import Batch, LossInput
from metarl.inner.settings import GradientSettings
from metarl.inner.state import State
from metarl.inner.step import StepSize
from metarl.outer.exploration import credits
from metarl.outer.trust_region import Objective, Surrogate
from metarl.outer.unrolled_jacobian import InnerSteps, unrolled_jacobian
from metarl.params import Params, expand
from metarl.policies.base import Policy
from metarl.policies.mlp import MLPPolicy
from metarl.policies.once import check_twice

PolicyLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(log_prob, old_log_prob, advantage, mask), each [K, T, E] -> [K], like `metarl.formulas.losses.surrogate`."""


@dataclass(frozen=True)
class Outer:
    """What the outer loss is made of, beside the settings of the inner loop."""

    loss: PolicyLoss = losses.surrogate
    inner_kl: float = 0.0  # weight of KL(policy that acted || policy now) before every inner step (ProMP)
    by_hand: bool = (
        True  # derivatives of an MLP from `metarl.outer.unrolled_jacobian` where it has them; else automatic ones
    )


@dataclass(frozen=True)
class Constants:
    """What stays as it is during the meta-update of one iteration, and is not differentiated."""

    unit: float = 1.0
    """Multiplies the inner step sizes (see `lr_unit`)."""
    iteration: int = 0
    """Of training, for what is annealed."""
    held: Params = field(default_factory=dict)
    """Meta-parameters that are no argument of the objective (see `held`)."""

    @classmethod
    def of(cls, config: GradientSettings, state: State) -> "Constants":
        """Those of the meta-update that starts from `state`."""
        return cls(lr_unit(config, state.params), state.iteration, held(config, state))


def objectives(
    config: GradientSettings, policy: Policy, data: Sequence[Batch], state: State, outer: Outer = Outer(),
    stages: Sequence[Params] | None = None,
) -> list[Objective]:  # fmt: skip
    """The meta-objective as chunks of tasks, each a function of the meta-parameters that are `trained`."""
    fixed = Constants.of(config, state)
    scores = credits(config, data, state.iteration) if config.exploration else []

    def own(chunk: slice) -> Objective:
        at = stages and [{name: value[chunk] for name, value in params.items()} for params in stages]
        part, credit = [batch[chunk] for batch in data], [score[chunk] for score in scores]
        return objective(config, policy, part, config.n_tasks, outer, fixed, credit, at)

    return [own(chunk) for chunk in chunks(data[-1])]


def fisher_objectives(
    config: GradientSettings, policy: Policy, found: Experience, state: State, stride: int
) -> list[Objective]:  # fmt: skip
    """The same for Fisher products at the acting parameters, from one in `stride` time steps of every stage.

    The adapted policies are those that acted. What is estimated from fewer steps is how they depend on the
    meta-parameters, and the mean over states. Only for inner losses that are means over time steps.
    """
    data = [batch.every(stride) for batch in found.data]
    return objectives(replace(config, exploration=0.0), policy, data, state, stages=found.params)


def held(config: GradientSettings, state: State) -> Params:
    """Meta-parameters that the outer loop leaves alone: CAVIA's context, which always starts from zero, and the
    standard deviation without `learned_std`."""
    names = {"context"} if config.adapts == "context" else set()
    if not config.learned_std:
        names.add("log_std")
    return {name: value for name, value in state.params.items() if name in names}


def trained(config: GradientSettings, state: State) -> Params:
    """The meta-parameters that the outer loop trains."""
    rest = held(config, state)
    return {name: value for name, value in state.meta.items() if name not in rest}


def objective(
    config: GradientSettings, policy: Policy, data: Sequence[Batch], n_tasks: int, outer: Outer = Outer(),
    constants: Constants = Constants(), scores: Sequence[Tensor] = (), stages: Sequence[Params] | None = None,
) -> Objective:  # fmt: skip
    """The meta-objective of the tasks in `data` (a chunk of `n_tasks`) as a function of the meta-parameters.

    Args:
        data: before every inner step and after the last.
        scores: the tasks' `credits`, [K] for every inner step; needed where `config.exploration` is not zero.
        stages: the adapted parameters after 0, 1, ... inner steps, if they are known and `data` is to give their
            derivatives alone.
    """
    config, weights = config.at(constants.iteration), config.step_weights(constants.iteration)
    *train, last = data
    sizes = [constants.unit * lr for lr in config.training_step_sizes(len(train))]
    weight = last.rollout.mask / last.rollout.mask.sum((1, 2), keepdim=True) / n_tasks
    per_episode = config.loss_per == "episode"
    by_hand = outer.by_hand and _known_by_hand(config, policy, len(train), weights, outer)
    ours = type(policy).__module__.startswith("metarl.")  # modules are checked when they are made
    second_order = bool(train) and not config.first_order and not ours

    def post_loss(batch: Batch, dist: Distribution) -> Tensor:
        log_prob = distributions.log_prob(dist, batch.rollout.act)
        loss = outer.loss(log_prob, batch.rollout.log_prob, batch.advantage, batch.rollout.mask)
        return (losses.per_episode(loss, batch.rollout.mask) if per_episode else loss).sum() / n_tasks

    def pre_loss(i: int, params: Params) -> Tensor | None:
        """What the outer loss has of the policy before inner step i; None: nothing."""
        if not config.exploration and not outer.inner_kl:
            return None
        rollout = train[i].rollout
        dist = policy.distribution(params, rollout.obs)
        kl = losses.masked_mean(distributions.kl(rollout.dist, dist), rollout.mask)
        out = outer.inner_kl * torch.where(_learns(data[i:]), kl, 0.0)
        if config.exploration:
            assert len(scores) == len(train), "E-MAML's term needs every task's credit for every inner step"
            log_prob = distributions.log_prob(dist, rollout.act)
            out = out + config.exploration * losses.exploration(log_prob, rollout.log_prob, scores[i], rollout.mask)
        return out.sum() / n_tasks

    def evaluate_at(trained: Params, differentiable: bool) -> Surrogate:
        meta = trained | constants.held
        if differentiable and by_hand:
            mlp: Any = policy  # see `_known_by_hand`
            inner = _inner_steps(config, split(meta)[0], train, sizes, stages)
            dist, jacobian = unrolled_jacobian(
                mlp, *split(meta), len(last.scale), inner, last.rollout.obs, constants.held
            )
            loss, kl = post_loss(last, dist), _mean_kl(last, dist, n_tasks)
            direct = pre_loss(0, expand(split(meta)[0], len(last.scale))) if train else None
            return Surrogate(loss, kl, dist, weight, jacobian, direct)
        params, learned = split(meta)
        params, memory, loss = expand(params, len(last.scale)), Params(), last.advantage.new_zeros(())
        initial = params
        for i, batch in enumerate(train):
            if (extra := pre_loss(i, params)) is not None:
                loss = loss + extra
            create_graph = differentiable and not config.first_order
            to_take = InnerStep(batch, sizes[i], i, initial, learned)
            params, memory = step(config, policy, params, to_take, memory, create_graph)
            if stages is not None:
                params = {name: stages[i + 1][name] + (x - x.detach()) for name, x in params.items()}
            if i + 1 < len(train) and weights[i]:
                loss = loss + weights[i] * post_loss(data[i + 1], policy.distribution(params, data[i + 1].rollout.obs))
        dist = policy.distribution(params, last.rollout.obs)
        if second_order and differentiable:
            check_twice(dist)
        return Surrogate(loss + weights[-1] * post_loss(last, dist), _mean_kl(last, dist, n_tasks), dist, weight)

    return evaluate_at


def _learns(data: Sequence[Batch]) -> Tensor:
    """Whether the first of these stages says something to a task that the later ones are affected by, bool [K]."""
    first, *later = (batch.scale.isfinite() for batch in data)
    return first & torch.stack(later).any(0)


def _mean_kl(batch: Batch, dist: Distribution, n_tasks: int) -> Tensor:
    return losses.masked_mean(distributions.kl(batch.rollout.dist, dist), batch.rollout.mask).sum() / n_tasks


def _known_by_hand(
    config: GradientSettings, policy: Any, steps: int, weights: Sequence[float], outer: Outer
) -> bool:  # fmt: skip
    if policy.kind != MLPPolicy.__name__ or policy.context or config.inner_optimizer != "sgd":
        return False
    if type(config).inner_loss is not GradientSettings.inner_loss:  # it may look at more than the distribution
        return False
    if config.learned_discount or config.learned_lambda or any(weights[:-1]):
        return False
    return steps <= 1 or not (config.exploration or outer.inner_kl)


def _inner_steps(
    config: GradientSettings, params: Params, train: Sequence[Batch], sizes: Sequence[float],
    stages: Sequence[Params] | None,
) -> InnerSteps:  # fmt: skip
    moving = config.moving(params)

    def size(learned: Params, i: int) -> StepSize:
        return step_size(learned, sizes[i], i, moving)

    def loss_on(batch: Batch, dist: Distribution) -> Tensor:
        return config.inner_loss(LossInput(batch, dist))

    losses_on = [(batch.rollout.obs, partial(loss_on, batch)) for batch in train]
    return InnerSteps(losses_on, size, moving, not config.first_order, stages)
