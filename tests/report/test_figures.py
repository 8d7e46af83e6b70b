"""Pictures: that they show the numbers, and that drawing leaves matplotlib's global state alone."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from probes import Stops
from tiny_runs import point, tiny

from metarl.report import figures
from metarl.report.evaluation import Evaluation
from metarl.report.figures import MissingExtraError
from metarl.report.measures import LOSS
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.directory import RunDirectory

matplotlib = pytest.importorskip("matplotlib")
METRICS = [{"iteration": i, "return/step_0": -2.0 - i, "return/step_1": -1.0 * i} for i in (1, 2, 3)]


def evaluation(returns: Any) -> Evaluation:
    returns = np.asarray(returns, float)
    return Evaluation(
        returns, (0.5,) * (returns.shape[1] - 1), {"episodes": 4}, {"goal": np.zeros((len(returns), 2))}, 0
    )


def axes(columns: int = 1) -> Any:
    found = figures.new_figure(columns)[1]
    return found[0] if columns == 1 else found


def test_a_picture_is_a_png_with_something_in_it(tmp_path):
    found = tiny().evaluate(3, details=True, steps=1)
    path = figures.save_figure(figures.evaluation_figure(point(), found, METRICS), tmp_path / "a" / "x.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_an_empty_picture_has_one_colour(tmp_path):
    # The control of the test above.
    figure, (ax,) = figures.new_figure(1)
    ax.set_axis_off()
    pixels = matplotlib.image.imread(figures.save_figure(figure, tmp_path / "x.png"))
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) == 1


@pytest.mark.parametrize(
    ("metrics", "details", "count"), [((), False, 1), (METRICS, False, 2), ((), True, 3), (METRICS, True, 4)]
)
def test_there_is_one_picture_for_everything_there_is_to_show(metrics, details, count):
    found = tiny().evaluate(3, details=details, steps=1)
    assert len(figures.evaluation_figure(point(), found, metrics).axes) == count


def test_a_family_that_cannot_draw_gets_curves_only():
    found = tiny(Stops()).evaluate(3, details=True, steps=1)
    assert len(figures.evaluation_figure(Stops(), found).axes) == 1


def test_the_training_curve_shows_the_logged_returns():
    ax = axes()
    figures.training_curve(ax, METRICS)
    assert [line.get_xydata().tolist() for line in ax.lines] == [
        [[1, -3], [2, -4], [3, -5]],
        [[1, -1], [2, -2], [3, -3]],
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before adaptation", "after 1 inner step"]


def test_the_training_curve_orders_steps_by_number():
    ax = axes()
    figures.training_curve(ax, [{"iteration": 1, **{f"return/step_{k}": float(k) for k in (10, 2, 0, 1)}}])
    assert [line.get_ydata()[0] for line in ax.lines] == [0, 1, 2, 10]


def test_no_metrics_say_so():
    ax = axes()
    figures.training_curve(ax, [])
    assert [text.get_text() for text in ax.texts] == ["no metrics"]


def test_the_adaptation_curve_shows_means_and_intervals():
    found, ax = evaluation([[1, 10], [2, 20], [3, 60]]), axes()
    figures.adaptation_curve(ax, {"x": found})
    assert ax.lines[0].get_xydata().tolist() == [[0, 2], [1, 30]]
    band = ax.collections[0].get_paths()[0].vertices
    rows = found.rows()
    assert {tuple(v) for v in band} == {(row.step, y) for row in rows for y in (row.mean_low, row.mean_high)}
    assert "3 test tasks" in ax.get_title()


def test_the_adaptation_curve_shows_the_mean_and_not_the_interquartile_mean():
    found, ax = evaluation([[0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [0, 6], [0, 7], [8, 100]]), axes()
    figures.adaptation_curve(ax, {"x": found})
    assert ax.lines[0].get_ydata().tolist() == [1.0, 16.0]
    assert [row.iqm for row in found.rows()] == [0.0, 4.5]  # of the middle four, which would be another line
    band = ax.collections[0].get_paths()[0].vertices
    assert {tuple(v) for v in band} == {(r.step, y) for r in found.rows() for y in (r.mean_low, r.mean_high)}


def test_the_success_curve_shows_success_rates():
    found, ax = evaluation([[1, 2], [3, 4], [5, 6], [7, 8]]), axes()
    object.__setattr__(found, "rates", np.array([[0.0, 0.5], [0.25, 0.5], [0.25, 1.0], [0.5, 1.0]]))
    figures.adaptation_curve(ax, {"x": found}, "success")
    assert ax.lines[0].get_ydata().tolist() == [0.25, 0.75]
    band = ax.collections[0].get_paths()[0].vertices
    assert {tuple(v) for v in band} == {(r.step, y) for r in found.rows() for y in (r.rate_low, r.rate_high)}


def test_every_compared_curve_is_named_and_every_step_has_a_tick():
    ax = axes()
    figures.adaptation_curve(ax, {"long": evaluation([[1, 2, 3], [4, 5, 6]]), "short": evaluation([[1, 2], [3, 4]])})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["long", "short"]
    assert ax.get_xticks().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("last", "task"), [([5, 1, 9], 0), ([1, 2, 3, 4, 5], 2), ([7], 0), ([3, 100, 2, 1], 0), ([2, 2, 2], 1)]
)
def test_the_typical_task_is_the_median(last, task):
    returns = np.stack([np.zeros(len(last)), last], 1)
    assert figures.typical_task(evaluation(returns)) == task


class Pen:
    """A family that writes down what it is asked to draw."""

    def __init__(self) -> None:
        self.drawn: list[tuple[Any, Any]] = []

    def draw(self, axes: Any, task: Any, observations: Any) -> None:
        self.drawn.append((task, observations))


def test_paths_show_the_valid_steps_before_and_after():
    family, pen = Stops(), Pen()  # task k stops after k + 1 steps; the observation is the time
    found = tiny(family).evaluate(3, details=True, steps=2)
    pair = axes(2)
    figures.paths(pair, pen, found, 2, episodes=1)
    for task, observations in pen.drawn:
        assert {name: value.tolist() for name, value in task.items()} == {"steps": 3}
        assert [x.tolist() for x in observations] == [[[0, 0], [1, 1], [2, 2]]]
    assert [ax.get_title() for ax in pair] == ["before adaptation: 3.0", "after 2 inner steps: 3.0"]


def test_paths_are_those_before_the_first_and_after_the_last_step():
    rollouts = [SimpleNamespace(raw_obs=tiny().evaluate(1, details=True, steps=0).details.rollouts[0].obs * 0 + k)
                for k in range(3)]  # fmt: skip
    for rollout in rollouts:
        rollout.mask = rollout.raw_obs[..., 0] * 0 + 1
    found = evaluation([[1, 2, 3]])
    object.__setattr__(found, "details", SimpleNamespace(rollouts=rollouts))
    pen = Pen()
    figures.paths(axes(2), pen, found, 0)
    assert [float(observations[0][0, 0]) for _, observations in pen.drawn] == [0, 2]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"figures need matplotlib: pip install matplotlib$"):
        figures.new_figure(1)


def test_pyplot_is_not_touched(monkeypatch, tmp_path):
    pyplot = sys.modules.get("matplotlib.pyplot")
    open_figures = pyplot.get_fignums() if pyplot else []
    settings = dict(matplotlib.rcParams)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
        patch.delattr(matplotlib, "pyplot", raising=False)
        found = tiny().evaluate(2, details=True, steps=1)
        figures.save_figure(figures.evaluation_figure(point(), found, METRICS), tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == settings
    assert (pyplot.get_fignums() if pyplot else []) == open_figures


# ---------------------------------------------------------------------------------------------------------------------
# Few-shot learning


def losses(accuracies: Any = None) -> Evaluation:
    return Evaluation(np.array([[4.0, 1.0], [6.0, 2.0]]), (0.5,), {"shots": 2, "queries": 3}, {}, 0, rates=accuracies,
                      measure=LOSS)  # fmt: skip


RIGHT = np.array([[0.2, 0.9], [0.4, 0.7]])
FEW_SHOT_METRICS = [{"iteration": i, "loss/query": 3.0 / i, "eval/step_0": None} for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("accuracies", "metrics", "labels"),
    [(None, (), ["mean loss"]), (RIGHT, (), ["mean loss", "accuracy"]),
     (RIGHT, FEW_SHOT_METRICS, ["mean loss", "mean loss", "accuracy"])],
)  # fmt: skip
def test_losses_and_accuracies_have_their_panels(accuracies, metrics, labels):
    figure = figures.evaluation_figure(Sinusoid(), losses(accuracies), metrics)
    assert [ax.get_ylabel() for ax in figure.axes] == labels
    if metrics:
        (line,) = figure.axes[0].lines
        assert line.get_xydata().tolist() == [[1, 3.0], [2, 1.5], [3, 1.0]] and line.get_label() == "after adaptation"
    if accuracies is not None:
        assert figure.axes[-1].lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.8])
    assert figure.axes[-1].get_xlabel() == "inner steps"


def test_a_few_shot_run_is_drawn_as_it_is(tmp_path):
    learner = FewShotLearner(Sinusoid(), n_tasks=2, hidden=(4,), device="cpu").learn(2, run_dir=tmp_path)
    found = learner.evaluate(3, steps=2)
    figure = figures.evaluation_figure(learner.family, found, RunDirectory(tmp_path).metrics())
    assert len(figure.axes) == 2 and figure.axes[1].lines[0].get_ydata().tolist() == found.loss.tolist()
    both = figures.comparison_figure([found, learner.evaluate(3, steps=2, split="validation")])
    assert [text.get_text() for text in both.axes[0].get_legend().get_texts()] == ["test tasks", "validation tasks"]
