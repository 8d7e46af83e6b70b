"""Environment steps are counted where they are taken, and a budget is a limit."""

import numpy as np
import pytest
from probes import Drift, PointGoal, setup

import metarl
from metarl.algorithms import maml_trpo
from metarl.benchmark.meter import BudgetSpent, Meter, MeteredFamily
from metarl.params import expand
from metarl.rollout.sampler import Sampler


def collected(family, n_tasks: int = 3, episodes: int = 4):
    config = maml_trpo.Config(hidden=(4,))
    _, policy, state = setup(Drift(), config)
    sampler = Sampler(family)
    try:
        return sampler.collect(
            sampler.tasks(n_tasks, 0, 0), episodes, policy, expand(state.params, n_tasks), 0, 0, 0
        )  # fmt: skip
    finally:
        sampler.close()


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_every_backend_counts_the_steps_of_episodes_that_have_not_ended(workers):
    meter = Meter(None)
    rollout = collected(MeteredFamily(Drift(), meter, workers))
    assert meter.spent == rollout.steps < 3 * 4 * Drift.horizon
    plain = collected(Drift())
    assert (rollout.rew == plain.rew).all()  # counting changes nothing


def test_environments_that_are_reset_apart_from_the_others_count_again():
    meter = Meter(None)
    env = MeteredFamily(PointGoal(), meter).make_vector(1, 3)
    tasks = PointGoal().sample(1, np.random.default_rng(0))
    env.reset(seed=[1, 2, 3], options={"tasks": tasks})
    import torch

    zero = torch.zeros(3, 2)
    env._alive[:] = [False, True, False]
    env.step(zero)
    assert meter.spent == 1
    env.reset(seed=[1, 2, 3], options={"reset_mask": np.array([True, False, False])})
    env.step(zero)
    assert meter.spent == 3
    assert env.num_envs == 3 and env.name == PointGoal.id  # the rest of the contract is the environment's own


def test_single_environments_count_too():
    meter = Meter(None)
    family = MeteredFamily(PointGoal(), meter)
    env = family.make({"goal": np.zeros(2, np.float32)})
    env.reset(seed=0)
    for _ in range(5):
        env.step(np.zeros(2, np.float32))
    assert meter.spent == 5


def test_who_asks_for_more_is_stopped_before_the_step_is_taken_and_marked():
    meter = Meter(20)
    with pytest.raises(BudgetSpent, match=r"11 environment steps were asked for, and 8 of 20 are left"):
        collected(MeteredFamily(Drift(), meter))
    assert meter.spent == 12 and meter.exceeded and meter.left == 8


def test_a_budget_can_be_used_to_the_last_step():
    meter = Meter(5)
    meter.take(5)
    assert meter.left == 0 and not meter.exceeded
    with pytest.raises(BudgetSpent):
        meter.take(1)


def test_a_plan_to_use_everything_up_is_no_offence():
    meter = Meter(5)
    with meter.planned():
        meter.take(6)
    assert not meter.exceeded
    with pytest.raises(BudgetSpent):
        meter.take(6)
    with meter.planned():
        meter.take(7)
    assert meter.exceeded  # what was asked before stays


def test_a_metered_family_is_the_family_in_everything_else():
    family = MeteredFamily(metarl.make("PointNavigation-v0"), Meter(None))
    assert family.id == "PointNavigation-v0" and family.spec.id == "PointNavigation-v0"
    assert hasattr(family, "draw") and not hasattr(family, "nothing")
    metarl.visible(family)
