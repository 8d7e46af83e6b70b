"""`metarl compare`: which runs belong together, what they are called, and the numbers that are shown."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from probes import Drift

import metarl
from metarl import cli
from metarl.benchmark import compare, figures
from metarl.benchmark.command import CompareOptions
from metarl.benchmark.compare import Compared, Group, Run, grouped
from metarl.options import UsageError
from metarl.report.evaluation import Evaluation

SMALL = {"n_tasks": 2, "episodes": 2, "hidden": (4,), "device": "cpu"}


def run(path: str, seed: int = 0, algorithm: str = "promp", family: str = "Nav", **settings) -> Run:
    return Run(Path(path), family, algorithm, seed, settings, [])


def evaluation(values: np.ndarray) -> Evaluation:
    return Evaluation(values, (0.1,) * (values.shape[1] - 1), {"episodes": 3}, {}, 0)


def test_runs_that_differ_in_their_seed_alone_are_a_group():
    runs = [run("a", 1, lr=0.1), run("b", 0, lr=0.1), run("c", 0, lr=0.2), run("d", 0, "maml_trpo"),
            run("e", 0, family="Cart", lr=0.1)]  # fmt: skip
    groups = grouped(runs)
    assert [[str(r.path) for r in g.runs] for g in groups] == [["b", "a"], ["c"], ["d"], ["e"]]
    assert [g.label for g in groups] == ["promp (lr=0.1)", "promp (lr=0.2)", "maml_trpo", "promp"]


def test_a_label_has_only_the_settings_that_differ():
    groups = grouped([run("a", lr=0.1, hidden=[8, 8], gamma=0.9), run("b", lr=0.1, hidden=[16], gamma=0.9)])
    assert [g.label for g in groups] == ["promp (hidden=8x8)", "promp (hidden=16)"]


def test_a_setting_that_an_older_run_does_not_have_is_no_difference():
    (first, second) = grouped([run("a", lr=0.1), run("b", lr=0.2, new=5)])
    assert (first.label, second.label) == ("promp (lr=0.1)", "promp (lr=0.2)")


def test_one_seed_twice_is_refused():
    with pytest.raises(ValueError, match="a and b are runs of one kind with the same seed"):
        grouped([run("a", lr=0.1), run("b", lr=0.1)])


@pytest.fixture
def two():
    seeds = tuple(evaluation(np.array([[0.0, 4.0], [2.0, 6.0]]) + s) for s in range(2))
    one = Compared(Group("promp (lr=0.1)", "Nav_v0", (run("a"), run("b", 1))), seeds)
    other = Compared(Group("maml_trpo", "Nav_v0", (run("c"),)), (evaluation(np.array([[1.0], [2.0]])),))
    return [one, other]


def test_rows_have_the_mean_over_seeds_and_tasks(two):
    rows = compare.rows(two)
    assert [(row["runs"], row["steps"], row["mean"]) for row in rows] == [
        ("promp (lr=0.1)", 0, 1.5), ("promp (lr=0.1)", 1, 5.5), ("maml_trpo", 0, 1.5)
    ]  # fmt: skip
    assert rows[1]["mean_low"] < 5.5 < rows[1]["mean_high"] and rows[0]["seeds"] == 2


def test_the_tables_say_the_same_in_every_format(two, tmp_path):
    paths = compare.write(two, tmp_path)
    assert [path.name for path in paths] == ["comparison.csv", "comparison.md", "comparison.tex"]
    with paths[0].open(newline="") as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [1.5, 5.5, 1.5]
    md, tex = (path.read_text() for path in paths[1:])
    assert md.splitlines()[0] == "| family | runs | seeds | k = 0 | k = 1 |"
    assert md.splitlines()[2].startswith("| Nav_v0 | promp (lr=0.1) | 2 | 1.50 [") and "5.50 [" in md
    assert md.splitlines()[3].endswith("|  |")  # no second column for the one without steps
    assert r"Nav\_v0 & maml\_trpo & 1 & $1.50$" in tex and tex.count(r"\\") == 3


def test_the_figure_has_learning_and_adaptation_curves_for_every_family(two):
    pytest.importorskip("matplotlib")
    metrics = [{"env_steps": 10 * i, "return/step_0": 0.0, "return/step_1": float(i)} for i in range(1, 5)]
    two[0] = dataclasses.replace(two[0], group=dataclasses.replace(
        two[0].group, runs=tuple(dataclasses.replace(r, metrics=metrics) for r in two[0].group.runs)
    ))  # fmt: skip
    made = figures.comparison(two)
    learning, adaptation = made.axes
    assert learning.lines[0].get_ydata()[-1] == 4.0  # after adaptation, not before
    assert learning.lines[0].get_xdata()[-1] == 40.0
    assert adaptation.lines[0].get_ydata().tolist() == [1.5, 5.5]


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for algorithm, seed in (("maml_trpo", 0), ("maml_trpo", 1), ("promp", 0)):
        family = metarl.make("PointNavigation-v0", horizon=5)
        with metarl.MetaLearner(algorithm, family, seed=seed, **SMALL) as learner:
            learner.learn(2, run_dir=out / f"{algorithm}-{seed}", eval_every=1, eval_tasks=2)
    return out


def test_options_reach_the_evaluation_and_all_runs_meet_the_same_tasks(trained, tmp_path, monkeypatch, capsys):
    calls, evaluate, load = [], metarl.MetaLearner.evaluate, metarl.MetaLearner.load
    loaded = []
    monkeypatch.setattr(metarl.MetaLearner, "load",
                        lambda path, **kwargs: (loaded.append(Path(path).name), load(path, **kwargs))[1])  # fmt: skip

    def watched(self, n_tasks, **kwargs):
        found = evaluate(self, n_tasks, **kwargs)
        calls.append((n_tasks, kwargs, found))
        return found

    monkeypatch.setattr(metarl.MetaLearner, "evaluate", watched)
    each = [str(path) for path in sorted(trained.iterdir())]  # several directories, as one would type them
    words = ["compare", *each, "--tasks", "3", "--episodes", "2", "--steps", "2", "--checkpoint", "latest",
             "--seed", "9", "--out", str(tmp_path), "--no-figures"]  # fmt: skip
    options = {field.name for field in dataclasses.fields(CompareOptions)} - {"runs"}
    assert options == {word.removeprefix("--").removeprefix("no-") for word in words if word.startswith("--")}
    assert cli.run(words) == 0
    assert loaded == ["latest.safetensors"] * 3 and not (tmp_path / "comparison.png").exists()
    assert [(n, kwargs) for n, kwargs, _ in calls] == [(3, {"episodes": 2, "steps": 2, "seed": 9})] * 3
    goals = [found.tasks["goal"] for _, _, found in calls]
    assert all(np.array_equal(goal, goals[0]) for goal in goals)
    out = capsys.readouterr().out
    assert "maml_trpo" in out and "promp" in out and "after 2" in out
    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of_maml = np.mean([found.mean[2] for _, _, found in calls[:2]])
    assert float(next(r for r in rows if r["runs"] == "maml_trpo" and r["steps"] == "2")["mean"]) == pytest.approx(
        of_maml
    )


def test_figures_come_in_three_formats(trained, tmp_path):
    pytest.importorskip("matplotlib")
    assert (
        cli.run(["compare", str(trained / "promp-0"), "--tasks", "2", "--episodes", "2", "--out", str(tmp_path)]) == 0
    )
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for ending, start in starts.items():
        assert (tmp_path / f"comparison.{ending}").read_bytes().startswith(start)


def test_mistakes_are_one_line(trained, tmp_path):
    with pytest.raises(UsageError, match="--checkpoint must be best or latest, got 'newest'"):
        cli.run(["compare", str(trained), "--checkpoint", "newest"])
    with pytest.raises(ValueError, match=r"nowhere"):
        cli.run(["compare", str(tmp_path / "nowhere")])


def test_a_run_on_a_family_of_ones_own_says_what_it_needs(tmp_path):
    with metarl.MetaLearner("promp", Drift(), **SMALL) as learner:
        learner.learn(1, run_dir=tmp_path / "run", eval_every=0)
    with pytest.raises(ValueError, match="DriftProbe-v0"):
        cli.run(["compare", str(tmp_path / "run")])
