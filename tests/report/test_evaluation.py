"""Evaluation: the statistics by hand, the tasks that it draws, the table and the files."""

import csv
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_runs import contents, point, tiny

from metarl import MetaLearner
from metarl.report.evaluation import (
    FINAL,
    PERIODIC,
    Evaluation,
    checked_step_sizes,
    evaluation_seed,
    side_by_side,
)
from metarl.report.measures import LOSS
from metarl.report.statistics import bootstrap_interval, interquartile_mean
from metarl.supervised import FewShotEvaluation, FewShotLearner, Sinusoid


def evaluation(returns: Any, step_sizes: tuple[float, ...] = (0.5,), **more: Any) -> Evaluation:
    returns = np.asarray(returns, float)
    return Evaluation(
        returns, step_sizes, {"episodes": 4}, {"goal": np.arange(2.0 * len(returns)).reshape(-1, 2)}, 3, **more
    )


NORMAL = np.random.default_rng(0).normal(5.0, 2.0, (400, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


@pytest.mark.parametrize(
    ("x", "expected"),
    [([1, 2, 3, 4, 5, 6, 7, 8], 4.5),  # 3, 4, 5, 6
     ([100, 1, 7, 2], 4.5),  # 2, 7
     ([1, 2, 3, 4, 90], 3.0),  # a quarter of 5 is one at each end: 2, 3, 4
     ([3, 5], 4.0), ([7], 7.0)],
)  # fmt: skip
def test_interquartile_mean_by_hand(x, expected):
    assert interquartile_mean(np.array(x, float)) == expected


def test_interquartile_mean_along_an_axis():
    x = np.array([[1, 2, 3, 40], [10, 20, 30, 400]], float)
    assert interquartile_mean(x, axis=1).tolist() == [2.5, 25.0]
    assert interquartile_mean(x, axis=0).tolist() == [5.5, 11.0, 16.5, 220.0]


def test_interquartile_mean_ignores_outliers_and_the_mean_does_not():
    x = np.arange(8.0)
    wild = np.where(x == 7, 1e6, x)
    assert interquartile_mean(wild) == interquartile_mean(x)
    assert wild.mean() > 1e5


def test_rows_hold_mean_and_interquartile_mean_of_every_step():
    rows = evaluation([[1, 10], [2, 20], [3, 30], [40, 400]]).rows()
    assert [(row.step, row.mean, row.iqm) for row in rows] == [(0, 11.5, 2.5), (1, 115.0, 25.0)]


def test_the_mean_is_taken_over_tasks():
    assert evaluation([[1, 2], [3, 6]]).mean.tolist() == [2.0, 4.0]


def test_intervals_contain_what_they_are_intervals_of():
    (row,) = evaluation(NORMAL, ()).rows()
    assert row.mean_low < row.mean < row.mean_high
    assert row.iqm_low < row.iqm < row.iqm_high


def test_the_intervals_width_is_that_of_a_normal_distributions_mean():
    (row,) = evaluation(NORMAL, ()).rows()
    expected = 2 * 1.96 * NORMAL.std() / np.sqrt(len(NORMAL))
    assert row.mean_high - row.mean_low == pytest.approx(expected, rel=0.05)


def test_four_times_the_tasks_halve_the_interval():
    few, many = (evaluation(NORMAL[:n], ()).rows()[0] for n in (100, 400))
    ratio = (few.mean_high - few.mean_low) / (many.mean_high - many.mean_low)
    assert ratio == pytest.approx(2 * NORMAL[:100].std() / NORMAL.std(), rel=0.05)


def test_the_interquartile_means_interval_ignores_an_outlier_and_the_means_does_not():
    x = np.arange(20.0)[:, None]
    wild = np.where(x == 19, 1e6, x)
    (row,) = evaluation(wild, ()).rows()
    assert row.iqm_high < 20
    assert row.mean_high > 1e4


def test_intervals_are_the_same_every_time():
    assert evaluation(NORMAL, ()).rows() == evaluation(NORMAL, ()).rows()


def test_the_ends_of_an_interval_are_percentiles_of_the_draws():
    # One success in 8 tasks: a draw of 8 has Binomial(8, 1/8) of them. None has probability 0.34, at most 2 have 0.93,
    # at most 3 have 0.99. (Percentiles turned over at the mean, as of the "basic" bootstrap, would be -1/8 and 1/4.)
    assert bootstrap_interval(np.array([0.0, 0, 0, 0, 0, 0, 0, 1])) == (0.0, 3 / 8)


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_returns_that_are_not_finite_have_no_interval(odd):
    assert np.isnan(bootstrap_interval(np.array([1.0, 2.0, odd]))).all()
    assert np.isfinite(bootstrap_interval(np.array([1.0, 2.0, 9.0]))).all()


def test_one_task_has_no_interval():
    row = evaluation([[3.0, 4.0]]).rows()[1]
    assert (row.mean, row.iqm) == (4.0, 4.0)
    assert np.isnan([row.mean_low, row.mean_high, row.iqm_low, row.iqm_high]).all()


def test_equal_returns_have_a_point_as_interval():
    row = evaluation([[2.5, 0.0], [2.5, 1.0], [2.5, 2.0]]).rows()[0]
    assert (row.mean_low, row.mean_high, row.iqm_low, row.iqm_high) == (2.5, 2.5, 2.5, 2.5)


# ---------------------------------------------------------------------------------------------------------------------
# Table and files


def shown(evaluation: Evaluation, width: int = 100, title: str = "") -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evaluation.table(title))
    return console.export_text()


def test_the_table_shows_steps_sizes_means_and_intervals():
    lines = shown(evaluation([[1.0, 2.5, 3.0], [1.0, 2.5, 3.0]], (0.25, 0.125))).splitlines()
    cells = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in lines if line.startswith("│")]
    assert cells == [["0", "", "1.00 [1.00, 1.00]", "1.00 [1.00, 1.00]"],
                     ["1", "0.25", "2.50 [2.50, 2.50]", "2.50 [2.50, 2.50]"],
                     ["2", "0.125", "3.00 [3.00, 3.00]", "3.00 [3.00, 3.00]"]]  # fmt: skip


