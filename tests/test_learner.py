"""MetaLearner and AdaptedPolicy: what a user calls, and what comes back from a file."""

import copy
import dataclasses
import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, Text
from probes import Locks, PointGoal, Signs, Stops, TwoArms
from scipy.stats import norm
from tiny_runs import TINY, Walk, point, same_params, tiny
from torch import nn

import metarl
from metarl import AdaptedPolicy, MetaLearner
from metarl.algorithms import maml_trpo
from metarl.checkpoint import CheckpointError
from metarl.learner import make_config
from metarl.parallel import resolve_device
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import spaces_of
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup


def module(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, outputs))


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


# ---------------------------------------------------------------------------------------------------------------------
# Predicting


@pytest.fixture
def policy() -> AdaptedPolicy:
    return tiny().adapt({"goal": [0.3, -0.2]})


def test_one_observation_gives_one_action_and_a_batch_gives_a_batch(policy):
    observations = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    batch, _ = policy.predict(observations, deterministic=True)
    assert batch.shape == (3, 2)
    for observation, action in zip(observations, batch, strict=True):
        single, _ = policy.predict(observation, deterministic=True)
        assert single.shape == (2,)
        np.testing.assert_allclose(single, action, rtol=1e-5)
    assert len({tuple(action) for action in batch}) == 3


def test_a_deterministic_action_is_the_mean_in_the_environments_units(policy):
    obs = np.array([0.4, -0.7], np.float32)
    dist = policy.policy.distribution({n: v[None] for n, v in policy.params.items()}, torch.from_numpy(obs)[None, None])
    expected = (0.1 * dist.mean[0, 0]).clamp(-0.1, 0.1).numpy()
    np.testing.assert_allclose(policy.predict(obs, deterministic=True)[0], expected, rtol=1e-6)


def test_samples_scatter_about_the_mean_and_lie_in_the_action_space():
    policy = tiny(init_std=1.0).adapt({"goal": [0.3, -0.2]}, steps=0)
    obs = np.full((4000, 2), 0.5, np.float32)
    actions, _ = policy.predict(obs)
    mean, _ = policy.predict(obs[0], deterministic=True)
    assert all(policy.policy.spaces.action.contains(action) for action in actions)
    np.testing.assert_allclose(np.median(actions, 0), mean, atol=0.01)  # the bounds do not move a median
    within = norm.cdf(1 - mean / 0.1) - norm.cdf(-1 - mean / 0.1)
    np.testing.assert_allclose((np.abs(actions) < 0.1).mean(0), within, atol=0.03)


def test_samples_differ_from_call_to_call_and_not_from_policy_to_policy(policy):
    other = tiny().adapt({"goal": [0.3, -0.2]})
    obs = np.zeros(2, np.float32)
    first, second = (policy.predict(obs)[0] for _ in range(2))
    assert (first != second).all()
    assert (other.predict(obs)[0] == first).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_discrete_actions(deterministic):
    policy = tiny(TwoArms()).adapt({"good": 1}, steps=1)
    action, _ = policy.predict(np.ones(1, np.float32), deterministic=deterministic)
    assert Discrete(2).contains(action)
    batch, _ = policy.predict(np.ones((50, 1), np.float32), deterministic=deterministic)
    assert batch.shape == (50,)
    assert set(batch.tolist()) == ({int(batch[0])} if deterministic else {0, 1})


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("family", [Locks(), Locks(MultiBinary(2))], ids=["several", "binary"])
def test_actions_of_several_choices(family, deterministic):
    task = {name: value[0] for name, value in family.sample(1, np.random.default_rng(0)).items()}
    policy, space = tiny(family).adapt(task, steps=1), family.action_space
    action, _ = policy.predict(space.sample(), deterministic=deterministic)
    assert space.contains(action)
    assert action.dtype == space.dtype
    batch, _ = policy.predict(np.stack([family.start] * 60), deterministic=deterministic)
    assert batch.shape == (60, 2)
    assert len(np.unique(batch, axis=0)) == (1 if deterministic else family.sizes.prod())


def test_discrete_observations():
    family = metarl.make("TabularMDP-v0", horizon=3)
    learner = tiny(family)
    task = {name: value[0] for name, value in family.sample(1, np.random.default_rng(0)).items()}
    policy = learner.adapt(task, steps=1)
    n = int(family.observation_space.n)
    batch, _ = policy.predict(np.arange(n), deterministic=True)
    assert batch.tolist() == [int(policy.predict(i, deterministic=True)[0]) for i in range(n)]


def test_actions_lie_in_a_space_of_doubles():
    # -0.1 in float32 is less than -0.1 in float64.
    family = Stops()
    family.action_space = Box(-0.1, 0.1, (2,), np.float64)
    policy = tiny(family).adapt({"steps": 3}, steps=1)
    actions, _ = policy.predict(np.zeros((50, 2), np.float32))
    assert all(family.action_space.contains(action) for action in actions)
    assert np.abs(actions).max() > 0.0999999  # some were clipped


