"""Priors of task parameters: what they draw, where it lies, and that JSON brings them back."""

import json

import numpy as np
import pytest
import scipy.stats
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from metarl.families.priors import in_common, prior, together


def twos(rng, n):
    return np.full(n, 2.0)


KINDS = {
    "number": Box(5.0, 15.0),
    "vector": Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32)),
    "integers": Box(0, 5, (), np.int64),
    "discrete": Discrete(3, start=-1),
    "multidiscrete": MultiDiscrete([2, 3]),
    "multibinary": MultiBinary(3),
    "normal": scipy.stats.norm(1, 2),
    "normal vector": scipy.stats.norm([0, 5], scale=0.1),
    "loguniform": scipy.stats.loguniform(0.01, 1.0),
    "poisson": scipy.stats.poisson(3),
    "multivariate": scipy.stats.multivariate_normal([0, 1]),
    "numbers": [1.5, 2.0, 7.25],
    "points": [[0, 1], [1, 0]],
    "words": ["easy", "hard", None],
    "booleans": [True, False],
    "range": range(3),
    "function": (twos, Box(-np.inf, np.inf)),
}
NOT_AS_JSON = ("multivariate", "function")


@pytest.mark.parametrize("kind", KINDS)
def test_draws_lie_in_the_space_and_follow_from_the_generator(kind):
    p = prior("x", KINDS[kind])
    draws, again = (p.sample(np.random.default_rng(3), 200) for _ in range(2))
    assert draws.shape == (200, *p.space.shape) and draws.dtype == p.space.dtype
    assert all(p.space.contains(x if draws.ndim > 1 or isinstance(p.space, Box) else int(x)) for x in draws)
    assert np.array_equal(draws, again)
    assert kind == "function" or not np.array_equal(draws, p.sample(np.random.default_rng(4), 200))


@pytest.mark.parametrize("kind", KINDS)
def test_json_brings_a_prior_back(kind):
    p = prior("x", KINDS[kind])
    data = p.to_json()
    assert (data is None) == (kind in NOT_AS_JSON)
    if data is not None:
        again = prior("x", json.loads(json.dumps(data)))
        assert again == p and again.space == p.space
        assert np.array_equal(again.sample(np.random.default_rng(0), 9), p.sample(np.random.default_rng(0), 9))
    assert p != prior("x", Box(0.0, 0.5))


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        ("number", 10.0, 10 / 12**0.5),
        ("integers", 2.5, (35 / 12) ** 0.5),  # (n^2 - 1) / 12 with n = 6: the upper end is drawn as well
        ("discrete", 0.0, (8 / 12) ** 0.5),
        ("normal", 1.0, 2.0),
        ("poisson", 3.0, 3**0.5),
        ("numbers", 3.5833333, 2.6008546),
    ],
)
def test_moments_are_those_of_the_distribution(kind, mean, std):
    x = prior("x", KINDS[kind]).sample(np.random.default_rng(0), 20_000)
    assert abs(x.mean() - mean) < 5 * std / 20_000**0.5
    assert abs(x.std() / std - 1) < 0.03


def test_bounds_are_those_of_the_support():
    assert prior("x", scipy.stats.uniform(1, 2)).space == Box(1.0, 3.0, (), np.float64)
    assert prior("x", scipy.stats.norm()).space == Box(-np.inf, np.inf, (), np.float64)
    assert prior("x", scipy.stats.randint(2, 5)).space == Box(2, 4, (), np.int64)
    assert prior("x", KINDS["points"]).space == Box(0, 1, (2,), np.int64)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.0, "one fixed value, which belongs in make_kwargs"),
        ("easy", "one fixed value"),
        (Box(0.0, np.inf), "there is no uniform distribution on Box"),
        (Dict({}), "a distribution is a bounded Box"),
        (twos, "needs the space of the values that it draws"),
        ([], "at least one"),
        ([1.0, np.nan], "finite"),
        (None, "got None"),
        ({"bx": [0, 1]}, "did you mean 'box'"),
        ({"box": [0, 1, 2]}, r"\{'box': \[low, high\]\}"),
        ({"box": [0, 1], "start": 1}, r"unknown key\(s\) \['start'\]"),
        ({"scipy": "nrm"}, "no distribution 'nrm'; did you mean 'norm'"),
        ({"scipy": "bootstrap"}, "no distribution 'bootstrap'"),
    ],
)
def test_what_is_no_distribution_is_refused_by_name(value, message):
    with pytest.raises(ValueError, match=f"(?s)parameter 'mass'.*{message}"):
        prior("mass", value)


def test_a_function_must_draw_what_its_space_says():
    with pytest.raises(ValueError, match=r"shape \(4, 2\), got \(4,\)"):
        prior("x", (twos, Box(0.0, 1.0, (2,)))).sample(np.random.default_rng(0), 4)


def test_two_splits_share_one_space():
    priors, space = together("g", [prior("g", Box(5.0, 10.0)), prior("g", Box(10.0, 20.0))])
    assert space == Box(5.0, 20.0, (), np.float32) and not in_common(*priors)
    priors, space = together("g", [prior("g", Discrete(2)), prior("g", Discrete(2, start=5))])
    assert space == Discrete(7) and not in_common(*priors)
    assert together("g", [prior("g", scipy.stats.norm()), prior("g", Box(0.0, 1.0))])[1].high == np.inf
    with pytest.raises(ValueError, match=r"parameter 'g' is Discrete\(2\) in one split, Box"):
        together("g", [prior("g", Discrete(2)), prior("g", Box(0.0, 1.0))])


def test_choices_of_two_splits_are_indexed_in_one_list():
    (train, test), space = together("level", [prior("level", ["a", "b"]), prior("level", ["c", "b"])])
    assert space == Discrete(3)
    assert set(train.sample(np.random.default_rng(0), 50)) == {0, 1}
    assert set(test.sample(np.random.default_rng(0), 50)) == {2, 1}
    assert in_common(train, test)
    assert not in_common(*together("level", [prior("level", ["a"]), prior("level", ["c"])])[0])
