"""Environments as outsiders bring them, which are none or break Gymnasium's contract: each is named with its remedy."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from metarl import MetaLearner, check_family, from_gymnasium, make
from metarl.vector.transition import EpisodeError

SMALL = {"n_tasks": 2, "episodes": 2, "hidden": (4,), "device": "cpu"}


class Plain(gym.Env):
    """Paid by what it observes nothing of."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, gain=1.0):
        self.gain = gain

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), self.gain * float(action[0]), False, False, {}


class FourValues(Plain):
    def step(self, action):
        return (*super().step(action)[:3], {})


class NoInfo(Plain):
    def step(self, action):
        return (*super().step(action)[:4], None)


class NothingSeen(Plain):
    observation_space = Box(-1.0, 1.0, (0,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(0, np.float32), {}

    def step(self, action):
        return np.zeros(0, np.float32), self.gain * float(action[0]), False, False, {}


class Driver:
    """Has reset and step, and is no gymnasium.Env."""

    observation_space, action_space = Plain.observation_space, Plain.action_space

    def __init__(self, gain=1.0):
        self.gain = gain

    def reset(self):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


def family_of(kind):
    return from_gymnasium(kind, {"gain": Box(0.5, 2.0)}, horizon=4)


def test_the_plain_one_is_fine():
    assert check_family(family_of(Plain)) == []


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (gym.make("Pendulum-v1"), r"pass its id, 'Pendulum-v1', its class, PendulumEnv, or a function that makes one"),
        (Plain(), r"pass its class, Plain, or a function that makes one"),
        (gym.spec("Pendulum-v1"), r"pass its id, 'Pendulum-v1'"),
        (gym.make_vec("Pendulum-v1", num_envs=2), r"pass the id, the class or a function that makes the single"),
        (Driver(), r"pass an id, a class or a function that makes environments"),
    ],
)
def test_an_object_where_a_class_or_an_id_is_wanted(env, said):
    with pytest.raises(ValueError, match=rf"a family makes many environments, one for each task and episode: {said}"):
        from_gymnasium(env, {"g": Box(5.0, 15.0)})


@pytest.mark.parametrize("id", ["highway-v0", "ALE/Pong-v5"])
def test_the_id_of_a_package_that_is_not_imported(id):
    said = rf'{id} is no registered Gymnasium environment: .*import the package .*or name both, "package:{id}"'
    with pytest.raises(ValueError, match=said):
        from_gymnasium(id, {"difficulty": [0, 1]}, horizon=5)
    with pytest.raises(ValueError, match=said):
        make(f"gym:{id}", parameters={"difficulty": [0, 1]}, horizon=5)
    with pytest.raises(ValueError, match=r"no_such_package:X-v0 needs the package 'no_such_package'"):
        from_gymnasium("no_such_package:X-v0", {"g": [0, 1]})


def test_a_driver_that_is_no_gymnasium_environment():
    with pytest.raises(ValueError, match=r"Driver makes a .*Driver, which is no gymnasium\.Env: write a class that"):
        family_of(Driver)


def test_an_observation_of_nothing():
    with pytest.raises(ValueError, match=r"\(0,\)"):
        MetaLearner("maml_trpo", family_of(NothingSeen), **SMALL).learn(1, eval_every=0)


@pytest.mark.parametrize(
    ("kind", "said"), [(FourValues, r"five values, \(obs, reward, terminated, truncated, info\)"), (NoInfo, r"info")]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_step_and_reset_must_return_is_said(kind, said, workers):
    family = family_of(kind)
    with pytest.raises(ValueError, match=said) as caught:
        check_family(family)
    with pytest.raises(Exception, match=said) as learning:
        MetaLearner("maml_trpo", family, workers=workers, **SMALL).learn(1, eval_every=0)
    for error in (caught, learning):
        assert "NoneType' object" not in str(error.value)  # not what Python says of it


class NoEnd(Plain):
    def close(self):
        if self.started:
            raise RuntimeError("stuck")

    started = False

    def step(self, action):
        self.started = True
        return super().step(action)


def test_one_that_cannot_be_closed_is_named_with_its_task():
    learner = MetaLearner("maml_trpo", family_of(NoEnd), workers=0, **SMALL)
    with pytest.raises(EpisodeError, match=r"raised RuntimeError: stuck \(in close of episode 0 of task 0"):
        learner.learn(2, eval_every=0)
    learner.close()  # which has nothing left to close


class TwoFlags(Plain):
    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, np.array([False, True]), truncated, info


def test_flags_of_several_values_are_a_finding_of_their_own():
    findings = check_family(family_of(TwoFlags), raise_problems=False)
    assert findings and {x.problem for x in findings} == {"terminated, truncated are (array([False,  True]), False)"}


@pytest.mark.parametrize(
    ("given", "said"),
    [(Plain, r"Plain is a class: pass an environment made of it, Plain\(\.\.\.\)"),
     ("Pendulum-v1", r"'Pendulum-v1' is an id: pass the environment, gymnasium\.make\('Pendulum-v1'\)"),
     (gym.make_vec("Pendulum-v1", num_envs=2), "is a vector environment: pass a single one")],
)  # fmt: skip
def test_what_is_adapted_to_is_one_environment(given, said):
    learner = MetaLearner("maml_trpo", family_of(Plain), **SMALL)
    with pytest.raises(ValueError, match=said):
        learner.adapt(given)


def test_a_range_of_one_value_is_one_task():
    name = next(iter(family_of(Plain).task_space.spaces))
    assert check_family(from_gymnasium(Plain, {name: Box(1.0, 1.0)}, horizon=5)) == []
