"""MAML's meta-gradient, of first and second order, by finite differences."""

from dataclasses import replace

import pytest
import torch
from maml_problems import SMALL, families, inner_steps, problem, ways
from probes import (
    Drift,
    TwoArms,
    finite_differences,
    linearise,
    surrogate_loss,
)
from torch import Tensor

from metarl.algorithms.maml_trpo import Config
from metarl.formulas import distributions
from metarl.inner import loop
from metarl.outer import objective as outer
from metarl.outer.trust_region import flatten, unflatten
from metarl.params import Params, expand
from metarl.policies.base import Policy

gradients = pytest.mark.parametrize("inner_gradient", ["policy_gradient", "lvc"])


def meta_gradient(
    config: Config, policy: Policy, params: Params, data: list[loop.Batch], by_hand: bool = True
) -> Tensor:
    return linearise(outer.objective(config, policy, data, config.n_tasks, outer.Outer(by_hand=by_hand)), params)[0]


@families
@ways
@inner_steps
@gradients
def test_second_order_meta_gradient_against_finite_differences(family, by_hand, inner_steps, inner_gradient):
    config = replace(SMALL, inner_steps=inner_steps, inner_gradient=inner_gradient)
    policy, params, data = problem(family, config)

    def adapted_loss(meta: Params) -> Tensor:
        stacked = expand(meta, 3)
        for batch in data[:-1]:
            stacked = loop.detached_step(config, policy, stacked, loop.InnerStep(batch, config.inner_lr))[0]
        return surrogate_loss(policy, stacked, data[-1])

    want = finite_differences(adapted_loss, params)
    torch.testing.assert_close(meta_gradient(config, policy, params, data, by_hand), want, atol=1e-8, rtol=1e-6)


@families
@ways
@inner_steps
def test_first_order_meta_gradient_against_finite_differences_with_the_inner_gradients_held(
    family, by_hand, inner_steps
):
    config = replace(SMALL, inner_steps=inner_steps, first_order=True)
    policy, params, data = problem(family, config)
    stacked = expand(params, 3)
    for batch in data[:-1]:
        stacked = loop.detached_step(config, policy, stacked, loop.InnerStep(batch, config.inner_lr))[0]
    moved = {name: value - params[name] for name, value in stacked.items()}

    def held_loss(meta: Params) -> Tensor:
        return surrogate_loss(policy, {name: value + moved[name] for name, value in meta.items()}, data[-1])

    want = finite_differences(held_loss, params)
    torch.testing.assert_close(meta_gradient(config, policy, params, data, by_hand), want, atol=1e-8, rtol=1e-6)


@families
def test_first_and_second_order_differ(family):
    policy, params, data = problem(family, SMALL)
    second, first = (meta_gradient(replace(SMALL, first_order=o), policy, params, data) for o in (False, True))
    assert (first - second).norm() > 0.02 * second.norm()


@families
def test_lvc_takes_the_step_of_the_policy_gradient_and_differentiates_it_differently(family):
    configs = [replace(SMALL, inner_gradient=name) for name in ("policy_gradient", "lvc")]
    policy, params, data = problem(family, SMALL)
    stacked = expand(params, 3)
    plain, lvc = (loop.detached_step(config, policy, stacked, loop.InnerStep(data[0], 0.3))[0] for config in configs)
    for name, value in plain.items():
        torch.testing.assert_close(lvc[name], value, atol=1e-6, rtol=1e-6)
    plain, lvc = (meta_gradient(config, policy, params, data) for config in configs)
    assert (plain - lvc).norm() > 0.02 * plain.norm()


def test_the_lvc_hessian_has_the_term_that_the_policy_gradient_leaves_out():
    # Hessian(-E[pi/pi_old A]) - Hessian(-E[log pi A]) = -E[A grad log pi grad log pi^T] at the acting parameters.
    config = replace(SMALL, n_tasks=1)
    policy, params, data = problem(TwoArms(), config)
    batch = data[0][:1]
    like = {name: value[None] for name, value in params.items()}
    vector = flatten(params)

    def loss(name: str):
        chosen = replace(config, inner_gradient=name)
        return lambda x: loop.inner_loss(chosen, policy, loop.InnerStep(batch, 0.0), unflatten(x, like)).sum()

    lvc, plain = (torch.autograd.functional.hessian(loss(name), vector) for name in ("lvc", "policy_gradient"))

    def log_probs(x: Tensor) -> Tensor:
        dist = policy.distribution(unflatten(x, like), batch.rollout.obs)
        return distributions.log_prob(dist, batch.rollout.act)[0].reshape(-1)

    scores = torch.autograd.functional.jacobian(log_probs, vector)
    weight = (batch.rollout.mask * batch.advantage)[0].reshape(-1) / batch.rollout.mask.sum()
    # The stored log-probabilities are float32 numbers, so the ratio is one only up to their rounding.
    torch.testing.assert_close(lvc - plain, -(scores.mT * weight) @ scores, atol=1e-6, rtol=1e-5)


def test_the_inner_step_is_part_of_the_meta_gradient():
    policy, params, data = problem(Drift(), SMALL)
    with_step, without = (meta_gradient(c, policy, params, data) for c in (SMALL, replace(SMALL, inner_lr=1e-12)))
    assert (with_step - without).norm() > 0.02 * with_step.norm()


def test_a_std_that_does_not_adapt_is_still_meta_learned():
    policy, params, data = problem(Drift(), replace(SMALL, adapt_std=False))
    gradient = meta_gradient(replace(SMALL, adapt_std=False), policy, params, data)
    assert unflatten(gradient, params)["log_std"].abs().min() > 1e-4


@ways
def test_a_std_that_does_not_adapt_against_finite_differences(by_hand):
    config = replace(SMALL, adapt_std=False)
    policy, params, data = problem(Drift(), config)
    objective = outer.objective(config, policy, data, 3)
    want = finite_differences(lambda meta: objective(meta, False).loss, params)
    torch.testing.assert_close(meta_gradient(config, policy, params, data, by_hand), want, atol=1e-8, rtol=1e-6)
