"""MAML-TRPO on families with known answers."""

import numpy as np
import pytest
from probes import (
    Locks,
    PointGoal,
    Signs,
    TwoArms,
    setup,
)

from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import Config, iteration
from metarl.rollout.setup import Setup


@pytest.mark.parametrize("step_size", [0.5, -0.5])
def test_a_step_earns_more_in_every_task_and_its_opposite_less(step_size):
    config = Config(n_tasks=6, hidden=(8,), init_std=0.5)
    sampler, policy, state = setup(Signs(), config)
    done = maml_trpo.evaluate(Setup(config, sampler, policy, 0), state, sampler.tasks(6, 0, 0), 200, [step_size])
    before, after = done.returns.mean(-1).unbind(1)
    assert ((after - before) * np.sign(step_size) > 2).all()  # the noise of the means is about 0.4


def test_every_further_step_earns_more():
    config = Config(n_tasks=6, hidden=(8,), init_std=0.5)
    sampler, policy, state = setup(Signs(), config)
    done = maml_trpo.evaluate(Setup(config, sampler, policy, 0), state, sampler.tasks(6, 0, 0), 200, [0.02, 0.02, 0.02])
    assert (done.returns.mean((0, 2)).diff() > 0.5).all()


def trained(family, config: Config, iterations: int) -> tuple[np.ndarray, tuple]:
    """The returns before and after adaptation in every iteration [iterations, 2], and what was trained."""
    sampler, policy, state = setup(family, config)
    returns = []
    for _ in range(iterations):
        state, stats = iteration(Setup(config, sampler, policy, 0), state)
        returns.append((stats["return/step_0"], stats[f"return/step_{config.inner_steps}"]))
    return np.array(returns), (sampler, policy, state)


@pytest.fixture(scope="module")
def point_goal() -> np.ndarray:
    """Mean returns on test tasks after 0, 1 and 2 steps, after a short training."""
    config = Config(n_tasks=20, episodes=10, inner_lr=0.1, init_std=0.5, hidden=(32, 32))
    _, (sampler, policy, state) = trained(PointGoal(), config, 20)
    tasks = sampler.tasks(200, 1, 0, "test")
    return (
        maml_trpo.evaluate(Setup(config, sampler, policy, 1), state, tasks, 20, [0.1, 0.05])
        .returns.mean((0, 2))
        .numpy()
    )


def test_point_goal_adapted_beats_what_no_blind_policy_can_beat(point_goal):
    assert point_goal[1] > PointGoal.blind + 2.5


def test_point_goal_unadapted_comes_near_the_blind_bound_and_not_past_it(point_goal):
    # 0.4 is twice the standard error of the bound on 200 tasks; the noise of the actions costs some return.
    assert PointGoal.blind - 1.2 < point_goal[0] < PointGoal.blind + 0.4


def test_point_goal_a_second_step_does_no_harm(point_goal):
    assert point_goal[2] > point_goal[1] - 0.3


def test_training_without_inner_steps_does_not_pass_the_blind_bound():
    returns, _ = trained(PointGoal(), Config(n_tasks=20, episodes=10, init_std=0.3, hidden=(32,), inner_steps=0), 15)
    assert PointGoal.blind - 1.2 < returns[-5:, 0].mean() < PointGoal.blind + 0.6


def test_two_arms_an_adapted_policy_comes_to_pull_the_good_one():
    config = Config(n_tasks=10, episodes=20, inner_lr=0.1, hidden=(16,), output_gain=0.1)
    returns, _ = trained(TwoArms(), config, 25)
    before, after = returns[:3, 1].mean(), returns[-5:, 1].mean()
    assert after > 0.9
    assert after > before + 0.1


def test_locks_an_adapted_policy_comes_to_know_the_code():
    # A guess is right 5/12 of the time, and no policy that cannot adapt is right more often.
    config = Config(n_tasks=12, episodes=20, inner_lr=0.5, hidden=(16,), output_gain=0.1)
    returns, _ = trained(Locks(), config, 25)
    assert returns[-5:, 1].mean() > returns[-5:, 0].mean() + 0.3