def test_a_state_is_handed_back(policy):
    assert policy.predict(np.zeros(2), state="kept", episode_start=True)[1] == "kept"


@pytest.mark.parametrize("shape", [(3,), (), (2, 3), (4, 2, 2)])
def test_observations_of_another_shape_are_refused(policy, shape):
    with pytest.raises(ValueError, match=r"observations have the shape \(2,\) or are a batch of such, got \(.*\)"):
        policy.predict(np.zeros(shape))


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_a_learner_comes_back_and_goes_on_as_if_nothing_had_happened(tmp_path):
    learner = tiny(seed=5, inner_lr=0.3, first_order=True).learn(1)
    learner.save(tmp_path / "l.safetensors")
    loaded = MetaLearner.load(tmp_path / "l.safetensors", device="cpu")
    assert (loaded.config, loaded.seed, loaded.algorithm) == (learner.config, 5, "maml_trpo")
    assert dataclasses.asdict(loaded.state).keys() == dataclasses.asdict(learner.state).keys()
    assert same_params(loaded.state.params, learner.state.params)
    assert same_params(loaded.learn(2).state.params, learner.learn(2).state.params)
    assert (loaded.evaluate(3).returns == learner.evaluate(3).returns).all()


def test_a_familys_arguments_come_back(tmp_path):
    tiny(metarl.make("PointNavigationSparse-v0", horizon=4, goal_radius=0.5)).save(tmp_path / "l")
    family: Any = MetaLearner.load(tmp_path / "l").family
    assert (family.horizon, family.goal_radius) == (4, 0.5)


def test_a_family_made_by_hand_must_be_passed_again(tmp_path):
    # Its arguments are not known: the defaults could be another family, with other rewards.
    family = type(metarl.make("PointNavigationSparse-v0"))(horizon=4, goal_radius=0.5)
    tiny(family).save(tmp_path / "l")
    with pytest.raises(CheckpointError, match="'PointNavigationSparse-v0': pass the same one as family="):
        MetaLearner.load(tmp_path / "l")
    assert MetaLearner.load(tmp_path / "l", family=family).family is family


def test_a_family_of_the_users_own_must_be_passed_again(tmp_path):
    tiny(PointGoal()).save(tmp_path / "l")
    with pytest.raises(CheckpointError, match=r"l was .* 'PointGoalProbe-v0': pass the same one as family="):
        MetaLearner.load(tmp_path / "l")
    family = PointGoal()
    assert MetaLearner.load(tmp_path / "l", family=family).family is family


def test_a_registered_family_of_the_users_own_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("metarl.families.registry._registry", {})
    metarl.register("MyGoals-v3", PointGoal)  # under another name than its id
    tiny(metarl.make("MyGoals-v3")).save(tmp_path / "l")
    assert isinstance(MetaLearner.load(tmp_path / "l").family, PointGoal)
    monkeypatch.setattr("metarl.families.registry._registry", {})
    with pytest.raises(CheckpointError, match="needs the family 'PointGoalProbe-v0'; pass it as family="):
        MetaLearner.load(tmp_path / "l")


def test_arguments_that_are_no_json_do_not_keep_a_learner_from_being_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("metarl.families.registry._registry", {})
    metarl.register("Odd-v0", lambda scale: PointGoal())
    tiny(metarl.make("Odd-v0", scale=np.ones(3))).save(tmp_path / "l")
    with pytest.raises(CheckpointError, match="pass the same one as family="):
        MetaLearner.load(tmp_path / "l")


@pytest.mark.parametrize("other", ["PointNavigationCorners-v0", TwoArms(), point(horizon=6)],
                         ids=["name", "object", "horizon"])  # fmt: skip
def test_another_family_is_refused(tmp_path, other):
    tiny().save(tmp_path / "l")
    with pytest.raises(CheckpointError, match="l is a checkpoint of another family: it was saved with "):
        MetaLearner.load(tmp_path / "l", family=other)


def test_a_family_made_with_other_arguments_in_the_same_spaces_is_warned_of(tmp_path):
    family = metarl.make("PointNavigationSparse-v0", horizon=2, goal_radius=1.0)
    MetaLearner("maml_trpo", family, device="cpu", **TINY).save(tmp_path / "l")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = metarl.make("PointNavigationSparse-v0", goal_radius=1, horizon=2)
        MetaLearner.load(tmp_path / "l", same, device="cpu")
    other = metarl.make("PointNavigationSparse-v0", horizon=2, goal_radius=2.0)
    message = r"made with \{'goal_radius': 1.0\}, this one was made with \{'goal_radius': 2.0\}"
    with pytest.warns(UserWarning, match=message):
        MetaLearner.load(tmp_path / "l", other, device="cpu")