def test_the_table_says_what_was_measured():
    assert "2 test tasks, 4 episodes each" in shown(evaluation([[1.0], [2.0]], ()))
    assert "My run" in shown(evaluation([[1.0], [2.0]], ()), title="My run")


def test_a_narrow_terminal_cuts_no_number():
    text = shown(evaluation(1000.125 * np.arange(-9.0, 1).reshape(5, 2)), width=60)
    assert "…" not in text
    assert "-5000.6" in text


def test_files_hold_the_same_numbers(tmp_path):
    found = evaluation([[1, 10], [2, 20], [3, 30], [40, 400]])
    csv_path, json_path = found.save(tmp_path)
    with csv_path.open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    data = json.loads(json_path.read_text())
    assert rows == data["rows"]
    assert rows == [{name: x for name, x in vars(row).items() if x is not None} for row in found.rows()]
    assert data["returns"] == [[1, 10], [2, 20], [3, 30], [40, 400]]


def test_files_say_how_the_numbers_came_about(tmp_path):
    data = json.loads(evaluation([[1, 10], [2, 20]]).save(tmp_path)[1].read_text())
    assert (data["step_sizes"], data["episodes"], data["seed"]) == ([0.5], 4, 3)
    assert data["tasks"] == {"goal": [[0, 1], [2, 3]]}


def test_json_without_an_interval_is_json_still(tmp_path):
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = evaluation([[1.0]], ()).save(tmp_path)[1].read_text()
    assert json.loads(text, parse_constant=refuse)["rows"][0]["mean_low"] is None


# ---------------------------------------------------------------------------------------------------------------------
# Which tasks, which episodes


def goals(tasks: Any) -> set[tuple[float, ...]]:
    return {tuple(goal) for goal in tasks["goal"].tolist()}


def test_final_periodic_and_training_tasks_have_none_in_common():
    learner = tiny()
    final = goals(learner.evaluate(50, steps=0).tasks)
    periodic = goals(learner.sampler.tasks(50, evaluation_seed(0, PERIODIC), 0, "validation"))
    training = set().union(*(goals(learner.sampler.tasks(50, 0, iteration)) for iteration in range(3)))
    assert (len(final), len(periodic), len(training)) == (50, 50, 150)
    assert not final & periodic
    assert not (final | periodic) & training


