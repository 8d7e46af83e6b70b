"""Learners and adapted policies come back from their files, and from no other files."""

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import MultiBinary
from probes import Locks, PointGoal, Signs, TwoArms
from tiny_runs import TINY, module, point, same_params, tiny
from torch import nn

import metarl
from metarl import AdaptedPolicy, MetaLearner
from metarl.checkpoint import CheckpointError
from metarl.policies.module import ModulePolicy


@pytest.fixture
def policy() -> AdaptedPolicy:
    return tiny().adapt({"goal": [0.3, -0.2]})


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
    with pytest.raises(CheckpointError, match=r"'reptiles': pass the same one as algorithm="):
        MetaLearner.load(tmp_path / "l")
