"""Means over tasks and their uncertainty."""

from typing import Any

import numpy as np
import scipy.stats


def interquartile_mean(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean of the middle half (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264)."""
    return scipy.stats.trim_mean(x, 0.25, axis=axis)


def bootstrap_interval(x: np.ndarray, statistic: Any = np.mean) -> tuple[float, float]:
    """The 95% interval of a statistic of x [n] (percentiles, 10,000 draws, always the same).

    NaN for a single x, and where one is not finite."""
    if len(x) < 2 or not np.isfinite(x).all():
        return float("nan"), float("nan")
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    found = scipy.stats.bootstrap((x,), statistic, n_resamples=10_000, method="percentile", batch=1000,
                                  rng=np.random.default_rng(0)).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)
