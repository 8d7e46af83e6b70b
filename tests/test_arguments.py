"""What users pass becomes plain Python values, or is refused by its name."""

import math

import numpy as np
import pytest
import torch

from metarl.algorithms import rl2
from metarl.arguments import listed, number, whole, yes_or_no


@pytest.mark.parametrize("value", [3, 3.0, np.int8(3), np.uint64(3), np.float32(3.0)], ids=repr)
def test_a_whole_number_is_an_int(value):
    assert whole("n", value) == 3
    assert type(whole("n", value)) is int


@pytest.mark.parametrize(
    "value", [3.5, True, np.True_, "3", None, math.nan, math.inf, 3j, [3], torch.tensor(3), np.array(3)], ids=repr
)
def test_anything_else_is_no_whole_number(value):
    with pytest.raises(ValueError, match="n must be a whole number, got "):
        whole("n", value)


def test_the_least_value_is_allowed_and_none_below_it():
    assert whole("n", 2, 2) == 2
    with pytest.raises(ValueError, match="n must be at least 2, got 1"):
        whole("n", 1, 2)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)], ids=repr)
def test_a_number_is_a_float(value):
    assert number("x", value) == 0.5
    assert type(number("x", value)) is float
    assert math.isnan(number("x", math.nan))  # what may be infinite is for others to say


@pytest.mark.parametrize("value", [True, np.False_, "0.5", None, [0.5], 1j, torch.tensor(0.5)], ids=repr)
def test_anything_else_is_no_number(value):
    with pytest.raises(ValueError, match="x must be a number, got "):
        number("x", value)


def test_only_bools_are_yes_or_no():
    assert yes_or_no("f", np.True_) is True
    assert yes_or_no("f", False) is False
    for value in ("yes", 1, 0.0, None, [True]):
        with pytest.raises(ValueError, match="f must be True or False, got "):
            yes_or_no("f", value)


def test_one_value_is_no_list():
    assert listed("a", (1, "b"), "things") == [1, "b"]
    assert listed("a", np.array([1, 2]), "things") == [1, 2]
    for value in (1, "ab", None, {1: 2}, np.array(1), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="a must be a list of things, got "):
            listed("a", value, "things")


@pytest.mark.parametrize("value", [2**31, 2**63, 10**30])
def test_a_setting_that_counts_something_has_a_limit(value):
    with pytest.raises(ValueError, match=f"trial_episodes must be at most 2147483647, got {value}"):
        rl2.Config(trial_episodes=value)
