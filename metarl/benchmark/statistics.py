"""The measures of a comparison: those of Agarwal et al. (2021, https://arxiv.org/abs/2108.13264), and adaptation's own.

Scores are arrays [seeds, tasks], higher is better. A point estimate of a few seeds says little by itself: `interval`
resamples seeds and tasks.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

Statistic = Callable[..., float]


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores are [seeds, tasks] with at least one of each, got shape {scores.shape}")
    return scores


def mean(scores: np.ndarray) -> float:
    """Over seeds and tasks."""
    return float(_checked(scores).mean())


def median(scores: np.ndarray) -> float:
    """Of the tasks' means over seeds."""
    return float(np.median(_checked(scores).mean(0)))


def interquartile_mean(scores: np.ndarray) -> float:
    """The mean of the middle half of all runs of all tasks."""
    return float(scipy.stats.trim_mean(_checked(scores), 0.25, axis=None))


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> float:
    """By how much runs fall short of a score of `target`, not counting what is above it."""
    return float(target - np.minimum(_checked(scores), target).mean())


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> float:
    """The probability that a run of the first beats one of the second on a task, mean over tasks; ties count half."""
    scores, others = _checked(scores), _checked(others)
    if scores.shape[1] != others.shape[1]:
        raise ValueError(f"both need scores on the same tasks, got {scores.shape[1]} and {others.shape[1]}")
    wins = (scores[:, None] > others[None]) + 0.5 * (scores[:, None] == others[None])
    return float(wins.mean())


def performance_profile(scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The share of runs with a score above each threshold."""
    scores = _checked(scores)
    return np.array([(scores > threshold).mean() for threshold in thresholds])


def cvar(scores: np.ndarray, share: float = 0.1) -> float:
    """The mean over the worst `share` of the tasks (at least one), by their mean over seeds: the conditional value at
    risk."""
    worst = np.sort(_checked(scores).mean(0))
    return float(worst[: max(1, int(np.ceil(share * len(worst))))].mean())


def interval(
    statistic: Statistic, *scores: np.ndarray, level: float = 0.95, draws: int = 2000, over_tasks: bool = True
) -> tuple[float, float]:
    """A bootstrap percentile interval, always of the same draws.

    Seeds are resampled within each task (stratified, as in Agarwal et al., section 4); with `over_tasks` tasks are too,
    the same ones in every array: the interval then is for tasks like these, and not for these tasks alone.

    Args:
        scores: one array [seeds, tasks] for each argument of the statistic.

    Returns:
        NaN twice where there is one seed and one task, or seeds alone are resampled and there is one.
    """
    arrays = [_checked(one) for one in scores]
    tasks = arrays[0].shape[1]
    if all(len(one) == 1 for one in arrays) and (tasks == 1 or not over_tasks):
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        which = rng.integers(tasks, size=tasks) if over_tasks else np.arange(tasks)
        drawn = [one[rng.integers(len(one), size=(len(one), tasks)), which] for one in arrays]
        found.append(statistic(*drawn))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------------------------------
# Adaptation


def normalised(returns: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns so that `low` (a random policy's) is 0 and `high` (an oracle's) is 1.

    Raises:
        ValueError: the oracle does no better than the random policy, so that there is no scale.
    """
    if not high > low:
        raise ValueError(f"the oracle's return {high:g} is not above the random policy's {low:g}: there is no scale")
    return (np.asarray(returns, dtype=float) - low) / (high - low)


def area_under_curve(episodes: Sequence[float], values: Sequence[float], until: float) -> float:
    """The mean of an adaptation curve over [0, until] episodes, linear between its points; the last value holds from
    the last point on."""
    x, y = np.asarray(episodes, dtype=float), np.asarray(values, dtype=float)
    if x[0] != 0 or (np.diff(x) <= 0).any() or until <= 0:
        raise ValueError(f"a curve begins at 0 episodes and goes on, got {list(episodes)} until {until}")
    inside = x[x < until]
    grid = np.append(inside, until)
    return float(np.trapezoid(np.interp(grid, x, y), grid) / until)


def first_reaching(episodes: Sequence[float], values: Sequence[float], target: float) -> float:
    """After how many episodes a curve first reaches `target`; infinite where it never does."""
    reached = [x for x, y in zip(episodes, values, strict=True) if y >= target]
    return float(reached[0]) if reached else float("inf")
