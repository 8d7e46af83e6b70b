"""`metarl compare`: runs that were trained one by one, on the same tasks, grouped by what they have in common.

A group is the runs of one family that differ in their seed alone. Its label says the algorithm and those settings in
which the groups of that algorithm differ.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from metarl.benchmark import statistics
from metarl.checkpoint import atomic_write
from metarl.printing import TextTable
from metarl.report.evaluation import Evaluation
from metarl.training.directory import CONFIG, RunDirectory, read_config


@dataclass(frozen=True)
class Run:
    """One run, as its directory describes it."""

    path: Path
    family: str
    algorithm: str
    seed: int
    settings: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    family: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Compared:
    """A group, with its runs' evaluations on the same tasks."""

    group: Group
    evaluations: tuple[Evaluation, ...]

    @property
    def returns(self) -> np.ndarray:
        """[seeds, steps + 1, tasks]."""
        steps = min(one.values.shape[1] for one in self.evaluations)
        return np.stack([one.values[:, :steps].T for one in self.evaluations])


def read_run(path: Path) -> Run:
    """The run in a directory.

    Raises:
        CheckpointError: there is none, or its config.json is not one.
    """
    config = read_config(path)
    return Run(path, config["family"]["id"], config["algorithm"], config["seed"], config["config"],
               RunDirectory(path).metrics())  # fmt: skip


def found_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at `paths`; a directory that is none, but holds some, stands for all of those.

    Raises:
        CheckpointError: nothing there.
    """
    runs = []
    for path in paths:
        inside = [] if (path / CONFIG).exists() else sorted(p.parent for p in path.glob(f"*/{CONFIG}"))
        runs += [read_run(p) for p in inside or [path]]
    return runs


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by family, algorithm and settings.

    Raises:
        ValueError: two runs of a group have the same seed, so that one would count twice.
    """
    together = dict[tuple[Any, ...], list[Run]]()
    for run in runs:
        key = (run.family, run.algorithm, repr(sorted(run.settings.items())))
        together.setdefault(key, []).append(run)
    groups = []
    for (family, algorithm, _), members in together.items():
        seeds = [run.seed for run in members]
        if twice := {seed for seed in seeds if seeds.count(seed) > 1}:
            same = [str(run.path) for run in members if run.seed in twice]
            raise ValueError(f"{' and '.join(same)} are runs of one kind with the same seed: name one of them")
        others = [m[0] for (f, a, _), m in together.items() if (f, a) == (family, algorithm)]
        groups.append(Group(_label(members[0], others), family, tuple(sorted(members, key=lambda run: run.seed))))
    return groups


def _label(run: Run, others: Sequence[Run]) -> str:
    """The algorithm, and the settings in which the runs `others` of it are not all alike."""
    differ = [
        name for name, value in run.settings.items()
        if any(other.settings.get(name, value) != value for other in others)
    ]  # fmt: skip
    settings = ", ".join(f"{name}={_short(run.settings[name])}" for name in differ)
    return run.algorithm + (f" ({settings})" if settings else "")


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Tables

COLUMNS = ("family", "runs", "seeds", "steps", "mean", "mean_low", "mean_high", "iqm", "iqm_low", "iqm_high", "success")


def rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row for every group and number of inner steps, with 95% intervals over seeds and tasks."""
    out = []
    for one in compared:
        for k in range(one.returns.shape[1]):
            scores = one.returns[:, k]
            mean, iqm = (statistics.interval(s, scores) for s in (statistics.mean, statistics.interquartile_mean))
            rates = [e.rates[:, k].mean() for e in one.evaluations if e.rates is not None]
            out.append({
                "family": one.group.family, "runs": one.group.label, "seeds": len(scores), "steps": k,
                "mean": statistics.mean(scores), "mean_low": mean[0], "mean_high": mean[1],
                "iqm": statistics.interquartile_mean(scores), "iqm_low": iqm[0], "iqm_high": iqm[1],
                "success": float(np.mean(rates)) if rates else None,
            })  # fmt: skip
    return out


def table(compared: Sequence[Compared], title: str = "") -> Table:
    """For a terminal: a column for every number of steps."""
    shown = TextTable(title=title)
    steps = max(one.returns.shape[1] for one in compared)
    for name in ("family", "runs", "seeds", *(f"after {k}" for k in range(steps))):
        shown.add_column(name, justify="left" if name in ("family", "runs") else "right", no_wrap=name != "runs")
    for one in compared:
        shown.add_row(one.group.family, one.group.label, str(len(one.evaluations)), *_cells(one, steps, "\\["))
    return shown


def _cells(one: Compared, steps: int, bracket: str = "[") -> list[str]:
    found = [row for row in rows([one])]
    cells = [f"{row['mean']:.2f} {bracket}{row['mean_low']:.2f}, {row['mean_high']:.2f}]" for row in found]
    return cells + [""] * (steps - len(cells))


def markdown(compared: Sequence[Compared]) -> str:
    """The same as a Markdown table."""
    steps = max(one.returns.shape[1] for one in compared)
    head = ["family", "runs", "seeds", *(f"k = {k}" for k in range(steps))]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [f"| {one.group.family} | {one.group.label} | {len(one.evaluations)} | "
              + " | ".join(_cells(one, steps)) + " |" for one in compared]  # fmt: skip
    return "\n".join(lines) + "\n"


def latex(compared: Sequence[Compared]) -> str:
    """The same as a LaTeX tabular, for `booktabs`."""
    steps = max(one.returns.shape[1] for one in compared)
    head = ["family", "runs", "seeds", *(f"$k = {k}$" for k in range(steps))]
    lines = [r"\begin{tabular}{ll" + "r" * (steps + 1) + "}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    for one in compared:
        cells = [f"${row['mean']:.2f}$ [${row['mean_low']:.2f}$, ${row['mean_high']:.2f}$]" for row in rows([one])]
        names = [_escaped(one.group.family), _escaped(one.group.label), str(len(one.evaluations))]
        lines.append(" & ".join([*names, *cells, *[""] * (steps - len(cells))]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "_%&#$" else c for c in text)


def write(compared: Sequence[Compared], out: Path) -> list[Path]:
    """comparison.csv, .md and .tex."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(compared))
    files = {"csv": text.getvalue(), "md": markdown(compared), "tex": latex(compared)}
    for ending, content in files.items():
        atomic_write(out / f"comparison.{ending}", content.encode())
    return [out / f"comparison.{ending}" for ending in files]
