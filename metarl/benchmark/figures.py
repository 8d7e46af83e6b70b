"""Pictures of a benchmark: return against adaptation episodes, every contender in the same axes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from metarl.benchmark import statistics
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
