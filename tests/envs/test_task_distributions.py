"""Tasks are distributed as their family's docstring says, in all of its range and in every split.

The docstring is what is tested against: its section "Task parameters and their distribution" is read here. A parameter
without a distribution that is understood fails.
"""

import importlib.metadata
import inspect
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from probes import PointGoal, TwoArms
from scipy import stats

import metarl
from metarl.families.visible import VisibleFamily

N = 3000
HEADING, SPLITS = "Task parameters and their distribution", "Splits"

IDS = sorted(
    point.name for point in importlib.metadata.entry_points(group="metarl.families")
    if point.module.startswith("metarl_envs.") and not point.name.startswith("MetaWorld")
)  # fmt: skip
"""Meta-World's tasks are lists of its own package (see test_metaworld.py)."""


# ---------------------------------------------------------------------------------------------------------------------
# Docstrings


def section(family: Any, heading: str) -> str:
    """What stands under a heading, in one line; of the nearest class that has it."""
    for kind in type(family).__mro__:
        if found := re.search(rf"^{heading}\n((?:    .*\n?)+)", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE):
            return " ".join(found.group(1).split())
    raise AssertionError(f"{family.id}: no section {heading!r}")


def number(text: str) -> float:
    """Like 0.5, pi or 2 pi."""
    factor, pi, _ = text.partition("pi")
    return (float(factor) if factor.strip() else 1.0) * (math.pi if pi else 1.0)


NUMBER = r"(-?[\d.]*\d(?: pi)?|pi)"
Law = Callable[[np.ndarray, str], list[np.ndarray]]
"""(values [n, ...], section) -> numbers that are uniform in [0, 1] if the values are distributed so."""


def between(low: str, high: str) -> Law:
    a, b = number(low), number(high)
    return lambda x, _: [(x.ravel() - a) / (b - a)]


def square(low: str, high: str) -> Law:
    a, b = number(low), number(high)
    return lambda x, _: [(x[:, i] - a) / (b - a) for i in range(2)]


def disc(radius: str) -> Law:
    """The square of the distance, and the angle."""
    return lambda x, _: [(x**2).sum(1) / number(radius) ** 2, (np.arctan2(x[:, 1], x[:, 0]) / math.pi + 1) / 2]


def arc(low: str, high: str) -> Law:
    a, b = number(low), number(high)

    def law(x: np.ndarray, _: str) -> list[np.ndarray]:
        on = np.abs(np.hypot(x[:, 0], x[:, 1]) - 1) < 1e-6
        return [np.where(on, (np.arctan2(x[:, 1], x[:, 0]) - a) / (b - a), -1.0)]

    return law


def normal(mean: str, std: str) -> Law:
    return lambda x, _: [stats.norm.cdf(x.ravel(), float(mean), float(std))]


def dirichlet() -> Law:
    """Each coordinate is Beta(1, S - 1)."""
    return lambda x, _: [stats.beta.cdf(x[..., i].ravel(), 1, x.shape[-1] - 1) for i in (0, -1)]


def power(base: str) -> Law:
    def law(x: np.ndarray, text: str) -> list[np.ndarray]:
        found = re.search(rf"u uniform in \[{NUMBER}, {NUMBER}\]", text)
        assert found is not None, text
        return between(*found.groups())(np.log(x) / math.log(float(base)), text)

    return law


def choices(text: str) -> Law:
    """Spread within its step, a choice among n is uniform in [0, 1]."""
    values = sorted(int(x) for x in re.findall(r"\b\d+\b", re.sub(r"\(.*?\)", "", text)))

    def law(x: np.ndarray, _: str) -> list[np.ndarray]:
        spread = (np.searchsorted(values, x) + np.random.default_rng(1).random(len(x))) / len(values)
        return [np.where(np.isin(x, values), spread, -1.0)]

    return law


LAWS: dict[str, Callable[..., Law]] = {
    rf"uniform in \[{NUMBER}, {NUMBER}\]": between,
    rf": {NUMBER} to {NUMBER}": between,
    rf"uniform in the square \[{NUMBER}, {NUMBER}\]\^2": square,
    rf"uniform in the disc of radius {NUMBER}": disc,
    rf"on the upper half of the unit circle, its angle uniform in \[{NUMBER}, {NUMBER}\]": arc,
    rf"normal with mean {NUMBER} and standard deviation {NUMBER}": normal,
    r"from a flat Dirichlet distribution": dirichlet,
    r": ([\d.]+)\^u": power,
    r": ((?:\d(?: \([^)]*\))?(?:, | or )?)+),? with equal probability": choices,
}
"""How a docstring may describe a distribution."""


