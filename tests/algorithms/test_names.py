"""Algorithms are found by name."""

import pytest

from metarl.algorithms import ALGORITHMS, get


def test_algorithms_are_found_by_name():
    assert [get(name).__name__ for name in ALGORITHMS] == [f"metarl.algorithms.{name}" for name in ALGORITHMS]


def test_an_unknown_algorithm_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"maml_trp0.*did you mean 'maml_trpo'"):
        get("maml_trp0")
