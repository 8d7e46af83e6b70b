"""Pictures of a benchmark: return against adaptation episodes, every contender in the same axes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from metarl.benchmark import statistics
from metarl.benchmark.compare import Compared, Group
from metarl.benchmark.results import ORACLE, RANDOM, Curve
from metarl.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Those of Okabe and Ito, which most people with a colour vision deficiency can tell apart."""
MARKERS = "osD^vP*X"
"""A second way to tell curves apart, in grey too."""


def adaptation_curves(axes: "Axes", family: str, curves: Mapping[str, Curve]) -> None:
    """Mean return against episodes of adaptation with 95% intervals over seeds and tasks; dashed lines for contenders
    that do not adapt."""
    longest = max((curve.episodes[-1] for curve in curves.values()), default=0) or 1
    for i, (name, curve) in enumerate(curves.items()):
        colour, label = COLOURS[i % len(COLOURS)], curve.label
        mean = curve.returns.mean((0, 2))
        if len(mean) == 1:
            if name in (RANDOM, ORACLE):
                axes.plot([0, longest], [mean[0], mean[0]], ":", color="0.4", linewidth=1.2)
                axes.annotate(label, (longest, mean[0]), fontsize=7, ha="right", va="bottom", color="0.3")
            else:
                axes.plot([0, longest], [mean[0], mean[0]], "--", color=colour, linewidth=1.2, label=label)
            continue
        ends = [statistics.interval(statistics.mean, curve.returns[:, u], draws=500) for u in range(len(mean))]
        low, high = zip(*ends, strict=True)
        axes.plot(curve.episodes, mean, marker=MARKERS[i % len(MARKERS)], color=colour, label=label, markersize=4)
        axes.fill_between(curve.episodes, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="adaptation episodes per task", ylabel="mean return", title=family)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)


def figure(curves: Mapping[str, Mapping[str, Curve]]) -> "Figure":
    """One axes for every family."""
    made, axes = new_figure(len(curves), width=5.0, height=4.0)
    for ax, (family, of) in zip(axes, curves.items(), strict=True):
        adaptation_curves(ax, family, of)
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def comparison(compared: Sequence[Compared]) -> "Figure":
    """For every family, the learning curves of its groups and their adaptation curves."""
    families = list(dict.fromkeys(one.group.family for one in compared))
    made, axes = new_figure(2 * len(families), width=4.6, height=3.8)
    for i, family in enumerate(families):
        own = [one for one in compared if one.group.family == family]
        for n, one in enumerate(own):
            _learning(axes[2 * i], one.group, n)
            _adaptation(axes[2 * i + 1], one, n)
        axes[2 * i].set(xlabel="environment steps", ylabel="mean return after adaptation", title=f"{family}: training")
        axes[2 * i + 1].set(xlabel="inner steps or episodes", ylabel="mean return", title=f"{family}: test tasks")
        for ax in axes[2 * i : 2 * i + 2]:
            ax.legend(frameon=False, fontsize=7)
    return made


def _learning(axes: "Axes", group: Group, n: int) -> None:
    """Return after the last step of training against environment steps: mean of the seeds, and their range."""
    curves = []
    for run in group.runs:
        names = sorted((int(name.rpartition("_")[2]), name) for name in (run.metrics or [{}])[0]
                       if name.startswith("return/step_"))  # fmt: skip
        if names:
            curves.append(np.array([[row["env_steps"], row[names[-1][1]]] for row in run.metrics], dtype=float))
    if not curves:
        return
    grid = np.linspace(max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves), 200)
    values = np.array([np.interp(grid, c[:, 0], c[:, 1]) for c in curves])
    colour = COLOURS[n % len(COLOURS)]
    axes.plot(grid, values.mean(0), color=colour, label=group.label, linewidth=1.3)
    if len(values) > 1:
        axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _adaptation(axes: "Axes", one: Compared, n: int) -> None:
    """Mean over seeds and tasks against steps, with 95% intervals."""
    returns, colour = one.returns, COLOURS[n % len(COLOURS)]
    steps = range(returns.shape[1])
    ends = [statistics.interval(statistics.mean, returns[:, k], draws=500) for k in steps]
    low, high = zip(*ends, strict=True)
    axes.plot(steps, returns.mean((0, 2)), marker=MARKERS[n % len(MARKERS)], color=colour, markersize=4,
              label=one.group.label)  # fmt: skip
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