def test_a_module_comes_back_if_it_is_passed_again(tmp_path):
    learner = tiny(policy=module()).learn(1)
    learner.save(tmp_path / "l")
    with pytest.raises(CheckpointError, match="a policy of type ModulePolicy: pass that module as policy="):
        MetaLearner.load(tmp_path / "l")
    loaded = MetaLearner.load(tmp_path / "l", policy=module())
    assert same_params(loaded.state.params, learner.state.params)
    assert same_params(loaded.learn(1).state.params, learner.learn(1).state.params)


def test_another_module_is_refused_by_its_shapes(tmp_path):
    tiny(policy=module()).save(tmp_path / "l")
    other = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 2))
    with pytest.raises(CheckpointError, match=r"l does not fit: .*'params/module.0.bias': \(6,\).*needs .*\(7,\)"):
        MetaLearner.load(tmp_path / "l", policy=other)


def test_a_module_for_a_learner_without_one_is_refused(tmp_path):
    tiny().save(tmp_path / "l")
    with pytest.raises(CheckpointError, match="a policy of type MLPPolicy: leave policy= out"):
        MetaLearner.load(tmp_path / "l", policy=module())


def test_an_adapted_policy_comes_back_with_the_same_predictions(tmp_path, policy):
    path = policy.save(tmp_path / "p")
    assert path == tmp_path / "p.safetensors"
    loaded = AdaptedPolicy.load(path)
    obs = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    for deterministic in (True, False):
        found, expected = (p.predict(obs, deterministic=deterministic)[0] for p in (loaded, policy))
        assert (found == expected).all()
    assert same_params(loaded.params, policy.params)
    assert loaded.returns == pytest.approx(policy.returns)
    assert loaded.policy == policy.policy


def test_the_settings_of_an_adapted_policy_come_back(tmp_path):
    given = {"hidden": (3, 4), "activation": "relu", "init_std": 0.7, "min_std": 0.05}
    policy = tiny(**given).adapt({"goal": [0.3, -0.2]})
    loaded = AdaptedPolicy.load(policy.save(tmp_path / "p"))
    assert loaded.policy == policy.policy
    assert {name: getattr(loaded.policy, name) for name in given} == given


def test_a_policy_is_loaded_by_the_name_it_was_saved_under(tmp_path, policy):
    policy.save(tmp_path / "p.v2")
    assert same_params(AdaptedPolicy.load(tmp_path / "p.v2").params, policy.params)


@pytest.mark.parametrize(
    "family",
    [TwoArms(), Signs(), Locks(), Locks(MultiBinary(2)), metarl.make("TabularMDP-v0", horizon=3)],
    ids=lambda f: f.id,
)
def test_policies_of_other_spaces_come_back(tmp_path, family):
    task = {name: value[0] for name, value in family.sample(1, np.random.default_rng(0)).items()}
    policy = tiny(family).adapt(task, steps=1)
    loaded = AdaptedPolicy.load(policy.save(tmp_path / "p"))
    assert loaded.policy.spaces == policy.policy.spaces
    obs = np.stack([family.observation_space.sample() for _ in range(20)])
    assert (loaded.predict(obs)[0] == policy.predict(obs)[0]).all()


def test_a_module_policy_comes_back_if_the_module_is_passed(tmp_path):
    policy = tiny(policy=module()).adapt({"goal": [0.3, -0.2]})
    path = policy.save(tmp_path / "p")
    with pytest.raises(CheckpointError, match="a module of your own: pass it as module="):
        AdaptedPolicy.load(path)
    loaded = AdaptedPolicy.load(path, module=module())
    assert isinstance(loaded.policy, ModulePolicy)
    obs = np.ones((5, 2), np.float32)
    assert (loaded.predict(obs)[0] == policy.predict(obs)[0]).all()
    with pytest.raises(CheckpointError, match=r"p\.safetensors holds the parameters"):
        AdaptedPolicy.load(path, module=nn.Linear(2, 2))


def test_a_learner_is_no_policy_and_a_policy_no_learner(tmp_path, policy):
    path = policy.save(tmp_path / "p")
    tiny().save(tmp_path / "l.safetensors")
    with pytest.raises(CheckpointError, match="holds a policy, not a learner"):
        MetaLearner.load(path)
    with pytest.raises(CheckpointError, match=r"holds a learner, not a policy: use MetaLearner\.load"):
        AdaptedPolicy.load(tmp_path / "l.safetensors")


def test_a_learner_of_an_algorithm_that_is_gone_is_refused_by_name(tmp_path, monkeypatch):
    learner = tiny()
    learner.algorithm = "reptiles"
    learner.save(tmp_path / "l")
    with pytest.raises(CheckpointError, match="l does not fit: no algorithm is called 'reptiles'"):
        MetaLearner.load(tmp_path / "l")


