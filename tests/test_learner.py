"""MetaLearner: learning, evaluating, adapting."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny_runs import TINY, Walk, module, point, same_params, tiny

import metarl
from metarl import MetaLearner
from metarl.algorithms import maml_trpo
from metarl.policies.spaces import spaces_of
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup

# ---------------------------------------------------------------------------------------------------------------------
# Learning


def test_learning_is_the_algorithms_iteration_repeated():
    learner, config = tiny(inner_lr=0.3), maml_trpo.Config(**TINY, inner_lr=0.3)
    family = point()
    policy = config.policy(spaces_of(family))
    sampler, state = Sampler(family), maml_trpo.init(config, policy, family, 0)
    assert same_params(learner.state.params, state.params)
    for _ in range(2):
        state, _ = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
    learner.learn(2)
    assert same_params(learner.state.params, state.params)
    assert (learner.state.iteration, learner.state.env_steps) == (2, state.env_steps)


def test_learning_in_two_parts_is_learning_at_once():
    assert same_params(tiny().learn(1).learn(2).state.params, tiny().learn(3).state.params)


def test_learning_moves_the_parameters_and_returns_the_learner():
    learner = tiny()
    before = learner.state.params
    assert learner.learn(1) is learner
    assert not same_params(learner.state.params, before)


def test_no_iterations_change_nothing():
    learner = tiny()
    state = learner.state
    learner.learn(0)
    assert learner.state is state


def test_the_seed_determines_the_parameters():
    assert same_params(tiny(seed=3).state.params, tiny(seed=3).state.params)
    assert not same_params(tiny(seed=3).state.params, tiny(seed=4).state.params)


def test_a_callback_sees_the_learner_after_the_iteration():
    learner, seen = tiny(), []
    learner.learn(2, callback=lambda stats: seen.append((stats["iteration"], learner.state.iteration)))
    assert seen == [(1, 1), (2, 2)]


def test_a_family_is_its_name_or_the_object():
    by_name = MetaLearner("maml_trpo", "PointNavigation-v0", device="cpu", **TINY)
    assert same_params(by_name.state.params, tiny(metarl.make("PointNavigation-v0")).state.params)


def test_a_module_of_the_users_is_where_learning_starts_and_stays_as_it_is():
    own = module()
    before = copy.deepcopy(own.state_dict())
    learner = tiny(policy=own)
    assert torch.equal(learner.state.params["module.0.weight"], before["0.weight"])
    learner.learn(1)
    assert not torch.equal(learner.state.params["module.0.weight"], before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# Evaluating


def test_evaluation_is_the_same_every_time_and_changes_no_state():
    learner = tiny().learn(1)
    state = learner.state
    params = {name: value.clone() for name, value in state.params.items()}
    first, second = (learner.evaluate(3, steps=2) for _ in range(2))
    assert (first.returns == second.returns).all()
    assert learner.state is state
    assert same_params(state.params, params)


def test_training_after_an_evaluation_is_training_without():
    learner = tiny().learn(1)
    learner.evaluate(3)
    assert same_params(learner.learn(1).state.params, tiny().learn(2).state.params)


def test_another_seed_draws_other_tasks():
    learner = tiny()
    assert (learner.evaluate(3, seed=1).tasks["goal"] != learner.evaluate(3, seed=2).tasks["goal"]).all()


def test_tasks_can_be_given():
    goals = np.array([[0.1, 0.2], [0.3, -0.4]], np.float32)
    found = tiny().evaluate(tasks={"goal": goals}, steps=1)
    assert (found.tasks["goal"] == goals).all()
    assert found.returns.shape == (2, 2)


def test_given_tasks_must_be_the_familys():
    with pytest.raises(ValueError, match="has no task parameter 'gaol'; did you mean 'goal'"):
        tiny().evaluate(tasks={"gaol": np.zeros((2, 2))})


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({"steps": 2}, (0.1, 0.1)), ({"steps": 0}, ()), ({}, (0.1,) * 3), ({"step_sizes": []}, ()),
     ({"step_sizes": [0.5, 0.25, 1]}, (0.5, 0.25, 1.0))],
)  # fmt: skip
def test_inner_steps_and_sizes(options, sizes):
    found = tiny(inner_lr=0.1).evaluate(2, **options)
    assert found.step_sizes == sizes
    assert found.returns.shape == (2, len(sizes) + 1)


def test_a_larger_step_changes_the_outcome_after_it_and_nothing_before():
    learner = tiny()
    a, b = (learner.evaluate(2, step_sizes=sizes).returns for sizes in ([0.5, 0.5], [0.5, 1.0]))
    assert (a[:, :2] == b[:, :2]).all()
    assert (a[:, 2] != b[:, 2]).all()


# ---------------------------------------------------------------------------------------------------------------------
# Adapting


def test_adapting_to_a_task_is_adapting_to_its_plain_environment():
    learner, goal = tiny().learn(1), {"goal": np.array([0.3, -0.2], np.float32)}
    by_task = learner.adapt(goal, steps=2, seed=5)
    by_env = learner.adapt(point().make(goal), steps=2, seed=5)
    for name, value in by_task.params.items():
        torch.testing.assert_close(value, by_env.params[name])
    np.testing.assert_allclose(by_task.returns, by_env.returns, rtol=1e-5)
    other = learner.adapt(point().make({"goal": np.array([-0.3, 0.2], np.float32)}), steps=2, seed=5)
    assert not torch.allclose(other.params["w0"], by_task.params["w0"])


def test_adapting_is_what_evaluation_measures():
    learner = tiny()
    found = learner.evaluate(1, steps=2, details=True, seed=4)
    policy = learner.adapt({"goal": found.tasks["goal"][0]}, steps=2, seed=4)
    assert same_params(policy.params, {name: value[0] for name, value in found.details.params[-1].items()})
    np.testing.assert_allclose(policy.returns, found.returns[0], rtol=1e-6)


def test_adapting_leaves_the_meta_parameters_alone_and_is_repeatable():
    learner = tiny()
    state = learner.state
    before = {name: value.clone() for name, value in state.params.items()}
    first, second = (learner.adapt({"goal": [0.3, -0.2]}).params for _ in range(2))
    assert same_params(first, second)
    assert learner.state is state
    assert same_params(state.params, before)
    assert not same_params(first, before)


def test_without_inner_steps_the_adapted_policy_is_the_meta_policy():
    learner = tiny()
    assert same_params(learner.adapt({"goal": [0.3, -0.2]}, steps=0).params, learner.state.params)


def test_adapting_to_an_environment_of_no_family_improves_the_policy_for_it():
    learner = tiny(episodes=20)
    policy = learner.adapt(Walk(), steps=3, step_sizes=[2.0] * 3)
    before, *_, after = policy.returns
    assert len(policy.returns) == 4
    assert after > before + 0.1  # to the right is 0.5 at most


@pytest.mark.parametrize(("horizon", "expected"), [(None, 5), (3, 3)])
def test_an_environment_without_a_limit_gets_the_familys_or_the_given_one(horizon, expected):
    env = Walk()
    tiny().adapt(env, steps=1, episodes=2, horizon=horizon)
    assert env.lengths == [expected] * 4


def test_an_environments_own_limit_comes_before_the_familys():
    gym.register("metarl_tests/Walk-v0", entry_point=Walk, max_episode_steps=7)
    try:
        env = gym.make("metarl_tests/Walk-v0")
    finally:
        gym.registry.pop("metarl_tests/Walk-v0")
    tiny().adapt(env, steps=1, episodes=1)
    assert env.unwrapped.lengths == [7, 7]


def test_adapting_joint_training_takes_one_step_all_the_same():
    assert len(tiny(inner_steps=0).adapt({"goal": [0.3, -0.2]}).returns) == 2


@pytest.mark.parametrize(
    ("env", "message"),
    [(Walk(obs_dim=3), r"observation space Box\(-inf, inf, \(2,\), float32\), this environment has .*\(3,\)"),
     (Walk(limit=0.5), r"action space Box\(-0.1, 0.1, \(2,\), float32\), this environment has Box\(-0.5, 0.5")],
    ids=["observations", "actions"],
)  # fmt: skip
def test_an_environment_with_other_spaces_is_refused(env, message):
    with pytest.raises(ValueError, match="the policy was made for PointNavigation-v0 with " + message):
        tiny().adapt(env)