def law_of(name: str, text: str) -> Law:
    """The first distribution that is described after a parameter is named."""
    named = text.find(f"`{name}`")
    assert named >= 0, f"{name!r} is not described: {text}"
    found = [
        (m.start(), -m.end(), law, m.groups()) for p, law in LAWS.items() if (m := re.compile(p).search(text, named))
    ]
    assert found, f"no distribution that is understood follows `{name}`: {text[named:]}"
    _, _, law, groups = min(found, key=lambda x: x[:2])
    return law(*groups)


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def problems(values: np.ndarray, law: Law, text: str) -> list[str]:
    """What is wrong with a sample; nothing, if it is distributed so."""
    out = []
    for i, u in enumerate(law(values.astype(np.float64), text)):
        if u.min() < -1e-6 or u.max() > 1 + 1e-6:
            out.append(f"{i}: from {u.min()} to {u.max()}, outside of the range")
        elif u.min() > 10 / N or u.max() < 1 - 10 / N:
            out.append(f"{i}: from {u.min()} to {u.max()}, not all of the range")
        if abs(u.mean() - 0.5) > 4.5 / math.sqrt(12 * len(u)):
            out.append(f"{i}: the mean is at {u.mean()} of the range")
        if (p := stats.kstest(u, "uniform").pvalue) < 1e-4:
            out.append(f"{i}: another density (p = {p})")
    return out


def splits_of(family: Any) -> tuple[str, ...]:
    return tuple(getattr(family, "splits", ("train", "test")))


CASES = [(id, split) for id in IDS for split in splits_of(metarl.make(id)) if split != "ood"]


@pytest.mark.parametrize(("id", "split"), CASES)
def test_tasks_are_distributed_as_the_docstring_says(id, split):
    family = metarl.make(id)
    text, tasks = section(family, HEADING), family.sample(N, np.random.default_rng(0), split)
    assert set(tasks) == set(family.task_space.spaces)
    for name, values in tasks.items():
        assert len(values) == N
        assert problems(values, law_of(name, text), text) == [], f"{name} of {id}"
    alone = [u[:N] for name, x in tasks.items() for u in law_of(name, text)(x.astype(np.float64), text) if len(u) == N]
    for u, v in itertools.combinations(alone, 2):
        assert abs(np.corrcoef(u, v)[0, 1]) < 5 / math.sqrt(N), "parameters are independent"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`x`: uniform in [0, 2 pi].", lambda rng: rng.uniform(0, math.pi, N)),
        ("`x`: uniform in [0, 2 pi].", lambda rng: rng.uniform(-math.pi, math.pi, N)),
        ("`x`: uniform in [0, 3] m/s.", lambda rng: rng.uniform(0, 2, N)),
        ("`x`: uniform in [0, 3] m/s.", lambda rng: rng.uniform(0, 3.1, N)),
        ("`x`: uniform in [0, 3] m/s.", lambda rng: 3 * rng.uniform(0, 1, N) ** 1.2),
        ("`x` [m]: 0.75 to 1.25 (1.0).", lambda rng: rng.uniform(0.75, 1.0, N)),
        ("`x` [2]: uniform in the square [-3, 3]^2.", lambda rng: np.abs(rng.uniform(-3, 3, (N, 2)))),
        ("`x` [2]: uniform in the square [-3, 3]^2.", lambda rng: rng.uniform(-3, 3, (N, 2)) * [1, 0.9]),
        ("`x` [2]: uniform in the disc of radius 3.", lambda rng: on_disc(rng, 3, 1.0)),
        ("`x` [2]: uniform in the disc of radius 3.", lambda rng: np.abs(on_disc(rng, 3, 0.5)) * [1, -1]),
        ("`x` [2]: uniform in the disc of radius 3.", lambda rng: on_disc(rng, 2.5, 0.5)),
        ("`x`: 0, 1, 2 or 3 with equal probability.", lambda rng: rng.integers(0, 3, N)),
        ("`x`: 0, 1, 2 or 3 with equal probability.", lambda rng: rng.integers(0, 5, N)),
        ("`x`: 0, 1, 2 or 3 with equal probability.", lambda rng: rng.choice(4, N, p=[0.4, 0.2, 0.2, 0.2])),
        ("`x`: 1 (forwards) or 0 (backwards), with equal probability.", lambda rng: rng.random(N) < 0.6),
        ("`x` [2]: on the upper half of the unit circle, its angle uniform in [0, pi].",
         lambda rng: on_disc(rng, 1, 0)),
        ("`x`: normal with mean 0 and standard deviation 1.", lambda rng: rng.normal(0, 1.1, N)),
        ("`x`: 1.5^u, with u uniform in [-3, 3].", lambda rng: 1.5 ** rng.uniform(-3, 0, N)),
        ("`x`: 1.5^u, with u uniform in [-3, 3].", lambda rng: rng.uniform(1.5**-3, 1.5**3, N)),
    ],
)  # fmt: skip
def test_another_distribution_is_noticed(text, wrong):
    values = np.asarray(wrong(np.random.default_rng(0)), np.float64)
    assert problems(values, law_of("x", text), text) != []