# ---------------------------------------------------------------------------------------------------------------------
# What makes no sense


class TextActions(Stops):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Text(3)


class Sentences(Stops):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Text(10)


class Endless(Stops):
    horizon = math.inf  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"algorithm": "maml_trop"}, "no algorithm is called 'maml_trop'; did you mean 'maml_trpo'"),
     ({"family": "PointNavigatoin-v0"}, "family is called 'PointNavigatoin-v0'; did you mean 'PointNavigation-v0'"),
     ({"family": TextActions()}, r"StopsProbe-v0 has the action space Text\(1, 3.*; supported are Box"),
     ({"family": Sentences()}, r"StopsProbe-v0 has the observation space Text.*FlattenObservation"),
     ({"seed": -3}, "seed must not be negative, got -3"),
     ({"inner_lrr": 0.1}, "maml_trpo has no setting 'inner_lrr'; did you mean 'inner_lr'"),
     ({"device": "gpu"}, "device must be auto, cpu or cuda, got 'gpu'"),
     ({"device": "meta"}, "device must be auto, cpu or cuda, got 'meta'"),
     ({"algorithm": None}, "no algorithm is called None; known are"), ({"policy": "mlp"}, "policy is .* got 'mlp'"),
     ({"device": None}, "device must be auto, cpu or cuda, got None"),
     ({"seed": True}, "seed must be a whole number, got True"), ({"workers": True}, "workers must .* got True"),
     ({"family": None}, "None is no task family, it has no id, horizon, .*make: pass a family's id or an object"),
     ({"family": Stops}, r"Stops is a class: pass a family made of it, Stops\(\)"),
     ({"family": Walk()}, "is no task family, it has no id, .*metarl.from_gymnasium makes one of an environment"),
     ({"family": Endless()}, "the horizon of StopsProbe-v0 must be a whole number, got inf"),
     ({"policy": module(outputs=3)}, r"the module must map \[N, 2\] to \[N, 2\]; for N = 3 it gave \(3, 3\)")],
)  # fmt: skip
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaLearner(**{"algorithm": "maml_trpo", "family": point(), "device": "cpu", **TINY, **arguments})


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="device 'cuda' was asked for, but this machine has no CUDA device; use auto or"
    ):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_a_gpu_that_is_there_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device 'cuda:2' was asked for, but this machine has 2, counted from cuda:0"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": -1}, "steps must not be negative, got -1"), ({"seed": -1}, "seed must not be negative, got -1"),
     ({"episodes": 1.5}, "episodes must be a whole number, got 1.5"), ({"seed": 0.5}, "seed must be a whole number"),
     ({"steps": 2, "step_sizes": [0.1]}, "steps=2 contradicts the 1 step_sizes"),
     ({"episodes": 0}, "episodes must be at least 1, got 0"),
     ({"step_sizes": [0.0]}, r"positive and finite, got \[0.0\]")],
)  # fmt: skip
def test_evaluations_and_adaptations_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        tiny().evaluate(1, **options)
    with pytest.raises(ValueError, match=message):
        tiny().adapt({"goal": [0.3, -0.2]}, **options)


def test_a_horizon_that_makes_no_sense():
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        tiny().adapt(Walk(), horizon=0)
    with pytest.raises(ValueError, match="horizon must be a whole number"):
        tiny().adapt(Walk(), horizon=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"iterations": 1.5}, {"iterations": True}, {"eval_every": "1"}, {"eval_tasks": 2.5}, {"checkpoint_every": None},
     {"progress_bar": "no"}, {"eval_step_sizes": 0.1}],
    ids=str,
)  # fmt: skip
def test_training_with_arguments_of_another_type_is_refused_before_it_begins(options):
    learner = tiny()
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*got {value!r}"):
        learner.learn(**{"iterations": 1, **options})
    assert learner.state.iteration == 0


def test_numpys_numbers_are_as_good_as_pythons(tmp_path):
    options = {"n_tasks": np.int64(2), "inner_lr": np.float32(0.5), "hidden": np.array([4]), "first_order": np.True_}
    learner = tiny(seed=np.int64(3), **options).learn(np.int64(1), eval_every=np.int64(0))  # type: ignore[arg-type]
    learner.save(tmp_path / "l")  # JSON knows none of NumPy's numbers
    assert MetaLearner.load(tmp_path / "l", device="cpu").config == learner.config
    assert learner.config == maml_trpo.Config(**{**TINY, "n_tasks": 2, "inner_lr": 0.5, "hidden": (4,),
                                                 "first_order": True})  # fmt: skip


def test_lists_become_tuples_in_a_configuration():
    assert make_config("maml_trpo", {"hidden": [3, 4]}) == maml_trpo.Config(hidden=(3, 4))
