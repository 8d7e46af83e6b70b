"""The measures of a comparison: by hand, by definition, and what their intervals cover."""

import itertools

import numpy as np
import pytest

from metarl.benchmark import statistics

SCORES = np.array([[0.0, 2.0, 5.0, 1.0], [4.0, 3.0, 7.0, 8.0]])


def test_mean_median_and_interquartile_mean_by_hand():
    assert statistics.mean(SCORES) == 3.75
    assert statistics.median(SCORES) == np.median([2.0, 2.5, 6.0, 4.5]) == 3.5
    assert statistics.interquartile_mean(SCORES) == (2 + 3 + 4 + 5) / 4


def test_the_optimality_gap_counts_what_is_missing_and_nothing_above_the_target():
    assert statistics.optimality_gap(SCORES, 4.0) == pytest.approx((4 + 2 + 0 + 3 + 0 + 1 + 0 + 0) / 8)
    assert statistics.optimality_gap(np.full((2, 2), 9.0)) == 0.0


def test_the_probability_of_improvement_is_the_share_of_pairs_won_with_ties_half():
    ours, theirs = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 0.0]]), np.array([[2.0, 5.0], [0.0, 1.0]])
    won = [
        np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(ours[:, k], theirs[:, k])]) for k in range(2)
    ]
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(np.mean(won))
    back = statistics.probability_of_improvement(theirs, ours)
    assert back + statistics.probability_of_improvement(ours, theirs) == pytest.approx(1.0)


def test_a_performance_profile_is_the_share_of_runs_above_each_threshold():
    assert statistics.performance_profile(SCORES, [-1, 2, 7, 8]).tolist() == [1.0, 5 / 8, 1 / 8, 0.0]


def test_the_worst_tenth_is_of_tasks_by_their_mean_over_seeds():
    scores = np.stack([np.arange(20.0), np.arange(20.0)[::-1]])
    assert statistics.cvar(scores) == 9.5  # every task has the same mean: none is worst
    assert statistics.cvar(scores[:1]) == 0.5
    assert statistics.cvar(SCORES) == 2.0


def test_scores_that_are_no_table_are_refused():
    with pytest.raises(ValueError, match=r"\[seeds, tasks\] with at least one of each, got shape \(3,\)"):
        statistics.mean(np.zeros(3))
    with pytest.raises(ValueError, match="same tasks, got 4 and 2"):
        statistics.probability_of_improvement(SCORES, SCORES[:, :2])


def test_an_interval_covers_the_mean_of_the_distribution_that_seeds_and_tasks_come_from():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(60):
        scores = rng.normal(0, 1, (1, 15)) + 0.3 * rng.normal(0, 1, (5, 15))
        low, high = statistics.interval(statistics.mean, scores, draws=300)
        covered += low <= 0 <= high
    assert 50 <= covered <= 60  # 95% of 60 are 57


def test_an_interval_for_these_tasks_alone_is_narrower():
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 5, (1, 15)) + rng.normal(0, 0.1, (4, 15))
    widths = [np.diff(statistics.interval(statistics.mean, scores, over_tasks=on))[0] for on in (False, True)]
    assert widths[0] < 0.1 * widths[1]


def test_an_interval_over_tasks_is_as_wide_as_the_central_limit_theorem_says():
    scores = np.random.default_rng(2).normal(0, 1, (1, 400))
    low, high = statistics.interval(statistics.mean, scores)
    assert (high - low) / 2 == pytest.approx(1.96 / 20, rel=0.12)


def test_seeds_are_resampled_within_each_task():
    """Otherwise an interval for these tasks would have the spread of the tasks in it."""
    scores = np.tile(np.arange(10.0) * 100, (3, 1))
    assert statistics.interval(statistics.mean, scores, over_tasks=False) == (450.0, 450.0)


def test_the_same_tasks_are_drawn_for_both_sides_of_a_comparison():
    """Task difficulty then cancels, as it does in the statistic."""
    hard = np.arange(12.0)[None] * 100
    rng = np.random.default_rng(0)
    ours, theirs = (hard + shift + rng.normal(0, 0.1, (5, 12)) for shift in (1.0, 0.0))

    def gain(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.mean() - b.mean())

    low, high = statistics.interval(gain, ours, theirs)
    assert 0.8 < low < high < 1.2


def test_one_run_of_one_task_has_no_interval():
    assert np.isnan(statistics.interval(statistics.mean, np.zeros((1, 1)))).all()
    assert np.isnan(statistics.interval(statistics.mean, np.zeros((1, 5)), over_tasks=False)).all()


def test_returns_on_the_scale_from_random_to_oracle():
    assert statistics.normalised(np.array([-10.0, 0.0, 5.0]), -10.0, 0.0).tolist() == [0.0, 1.0, 1.5]
    with pytest.raises(ValueError, match=r"the oracle's return -3 is not above the random policy's -2"):
        statistics.normalised(np.zeros(2), -2.0, -3.0)


def test_the_area_under_a_curve_by_hand():
    assert statistics.area_under_curve([0, 10], [0.0, 1.0], 10) == 0.5
    assert statistics.area_under_curve([0, 10], [0.0, 1.0], 20) == 0.75  # the last value holds
    assert statistics.area_under_curve([0, 10, 20], [0.0, 1.0, 5.0], 10) == 0.5  # what comes later does not count
    with pytest.raises(ValueError, match="begins at 0 episodes"):
        statistics.area_under_curve([5, 10], [0.0, 1.0], 10)


def test_when_a_curve_first_reaches_a_target():
    assert statistics.first_reaching([0, 10, 20], [0.0, 0.95, 0.8], 0.9) == 10
    assert statistics.first_reaching([0, 10], [0.0, 0.5], 0.9) == np.inf
