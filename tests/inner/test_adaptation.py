"""Adapting to given tasks: the steps, their sizes, units, data and noise; rewards against a given number."""

from dataclasses import replace

import pytest
import torch
from maml_problems import RUN, SMALL, assert_equal
from probes import (
    Drift,
    TwoArms,
    setup,
)

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import Config, State
from metarl.formulas import distributions
from metarl.formulas.losses import masked_mean
from metarl.inner import loop
from metarl.outer.trust_region import flatten
from metarl.rollout.sampler import EnvSampler
from metarl.rollout.setup import Setup
from metarl.tasks import task_at

# ---------------------------------------------------------------------------------------------------------------------
# Adapting to given tasks


def adaptation(step_sizes, config: Config = RUN, family=None, seed: int = 5) -> loop.Adaptation:
    sampler, policy, state = setup(family or Drift(), config)
    return maml_trpo.evaluate(
        Setup(config, sampler, policy, seed), state, sampler.tasks(3, 1, 0, "test"), 6, step_sizes
    )


@pytest.mark.parametrize("step_sizes", [[], [0.1], [0.1, 0.05, 0.05]])
def test_as_many_steps_are_taken_as_were_asked_for(step_sizes):
    done = adaptation(step_sizes)
    assert done.returns.shape == (3, len(step_sizes) + 1, 6)
    assert all((b["w0"] != a["w0"]).any() for a, b in zip(done.params[:-1], done.params[1:], strict=True))


def test_every_step_has_its_own_size():
    # Only what comes after the second step can know of its size.
    a, b = adaptation([0.1, 0.2, 0.1]), adaptation([0.1, 0.4, 0.1])
    same = [torch.equal(a.params[k]["w0"], b.params[k]["w0"]) for k in range(4)]
    assert same == [True, True, False, False]
    assert [torch.equal(a.returns[:, k], b.returns[:, k]) for k in range(4)] == same


def test_a_step_is_proportional_to_its_size():
    a, b = adaptation([0.1]), adaptation([0.3])
    moves = [done.params[1]["w1"] - done.params[0]["w1"] for done in (a, b)]
    torch.testing.assert_close(moves[1], 3 * moves[0], atol=1e-5, rtol=1e-4)


def test_a_step_is_the_gradient_of_the_episodes_before_it():
    done = adaptation([0.2, 0.1], replace(RUN, adapt_std=True))
    policy = RUN.policy(setup(Drift(), RUN)[1].spaces)
    batch = loop.Batch.of(RUN, done.rollouts[1])
    leaves = {name: value.clone().requires_grad_() for name, value in done.params[1].items()}
    log_prob = distributions.log_prob(policy.distribution(leaves, batch.rollout.obs), batch.rollout.act)
    objective = masked_mean(log_prob * batch.advantage, batch.rollout.mask).sum()  # to be raised
    for (name, value), g in zip(leaves.items(), torch.autograd.grad(objective, list(leaves.values())), strict=True):
        torch.testing.assert_close(done.params[2][name], value + 0.1 * g, atol=1e-6, rtol=1e-5)


def test_every_stage_of_an_adaptation_has_noise_of_its_own():
    done = adaptation([1e-12, 1e-12])
    first, second, third = (rollout.act[:, 0] for rollout in done.rollouts)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_returns_are_those_of_the_rollouts_with_the_parameters_beside_them():
    done = adaptation([0.2, 0.1])
    policy = RUN.policy(setup(Drift(), RUN)[1].spaces)
    for k, (params, rollout) in enumerate(zip(done.params, done.rollouts, strict=True)):
        again = distributions.log_prob(policy.distribution(params, rollout.obs), rollout.act)
        torch.testing.assert_close(again * rollout.mask, rollout.log_prob * rollout.mask, atol=1e-5, rtol=1e-5)
        assert torch.equal(done.returns[:, k], rollout.returns)


def test_adapting_does_not_change_the_state():
    sampler, policy, state = setup(Drift(), RUN)
    before = {name: value.clone() for name, value in state.params.items()}
    maml_trpo.evaluate(Setup(RUN, sampler, policy, 0), state, sampler.tasks(3, 1, 0), 4, [0.5, 0.5])
    assert_equal(state, State(before))


def test_adapting_leaves_no_graph_behind():
    assert not any(value.requires_grad for params in adaptation([0.1]).params for value in params.values())


def test_adapting_follows_the_seed():
    a, again, b = (adaptation([0.1], seed=s).returns for s in (5, 5, 6))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_a_task_adapts_alone_as_it_does_among_others():
    sampler, policy, state = setup(Drift(), RUN)
    tasks = sampler.tasks(3, 1, 0)
    many, one_task = (
        maml_trpo.evaluate(Setup(RUN, sampler, policy, 0), state, {n: v[:k] for n, v in tasks.items()}, 6, [0.1, 0.1])
        for k in (3, 1)
    )
    torch.testing.assert_close(many.returns[:1], one_task.returns, atol=1e-4, rtol=1e-4)


def test_a_plain_environment_adapts_as_the_family_does():
    sampler, policy, state = setup(Drift(), RUN)
    tasks = {name: value[:1] for name, value in sampler.tasks(3, 1, 0).items()}
    env = EnvSampler(Drift().make(task_at(tasks, 0)), Drift.horizon)
    ours, theirs = (maml_trpo.evaluate(Setup(RUN, s, policy, 0), state, tasks, 6, [0.1, 0.1]) for s in (sampler, env))
    torch.testing.assert_close(ours.returns, theirs.returns, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Step sizes in units of the standard deviation


def test_the_unit_of_the_step_size_is_the_geometric_mean_of_the_floored_standard_deviations():
    meta = {"log_std": torch.tensor([0.25, 0.01]).log()}
    assert loop.lr_unit(Config(lr_in_std=True, min_std=0.04), meta) == pytest.approx(0.1)
    assert loop.lr_unit(Config(min_std=0.04), meta) == 1.0


def test_a_categorical_policy_has_no_such_unit():
    assert loop.lr_unit(Config(lr_in_std=True), {"w0": torch.ones(1)}) == 1.0


def test_an_iteration_and_an_evaluation_in_that_unit_are_those_with_the_product():
    results = []
    for config in (replace(SMALL, init_std=0.5, inner_lr=0.3, lr_in_std=True), replace(SMALL, init_std=0.5)):
        config = config if config.lr_in_std else replace(config, inner_lr=0.15)
        sampler, policy, state = setup(Drift(), config)
        tasks = sampler.tasks(3, 5, 0, "test")
        found = maml_trpo.evaluate(Setup(config, sampler, policy, 1), state, tasks, 4, [2 * config.inner_lr])
        new, stats = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
        results.append((flatten(new.params), found.params[-1]["w0"], stats["return/step_1"]))
    (in_units, adapted, post), (plain, plain_adapted, plain_post) = results
    torch.testing.assert_close(in_units, plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(adapted, plain_adapted, atol=1e-6, rtol=1e-5)
    assert post == pytest.approx(plain_post, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Rewards against a given number


def test_a_single_episode_adapts_only_against_a_given_number():
    config = replace(SMALL, n_tasks=6, episodes=1)
    for given, moves in ((None, False), (0.25, True)):
        own = replace(config, reward_baseline=given)
        sampler, policy, state = setup(TwoArms(), own)
        found = maml_trpo.evaluate(Setup(own, sampler, policy, 1), state, sampler.tasks(6, 5, 0), 1, [0.5])
        assert bool((found.params[1]["b1"] != found.params[0]["b1"]).any()) == moves