def test_final_tasks_come_from_the_test_split():
    learner = tiny()
    seed = evaluation_seed(0, FINAL)
    assert goals(learner.evaluate(5, steps=0).tasks) == goals(learner.sampler.tasks(5, seed, 0, split="test"))


def test_seeds_differ_by_run_and_purpose():
    seeds = {evaluation_seed(seed, purpose) for seed in range(50) for purpose in (FINAL, PERIODIC)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_returns_are_those_of_the_rollouts():
    found = tiny().evaluate(3, steps=2, episodes=4, details=True)
    by_hand = [[float((r.rew[k] * r.mask[k]).sum()) / 4 for r in found.details.rollouts] for k in range(3)]
    np.testing.assert_allclose(found.returns, by_hand, rtol=1e-6)
    assert found.returns.shape == (3, 3)


def test_details_are_kept_only_where_asked_for():
    assert tiny().evaluate(1, steps=0).details is None


def test_saving_writes_two_files(tmp_path):
    evaluation([[1.0], [2.0]], ()).save(tmp_path / "new")
    assert sorted(contents(tmp_path)) == ["new/adaptation.csv", "new/adaptation.json"]


# ---------------------------------------------------------------------------------------------------------------------
# Inner steps and their sizes


def halves(steps):
    return tuple(0.5**i for i in range(steps))


@pytest.mark.parametrize(
    ("steps", "sizes", "found"),
    [(None, None, (1.0, 0.5)), (3, None, (1.0, 0.5, 0.25)), (0, None, ()), (None, [2, 0.1], (2.0, 0.1)),
     (1, np.array([0.1]), (0.1,)), (np.int64(1), None, (1.0,))],
)  # fmt: skip
def test_steps_sizes_or_neither_can_be_given(steps, sizes, found):
    assert checked_step_sizes(steps, sizes, halves, otherwise=2) == found


@pytest.mark.parametrize(
    ("steps", "sizes", "message"),
    [(-1, None, "steps must not be negative, got -1"), (1.5, None, "steps must be a whole number, got 1.5"),
     (2, [0.1], r"steps=2 contradicts the 1 step_sizes \[0.1\]: leave one out"),
     (None, 0.1, "step_sizes must be a list of positive numbers, got 0.1"),
     (None, [0.1, 0.0], r"step_sizes must be positive and finite, got \[0.1, 0.0\]"),
     (None, [-0.5], r"step_sizes must be positive and finite, got \[-0.5\]"),
     (None, [float("nan")], r"step_sizes must be positive and finite, got \[nan\]"),
     (None, [float("inf")], r"step_sizes must be positive and finite, got \[inf\]"),
     (None, ["0.1"], "every entry of step_sizes must be a number, got '0.1'")],
)  # fmt: skip
def test_steps_that_make_no_sense_are_refused(steps, sizes, message):
    with pytest.raises(ValueError, match=message):
        checked_step_sizes(steps, sizes, halves, otherwise=2)


# ---------------------------------------------------------------------------------------------------------------------
# One result for returns and for losses


def losses(values: Any, accuracies: Any = None, **more: Any) -> Evaluation:
    values = np.asarray(values, float)
    sizes, amounts, tasks = (
        (0.5,) * (values.shape[1] - 1),
        {"shots": 2, "queries": 9},
        {"phase": np.arange(len(values))},
    )
    return Evaluation(values, sizes, amounts, tasks, 3, rates=accuracies, measure=LOSS, **more)


RIGHT = np.array([[0.2, 0.9], [0.4, 0.7]])


def test_policies_trials_and_few_shot_learners_give_the_same_type():
    rl2 = MetaLearner("rl2", point(), n_tasks=2, hidden=4, minibatches=1, trial_episodes=2, device="cpu")
    few = FewShotLearner(Sinusoid(), n_tasks=2, hidden=(4,), device="cpu")
    found = [one.evaluate(3, steps=1) for one in (tiny(), rl2, few)]
    assert {type(one) for one in found} == {Evaluation} == {FewShotEvaluation}
    assert [one.unit for one in found] == ["inner step", "episode", "inner step"]
    assert [one.measure.higher_is_better for one in found] == [True, True, False]
    assert [one.values.shape for one in found] == [(3, 2)] * 3 and [one.seed for one in found] == [found[0].seed] * 3
    assert rl2.evaluate(3, steps=0).unit == "episode"  # though there is no step that lacks a size


def test_the_numbers_have_the_names_of_what_is_measured():
    found = losses([[4.0, 1.0], [6.0, 2.0]], RIGHT)
    assert found.losses is found.values and found.accuracies is found.rates and found.parameters is found.tasks
    assert found.loss.tolist() == found.mean.tolist() == [5.0, 1.5]
    assert found.accuracy.tolist() == pytest.approx([0.3, 0.8]) and (found.shots, found.queries) == (2, 9)
    other = evaluation([[4.0, 1.0]], rates=RIGHT[:1])
    assert other.returns is other.values and other.success_rates is other.rates and other.episodes == 4


@pytest.mark.parametrize("name", ["losses", "accuracies", "loss", "accuracy", "shots", "queries", "parameters"])
def test_returns_have_no_name_of_losses(name):
    with pytest.raises(AttributeError, match=r"is of returns and has no (losses|accuracies|loss|shots|queries|param)"):
        getattr(evaluation([[1.0, 2.0]]), name)


@pytest.mark.parametrize("name", ["returns", "success_rates", "episodes"])
def test_losses_have_no_name_of_returns(name):
    with pytest.raises(AttributeError, match=f"is of losses and has no {name}"):
        getattr(losses([[1.0, 2.0]]), name)


def test_the_table_of_losses_has_their_columns_and_no_interquartile_mean():
    found = losses([[4.0, 1.0], [4.0, 1.0]], np.array([[0.25, 0.875], [0.25, 0.875]]))
    assert shown(found).splitlines()[0].strip() == "2 test tasks, 2 shots, 9 queries each"
    columns = {column.header: list(column.cells) for column in found.table().columns}
    assert columns == {
        "steps": ["0", "1"], "size": ["", "0.5"],
        "loss [95% interval]": [r"4.000 \[4.000, 4.000]", r"1.000 \[1.000, 1.000]"],
        "accuracy [95%]": [r"25.0% \[25.0%, 25.0%]", r"87.5% \[87.5%, 87.5%]"],
    }  # fmt: skip
    assert "accuracy [95%]" not in [column.header for column in losses([[4.0, 1.0]]).table().columns]


def test_files_of_losses_have_the_names_that_they_always_had(tmp_path):
    found = losses([[4.0, 1.0], [6.0, np.inf]], RIGHT)
    csv_path, json_path = found.save(tmp_path)
    assert [csv_path.name, json_path.name] == ["few_shot.csv", "few_shot.json"]
    header, first, last = csv_path.read_text().splitlines()
    assert header == "step,loss,loss_low,loss_high,accuracy,accuracy_low,accuracy_high"
    assert first.startswith("0,5.0,4.0,6.0,0.3") and last.startswith("1,inf,nan,nan,0.8")
    data = json.loads(json_path.read_text())
    assert data["losses"] == [[4.0, 1.0], [6.0, None]] and data["accuracies"] == RIGHT.tolist()
    assert (data["shots"], data["queries"], data["parameters"]) == (2, 9, {"phase": [0, 1]})
    assert (data["higher_is_better"], data["unit"]) == (False, "inner step") and data["rows"][1]["loss"] is None


def test_those_of_another_split_are_named_after_it(tmp_path):
    for found in (losses([[1.0]], split="ood"), evaluation([[1.0]], (), split="ood")):
        found.save(tmp_path)
    names = ["adaptation-ood.csv", "adaptation-ood.json", "few_shot-ood.csv", "few_shot-ood.json"]
    assert sorted(contents(tmp_path)) == names


def test_losses_of_several_splits_stand_side_by_side():
    table = side_by_side([losses([[4.0, 1.0]] * 2, RIGHT), losses([[5.0, 2.0]] * 2, split="ood")])
    assert {column.header: list(column.cells)[1] for column in table.columns} == {
        "steps": "1", "size": "0.5", "test [95% interval]": r"1.000 \[1.000, 1.000]",
        "test, accuracy [95%]": r"80.0% \[70.0%, 90.0%]", "ood [95% interval]": r"2.000 \[2.000, 2.000]",
    }  # fmt: skip
