"""Pictures of runs: training curves, adaptation curves, paths before and after adaptation. Needs matplotlib."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl.checkpoint import atomic_write
from metarl.report.evaluation import Evaluation
from metarl.tasks import TaskFamily, task_at
from metarl.training.metrics import numbered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LABELS = {"return": "mean return", "success": "success rate", "loss": "mean loss", "accuracy": "accuracy"}


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
    """Write the figure, atomically, in the format of the path's ending: .png, .pdf or .svg."""
    data = io.BytesIO()
    figure.savefig(data, format=Path(path).suffix.removeprefix(".") or "png")
    atomic_write(Path(path), data.getvalue())
    return Path(path)


def training_curve(
    axes: "Axes", metrics: Sequence[Mapping[str, Any]], of: str = "return", step: str = "inner step"
) -> None:
    """Return (or `of="success"`) before and after adaptation against meta-iterations, from a run's metrics; of "loss",
    which is logged after adaptation only, that. `step` is what is counted."""
    if not metrics:
        axes.text(0.5, 0.5, "no metrics", ha="center", transform=axes.transAxes)
        return
    iterations = [row["iteration"] for row in metrics]
    for k, (name, number) in enumerate(_logged(of, metrics)):
        label = "after adaptation" if number is None else f"after {number} {step}{'s' if number > 1 else ''}"
        label = "before adaptation" if number == 0 else label
        colour = _colour(1 if number is None else k)
        axes.plot(iterations, [row[name] for row in metrics], color=colour, label=label, linewidth=1.2)
    axes.set(xlabel="meta-iteration", ylabel=_LABELS[of], title="meta-training (train tasks)")
    axes.legend(frameon=False, fontsize=8)


def _logged(of: str, metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, int | None]]:
    """The columns of a run's metrics that show `of` in training, and after how many steps each is (None: all)."""
    names = list(metrics[0]) if metrics else []
    steps: list[tuple[str, int | None]] = list(numbered(names, f"{of}/step_").items())
    whole: list[tuple[str, int | None]] = [(name, None) for name in names if name == f"{of}/query"]
    return [*steps, *whole]


def adaptation_curve(axes: "Axes", evaluations: Mapping[str, Evaluation], of: str | None = None) -> None:
    """Return or loss (or `of="success"`, `of="accuracy"`) against steps; the band is the 95% bootstrap interval of the
    mean over tasks."""
    first = next(iter(evaluations.values()))
    of = of or first.measure.name
    name = "rate" if of == first.measure.rate else "mean"
    for i, (label, evaluation) in enumerate(evaluations.items()):
        rows = evaluation.rows()
        k = [row.step for row in rows]
        mean, low, high = ([getattr(row, name + end) for row in rows] for end in ("", "_low", "_high"))
        axes.plot(k, mean, "o-", color=f"C{i}", label=label, markersize=4)
        axes.fill_between(k, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
    longest = max(evaluation.values.shape[1] for evaluation in evaluations.values())
    if longest <= 12:
        axes.set_xticks(range(longest))
    splits = " and ".join(dict.fromkeys(evaluation.split for evaluation in evaluations.values()))
    title = f"adaptation ({len(first.values)} {splits} tasks)"
    axes.set(xlabel=f"{first.unit}s", ylabel=_LABELS[of], title=title)
    if len(evaluations) > 1:
        axes.legend(frameon=False, fontsize=8)


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
        family.draw(ax, task_at(dict(evaluation.tasks), index), observations)  # type: ignore[attr-defined]
        when = "before adaptation" if step == 0 else f"after {step} {evaluation.unit}{'s' if step > 1 else ''}"
        ax.set_title(f"{when}: {evaluation.values[index, step]:.1f}")


def typical_task(evaluation: Evaluation) -> int:
    """The test task whose return or loss after the last step is the median: a picture that is not picked by hand."""
    last = evaluation.values[:, -1]
    return int(np.argsort(last)[len(last) // 2])


def evaluation_figure(family: Any, evaluation: Evaluation, metrics: Sequence[Mapping[str, Any]] = ()) -> "Figure":
    """Training curve (where there are metrics), adaptation curve, both again for the success rate or the accuracy
    (where there is one), and paths (where the family can draw them)."""
    drawable = hasattr(family, "draw") and evaluation.details is not None
    shown = _shown([evaluation])
    logged = [of for of in shown if _logged(of, metrics)]
    figure, axes = new_figure(len(shown) + len(logged) + 2 * drawable)
    rest = list(axes)
    for of in shown:
        if of in logged:
            training_curve(rest.pop(0), metrics, of, evaluation.unit)
        adaptation_curve(rest.pop(0), {family.id: evaluation}, of)
    if drawable:
        paths(rest, family, evaluation, typical_task(evaluation))
    return figure


def comparison_figure(evaluations: Sequence[Evaluation], metrics: Sequence[Mapping[str, Any]] = ()) -> "Figure":
    """Training curve (where there are metrics) and the adaptation curves of several splits in the same axes, both again
    for the success rate or the accuracy (where all have one)."""
    shown = _shown(evaluations)
    logged = [of for of in shown if _logged(of, metrics)]
    figure, axes = new_figure(len(shown) + len(logged))
    rest = list(axes)
    for of in shown:
        if of in logged:
            training_curve(rest.pop(0), metrics, of, evaluations[0].unit)
        adaptation_curve(rest.pop(0), {f"{one.split} tasks": one for one in evaluations}, of)
    return figure


def _shown(evaluations: Sequence[Evaluation]) -> list[str]:
    measure = evaluations[0].measure
    return [measure.name, measure.rate] if all(one.rates is not None for one in evaluations) else [measure.name]


def _colour(step: int) -> str:
    return ("0.6", *(f"C{i}" for i in range(9)))[min(step, 9)]
