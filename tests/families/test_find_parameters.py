"""Where the parameters of a task go in an environment: arguments, attributes, functions."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium_toys import GRAVITY, Toy, reward_of, toy

from metarl import from_gymnasium
from metarl.families import find_parameters

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN.*:UserWarning")


class Heavier(Toy):
    def __init__(self, extra: int = 0, **more):
        super().__init__(**more)


def test_each_parameter_is_found_where_it_is():
    family = toy({"push": Box(0.0, 1.0), "start": Box(10.0, 20.0), "bonus": Box(100.0, 200.0)})
    assert family.where == {"push": "keyword", "start": "option", "bonus": "attribute"}
    assert reward_of(family, push=0.5, start=20.0, bonus=100.0) == 120.5
    words = repr(family)
    for text in ("'push' (a keyword", "'start' (an option", "'bonus' (an attribute", "gym:Toy", "horizon 4"):
        assert text in words


def test_an_explicit_place_is_kept():
    family = toy({"push": Box(0.0, 1.0)}, where={"push": "attribute"})
    assert family.where == {"push": "attribute"}
    assert family.make({"push": 0.5}).unwrapped.push == 0.5


def test_keywords_of_base_classes_count_where_they_are_passed_on():
    assert find_parameters.keywords(Heavier) == ["extra", "push"]
    assert reward_of(toy({"push": Box(0.0, 9.0)}, env=Heavier), push=7.0) == 7.0


def test_attributes_survive_resets_and_options_can_be_added_to():
    env = toy({"bonus": Box(0.0, 9.0), "start": Box(0.0, 9.0)}).make({"bonus": 3.0, "start": 2.0})
    for _ in range(2):
        env.reset(seed=0)
        assert env.step(0)[1] == 6.0
        env.unwrapped.bonus = 0.0
    env.reset(seed=0, options={"start": 5.0})
    assert env.step(0)[1] == 9.0


def test_numbers_come_as_python_numbers_and_arrays_as_the_attribute_had_them():
    family = toy({"push": Box(0.0, 1.0), "vector": Box(0.0, 1.0, (2,)), "pair": [[0, 1], [1, 0]], "mass": [1, 2]},
                 configure=lambda env, task: None)  # fmt: skip
    env = family.make({"push": 0.5, "vector": [0.25, 0.5], "pair": [1, 0], "mass": 2}).unwrapped
    assert type(env.push) is float and type(env.mass) is int
    assert env.vector.dtype == np.float64 and np.array_equal(env.vector, [0.25, 0.5])
    assert env.pair == (1, 0)


def test_an_array_that_steps_change_in_place_is_whole_again_after_a_reset():
    env = toy({"vector": Box(0.0, 1.0, (2,))}).make({"vector": [0.25, 0.5]})
    for _ in range(3):
        env.unwrapped.vector += 1
        env.reset(seed=0)
        assert env.unwrapped.vector.tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("parameters", "more", "message"),
    [
        ({"pusch": GRAVITY}, {}, r"no parameter 'pusch'; did you mean 'push'\?.*\['push'\].*\['start'\].*'bonus'"),
        ({"inverse": GRAVITY}, {}, "no parameter 'inverse'"),
        ({"noise": GRAVITY}, {}, "replaces the attribute 'noise'"),
        ({"bonnus": GRAVITY}, {"where": {"bonnus": "attribute"}}, "no attribute 'bonnus'; did you mean 'bonus'"),
        ({"push": GRAVITY}, {"where": {"push": "keywort"}}, r"where\['push'\] is one of .*keyword"),
        ({"push": GRAVITY}, {"where": {"pusch": "keyword"}}, "where names 'pusch'.*did you mean 'push'"),
        ({"push": GRAVITY}, {"where": {"push": "configure"}}, "left to configure, but there is no configure="),
        ({"push": GRAVITY}, {"make_kwargs": {"push": 1.0}}, r"\['push'\] are both parameters and in make_kwargs"),
        ({"push": GRAVITY}, {"make_kwargs": {"max_episode_steps": 3}}, "as horizon="),
        ({"push": GRAVITY}, {"horizon": None}, "no max_episode_steps of its own: say horizon="),
        ({"push": GRAVITY}, {"horizon": 0}, "at least 1, got 0"),
        ({"push": GRAVITY}, {"splits": {"val": {}}}, "'val': call that split 'validation'"),
        ({"push": GRAVITY}, {"horizon": 2.5}, "horizon must be a whole number, got 2.5"),
        ({"push": GRAVITY}, {"fresh": "no"}, "fresh must be True or False, got 'no'"),
        ({"push": GRAVITY}, {"visible": 1}, "visible must be True or False, got 1"),
        ({"push": GRAVITY}, {"make_kwargs": ["push"]}, r"make_kwargs must be a dict, got \['push'\]"),
        ({"push": GRAVITY}, {"wrappers": gym.wrappers.FlattenObservation}, "wrappers must be a list of functions"),
        ({"push": GRAVITY}, {"wrappers": ["flatten"]}, "wrappers: 'flatten' is no function of an environment"),
        ({"push": GRAVITY}, {"configure": 3}, "configure: 3 is no function"),
        (["push"], {}, r"parameters must be a dict, got \['push'\]"),
        ({}, {}, "at least one parameter"),
        ({}, {"splits": {"train": {"push": GRAVITY}}}, "'push' has no distribution for the split 'test'"),
        ({"push": 3.0}, {}, "parameter 'push': 3.0 is one fixed value"),
    ],
)
def test_what_makes_no_sense_is_refused(parameters, more, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        toy(parameters, **more)


@pytest.mark.parametrize(
    ("env", "message"), [("Pendulum-v9", "v9"), ("no_such_package:X-v0", "needs the package 'no_such_package'")]
)
def test_an_environment_that_is_not_there(env, message):
    with pytest.raises(ValueError, match=message):
        from_gymnasium(env, {"g": GRAVITY})


def test_attributes_that_the_constructor_derives_are_warned_of():
    assert find_parameters.derived(Toy(), "mass") == ["weight", "load"]
    assert find_parameters.derived(Toy(), "push") == []
    with pytest.warns(UserWarning, match=r"computes \['weight', 'load'\] from 'mass'"):
        toy({"mass": Box(1.0, 2.0)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy({"mass": Box(1.0, 2.0)}, configure=lambda env, task: None)
        toy({"bonus": Box(1.0, 2.0)})


def test_configure_sees_the_unwrapped_environment_and_the_values_once():
    calls = []

    def configure(env, task):
        calls.append(task)
        env.bonus = 10 * task["level"]

    family = toy({"level": [1, 2]}, configure=configure, where={"level": "configure"})
    calls.clear()
    env = family.make({"level": 2})
    for _ in range(2):
        env.reset(seed=0)
        assert env.step(0)[1] == 21.0
    assert calls == [{"level": 2}]