def on_disc(rng: np.random.Generator, radius: float, exponent: float) -> np.ndarray:
    """Uniform with the exponent 1/2."""
    r, angle = radius * rng.random(N) ** exponent, rng.uniform(0, 2 * math.pi, N)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], 1)


def test_the_right_distribution_passes():
    rng, text = np.random.default_rng(0), "`x` [2]: uniform in the disc of radius 3."
    assert problems(on_disc(rng, 3, 0.5), law_of("x", text), text) == []


# ---------------------------------------------------------------------------------------------------------------------
# Splits


@pytest.mark.parametrize("id", IDS)
def test_splits_share_tasks_only_where_the_docstring_says_so(id):
    family = metarl.make(id)
    said = "`shared_splits`" in section(family, SPLITS)
    assert getattr(family, "shared_splits", False) == said
    drawn = {split: family.sample(100, np.random.default_rng(0), split) for split in splits_of(family)}
    for a, b in itertools.combinations(drawn, 2):
        name = next(iter(drawn[a]))
        one, two = (np.asarray(drawn[split][name], np.float64).reshape(100, -1) for split in (a, b))
        common = (one[:, None] == two[None]).all(-1)
        assert common.any() == said, f"{a} and {b} of {id}"
        assert not np.array_equal(one, two), f"{a} and {b} of {id} draw the same numbers"


@pytest.mark.parametrize("id", IDS)
def test_the_docstring_names_the_splits_that_there_are(id):
    family = metarl.make(id)
    text = section(family, SPLITS)
    usual = [word for word in ("train", "validation", "test") if re.search(rf"\b{word}(ing)?\b", text, re.IGNORECASE)]
    assert usual == ["train", "validation", "test"]  # which every family has
    assert re.findall(r"`(\w+)`: ", text) == [name for name in splits_of(family) if name not in usual]


@pytest.mark.parametrize(
    ("id", "inner", "outer"), [("PointNavigation-v0", 0.5, 1.0), ("PointNavigationPixels-v0", 0.5, 0.75)]
)
def test_goals_outside_of_the_square_are_uniform_around_it(id, inner, outer):
    goals = metarl.make(id).sample(N, np.random.default_rng(0), "ood")["goal"]
    radius = np.abs(goals).max(1)
    assert inner <= radius.min() < inner + 0.01 and outer - 0.01 < radius.max() <= outer
    share = (radius < (inner + outer) / 2).mean()  # by area
    expected = (((inner + outer) / 2) ** 2 - inner**2) / (outer**2 - inner**2)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / N)


def test_factors_outside_of_the_range_are_on_both_sides_of_it():
    pytest.importorskip("mujoco")
    drawn = metarl.make("HopperRandParams-v0").sample(N, np.random.default_rng(0), "ood")
    for name, base in (("mass", 1.5), ("damping", 1.3)):
        u = np.log(drawn[name]).ravel() / math.log(base)
        assert (np.abs(u) >= 3).all() and (np.abs(u) <= 4).all()
        assert abs((u > 0).mean() - 0.5) < 0.02 and abs(np.abs(u).mean() - 3.5) < 0.02


def test_sparse_goals_outside_are_on_the_other_half_of_the_circle():
    goals = metarl.make("PointNavigationSparse-v0").sample(N, np.random.default_rng(0), "ood")["goal"]
    angle = np.arctan2(-goals[:, 1], goals[:, 0])
    assert (goals[:, 1] <= 1e-6).all() and abs(angle.mean() - math.pi / 2) < 0.06
    np.testing.assert_allclose(np.hypot(*goals.T), 1.0, atol=1e-6)


def test_a_family_shares_its_splits_only_if_it_says_so():
    corners, plain = metarl.make("PointNavigationCorners-v0"), PointGoal()
    assert VisibleFamily(corners).shared_splits is True
    assert VisibleFamily(plain).shared_splits is False
    assert getattr(TwoArms(), "shared_splits", False) is False
