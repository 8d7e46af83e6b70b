"""What the trust-region step looks at: the adapted policies' loss and KL, at the acting parameters and elsewhere."""

from dataclasses import replace

import pytest
import torch
from maml_problems import SMALL, families, inner_steps, problem
from probes import (
    Drift,
)
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from metarl.formulas import distributions
from metarl.formulas.losses import masked_mean
from metarl.inner import loop
from metarl.outer import objective as outer
from metarl.params import expand


@families
@inner_steps
def test_at_the_acting_parameters_the_adapted_policy_is_the_one_that_acted(family, inner_steps):
    config = replace(SMALL, inner_steps=inner_steps)
    policy, params, data = problem(family, config)
    here, rollout = outer.objective(config, policy, data, 3)(params, False), data[-1].rollout
    log_ratio = (distributions.log_prob(here.dist, rollout.act) - rollout.log_prob) * rollout.mask
    assert log_ratio.abs().max() < 1e-5


@families
@inner_steps
def test_at_the_acting_parameters_the_kl_is_zero(family, inner_steps):
    config = replace(SMALL, inner_steps=inner_steps)
    policy, params, data = problem(family, config)
    assert abs(outer.objective(config, policy, data, 3)(params, False).kl.item()) < 1e-9


@families
@pytest.mark.parametrize(("differentiable", "by_hand"), [(False, False), (True, False), (True, True)])
def test_away_from_the_acting_parameters_loss_and_kl_are_those_of_torch(family, differentiable, by_hand):
    policy, params, data = problem(family, SMALL)
    g = torch.Generator().manual_seed(1)
    # The standard deviations move too: without them KL(a || b) and KL(b || a) are the same.
    moved = {name: value + 0.3 * torch.randn(value.shape, generator=g).double() for name, value in params.items()}
    leaves = {name: value.clone().requires_grad_() for name, value in moved.items()}
    got = outer.objective(SMALL, policy, data, 3, outer.Outer(by_hand=by_hand))(leaves, differentiable)

    def reference(dist: distributions.Distribution) -> torch.distributions.Distribution:
        if isinstance(dist, distributions.Gaussian):
            return Independent(Normal(dist.mean, dist.log_std.exp().expand_as(dist.mean)), 1)
        if isinstance(dist, distributions.MultiCategorical):
            parts = dist.logits.split(list(dist.sizes), -1)
            rows = [nn.functional.pad(x, (0, max(dist.sizes) - x.shape[-1]), value=-torch.inf) for x in parts]
            return Independent(Categorical(logits=torch.stack(rows, -2)), 1)
        return Categorical(logits=dist.logits)

    rollout = data[-1].rollout
    stacked = loop.detached_step(SMALL, policy, expand(moved, 3), loop.InnerStep(data[0], SMALL.inner_lr))[0]
    old, new = reference(rollout.dist), reference(policy.distribution(stacked, rollout.obs))
    ratio = (new.log_prob(rollout.act) - old.log_prob(rollout.act)).exp()
    want = [-masked_mean(ratio * data[-1].advantage, rollout.mask).mean(),
            masked_mean(kl_divergence(old, new), rollout.mask).mean()]  # fmt: skip
    assert [got.loss.item(), got.kl.item()] == pytest.approx([x.item() for x in want], rel=1e-9)
    assert got.kl > 1e-3


def test_the_objective_of_all_tasks_is_the_sum_of_its_chunks():
    policy, params, data = problem(Drift(), SMALL)
    whole = outer.objective(SMALL, policy, data, 3)(params, False)
    chunks = [slice(0, 1), slice(1, 3)]
    parts = [outer.objective(SMALL, policy, [batch[c] for batch in data], 3)(params, False) for c in chunks]
    assert sum(p.loss.item() for p in parts) == pytest.approx(whole.loss.item(), abs=1e-12)
    torch.testing.assert_close(torch.cat([p.weight for p in parts]), whole.weight)


def test_the_weights_of_the_kl_are_one_in_all_and_equal_for_every_task():
    policy, params, data = problem(Drift(), SMALL)  # whose episodes have different lengths
    weight = outer.objective(SMALL, policy, data, 3)(params, False).weight
    torch.testing.assert_close(weight.sum((1, 2)), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_the_kl_is_the_weighted_sum_of_the_states_own():
    policy, params, data = problem(Drift(), SMALL)
    moved = {name: value + 0.1 for name, value in params.items()}
    got = outer.objective(SMALL, policy, data, 3)(moved, False)
    want = (got.weight * distributions.kl(data[-1].rollout.dist, got.dist)).sum()
    torch.testing.assert_close(got.kl, want)
