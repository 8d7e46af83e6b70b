"""Families that are one Gymnasium environment with its physical constants varied: the constants and their ranges."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import gymnasium as gym
import numpy as np

from metarl.arguments import whole
from metarl.splits import SPLITS, TEST, split_rng
from metarl.tasks import Task, Tasks, did_you_mean
from metarl.vector.tensor import TensorFamily

OOD = "ood"
"""The split whose tasks lie outside the training ranges."""
POSITIVE = float(np.finfo(np.float32).tiny)
"""The least value of a mass, a length, or whatever else stands in a denominator."""

Range = float | Sequence[float]
"""Two numbers (low, high), or one number for a parameter that does not vary."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One physical constant: Gymnasium's value, the range that tasks are drawn from, and the least that makes sense."""

    default: float
    low: float
    high: float
    minimum: float = -math.inf


Parameters = Mapping[str, Parameter]


class ParameterFamily(TensorFamily):
    """What such families share: `parameters` are the task, each drawn uniformly from its range of the split."""

    parameters: ClassVar[dict[str, Parameter]]
    splits: ClassVar[tuple[str, ...]] = (*SPLITS, OOD)

    def __init__(
        self, horizon: int, ranges: Mapping[str, Range] | None = None, test_ranges: Mapping[str, Range] | None = None
    ):
        self.horizon = whole("horizon", horizon, 1)
        self.task_space = self.task_limits = task_space(self.parameters)
        self.default_task = default_task(self.parameters)
        self.ranges = split_ranges(self.id, self.parameters, ranges, test_ranges)

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        n = whole("n", n, 0)
        if split == OOD:
            least = {name: p.minimum for name, p in self.parameters.items()}
            return sample_outside(self.ranges["train"], least, n, split_rng(rng, split, self.splits))
        return sample_uniform(self.ranges, n, rng, split)


def task_space(parameters: Parameters) -> gym.spaces.Dict:
    """One number for each parameter. Tasks outside the sampled ranges can be made too."""
    return gym.spaces.Dict(
        {name: gym.spaces.Box(p.minimum, math.inf, (), np.float32) for name, p in parameters.items()}
    )


def default_task(parameters: Parameters) -> Task:
    """Gymnasium's own environment as a task."""
    return {name: np.array(p.default, np.float32) for name, p in parameters.items()}


def split_ranges(
    id: str, parameters: Parameters, ranges: Mapping[str, Range] | None, test_ranges: Mapping[str, Range] | None
) -> dict[str, dict[str, tuple[float, float]]]:
    """split -> parameter -> (low, high): the defaults, replaced by `ranges` in both splits, `test_ranges` in testing.

    Raises:
        ValueError: a name is no parameter, or a range is not two finite numbers in order or goes below the minimum.
    """
    train = {name: (p.low, p.high) for name, p in parameters.items()}
    train |= _checked(id, parameters, ranges or {})
    test = train | _checked(id, parameters, test_ranges or {})
    return {split: test if split == TEST else train for split in SPLITS}


def sample_uniform(
    ranges: Mapping[str, Mapping[str, tuple[float, float]]], n: int, rng: np.random.Generator, split: str
) -> Tasks:
    """`n` tasks, every parameter [n] uniform in its range of that split and independent of the others."""
    rng = split_rng(rng, split)
    return {name: rng.uniform(low, high, n).astype(np.float32) for name, (low, high) in ranges[split].items()}


def sample_outside(
    ranges: Mapping[str, tuple[float, float]], least: Mapping[str, float], n: int, rng: np.random.Generator
) -> Tasks:
    """`n` tasks, every parameter [n] uniform in the two stretches, a quarter of its range wide, below and above it. One
    that does not vary stays, and none goes below its least value."""
    tasks = {}
    for name, (low, high) in ranges.items():
        width = (high - low) / 4
        below = min(width, max(0.0, low - least[name]))  # how much room there is
        place = rng.uniform(-below, width, n)  # negative is below the range
        tasks[name] = np.where(place < 0, low + place, high + place).astype(np.float32)
    return tasks


def _checked(id: str, parameters: Parameters, ranges: Mapping[str, Range]) -> dict[str, tuple[float, float]]:
    out = {}
    for name, given in ranges.items():
        if name not in parameters:
            raise ValueError(f"{id} has no task parameter {name!r}{did_you_mean(name, parameters)}")
        bounds = np.atleast_1d(np.asarray(given, np.float64))
        low, high = (float(bounds[0]), float(bounds[-1])) if bounds.shape in ((1,), (2,)) else (math.nan, math.nan)
        least = parameters[name].minimum
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"the range of {name!r} must be one number or two in order, (low, high), got {given!r}")
        if low < least:
            needed = "positive" if least == POSITIVE else f"at least {least}"
            raise ValueError(f"{name!r} must be {needed}, got the range {given!r}")
        out[name] = (low, high)
    return out
