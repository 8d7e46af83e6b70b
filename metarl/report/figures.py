"""Pictures of runs: training curves, adaptation curves, paths before and after adaptation. Needs matplotlib."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl.checkpoint import atomic_write
from metarl.report.evaluation import Evaluation
from metarl.tasks import TaskFamily, task_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LABELS = {"return": "mean return", "success": "success rate"}


class MissingExtraError(ImportError):
    """An optional package is needed and missing."""


def new_figure(columns: int, width: float = 4.2, height: float = 3.6) -> tuple["Figure", list["Axes"]]:
    """A figure with this many axes side by side, without touching matplotlib's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("figures need matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(width * columns, height), dpi=150, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a PNG, atomically."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    atomic_write(Path(path), data.getvalue())
    return Path(path)


def training_curve(
    axes: "Axes", metrics: Sequence[Mapping[str, Any]], of: str = "return", step: str = "inner step"
) -> None:
    """Return (or `of="success"`) before and after adaptation against meta-iterations, from a run's metrics. `step` is
    what is counted."""
    if not metrics:
        axes.text(0.5, 0.5, "no metrics", ha="center", transform=axes.transAxes)
        return
    steps = sorted((k for k in metrics[0] if k.startswith(f"{of}/step_")), key=lambda k: int(k.rpartition("_")[2]))
    iterations = [row["iteration"] for row in metrics]
    for k, name in enumerate(steps):
        number = int(name.rpartition("_")[2])
        label = "before adaptation" if k == 0 else f"after {number} {step}{'s' if number > 1 else ''}"
        axes.plot(iterations, [row[name] for row in metrics], color=_colour(k), label=label, linewidth=1.2)
    axes.set(xlabel="meta-iteration", ylabel=_LABELS[of], title="meta-training (train tasks)")
    axes.legend(frameon=False, fontsize=8)


def adaptation_curve(axes: "Axes", evaluations: Mapping[str, Evaluation], of: str = "return") -> None:
    """Return (or `of="success"`) against inner steps; the band is the 95% bootstrap interval of the mean over tasks."""
    name = {"return": "mean", "success": "success"}[of]
    for i, (label, evaluation) in enumerate(evaluations.items()):
        rows = evaluation.rows()
        k = [row.step for row in rows]
        mean, low, high = ([getattr(row, name + end) for row in rows] for end in ("", "_low", "_high"))
        axes.plot(k, mean, "o-", color=f"C{i}", label=label, markersize=4)
        axes.fill_between(k, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
    longest = max(evaluation.returns.shape[1] for evaluation in evaluations.values())
    if longest <= 12:
        axes.set_xticks(range(longest))
    first = next(iter(evaluations.values()))
    splits = " and ".join(dict.fromkeys(evaluation.split for evaluation in evaluations.values()))
    title = f"adaptation ({len(first.returns)} {splits} tasks)"
    axes.set(xlabel=f"{counted(first)}s", ylabel=_LABELS[of], title=title)
    if len(evaluations) > 1:
        axes.legend(frameon=False, fontsize=8)


def counted(evaluation: Evaluation) -> str:
    """What an adaptation curve counts: inner steps, or the episodes of a trial, which have no size."""
    return "episode" if None in evaluation.step_sizes else "inner step"


def paths(axes: Sequence["Axes"], family: TaskFamily, evaluation: Evaluation, index: int, episodes: int = 8) -> None:
    """What the policy does in test task `index`: one axes for before adaptation, one for after the last step.

    Needs a family with `draw` and an evaluation made with `details=True`.
    """
    rollouts = evaluation.details.rollouts
    for ax, step in zip(axes, (0, len(rollouts) - 1), strict=True):
        rollout = rollouts[step]
        observations = [
            rollout.raw_obs[index, : int(rollout.mask[index, :, e].sum()), e].cpu().numpy()
            for e in range(min(episodes, rollout.mask.shape[2]))
        ]
        family.draw(ax, task_at(evaluation.tasks, index), observations)  # type: ignore[attr-defined]
        when = "before adaptation" if step == 0 else f"after {step} {counted(evaluation)}{'s' if step > 1 else ''}"
        ax.set_title(f"{when}: {evaluation.returns[index, step]:.1f}")


def typical_task(evaluation: Evaluation) -> int:
    """The test task whose return after the last step is the median: a picture that is not picked by hand."""
    last = evaluation.returns[:, -1]
    return int(np.argsort(last)[len(last) // 2])


def evaluation_figure(
    family: TaskFamily, evaluation: Evaluation, metrics: Sequence[Mapping[str, Any]] = ()
) -> "Figure":
    """Training curve (where there are metrics), adaptation curve, both again for the success rate (where there is
    one), and paths (where the family can draw them)."""
    drawable = hasattr(family, "draw") and evaluation.details is not None
    shown = ["return"] if evaluation.success_rates is None else ["return", "success"]
    logged = [of for of in shown if metrics and f"{of}/step_0" in metrics[0]]
    figure, axes = new_figure(len(shown) + len(logged) + 2 * drawable)
    rest = list(axes)
    for of in shown:
        if of in logged:
            training_curve(rest.pop(0), metrics, of, counted(evaluation))
        adaptation_curve(rest.pop(0), {family.id: evaluation}, of)
    if drawable:
        paths(rest, family, evaluation, typical_task(evaluation))
    return figure


def comparison_figure(evaluations: Sequence[Evaluation], metrics: Sequence[Mapping[str, Any]] = ()) -> "Figure":
    """Training curve (where there are metrics) and the adaptation curves of several splits in the same axes, both again
    for the success rate (where all have one)."""
    reported = all(one.success_rates is not None for one in evaluations)
    shown = ["return", "success"] if reported else ["return"]
    logged = [of for of in shown if metrics and f"{of}/step_0" in metrics[0]]
    figure, axes = new_figure(len(shown) + len(logged))
    rest = list(axes)
    for of in shown:
        if of in logged:
            training_curve(rest.pop(0), metrics, of, counted(evaluations[0]))
        adaptation_curve(rest.pop(0), {f"{one.split} tasks": one for one in evaluations}, of)
    return figure


def _colour(step: int) -> str:
    return ("0.6", *(f"C{i}" for i in range(9)))[min(step, 9)]
