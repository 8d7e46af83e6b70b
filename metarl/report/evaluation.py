"""How well adaptation works: the adaptation curve on tasks of a split, with its uncertainty over tasks."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from rich.table import Table

from metarl.arguments import positive_sizes, whole
from metarl.checkpoint import atomic_write, write_json
from metarl.printing import TextTable, as_text
from metarl.recurrent.trials import shown_episodes
from metarl.report.step_sizes import Choice
from metarl.splits import TEST
from metarl.tasks import Tasks

FINAL, PERIODIC, STEP_SIZES = 1, 2, 3
"""Purposes of an evaluation: the final one; the periodic ones of training, which choose the best state; and the choice
of step sizes. Each draws its own tasks, the latter two from the validation split."""
GIVEN = "given"
"""What stands for the split where tasks were given."""


def evaluation_seed(seed: int, purpose: int) -> int:
    """The seed of an evaluation's tasks and episodes: the same for every state of a run, shared with no training."""
    return int(np.random.SeedSequence([seed, purpose, 0xE7A1]).generate_state(1, np.uint64)[0] >> 2)


@dataclass(frozen=True)
class Row:
    """The return after `step` inner steps, over tasks."""

    step: int
    mean: float
    mean_low: float
    mean_high: float
    iqm: float
    iqm_low: float
    iqm_high: float
    success: float | None = None
    """Mean success rate over tasks; None where the environments report no success."""
    success_low: float | None = None
    success_high: float | None = None


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Returns of adapting to K tasks by S inner steps."""

    returns: np.ndarray
    """[K, S + 1]: mean undiscounted return over each task's episodes after 0, 1, ..., S inner steps."""
    step_sizes: tuple[float | None, ...]
    """The S inner step sizes; None for steps that have none (further episodes of a trial)."""
    episodes: int
    """Episodes per task before and after every step; of RL2: trials per task."""
    tasks: Tasks
    seed: int
    details: Any = None
    """What the algorithm's `evaluate` returned (all rollouts and parameters), if it was asked for."""
    success_rates: np.ndarray | None = None
    """[K, S + 1]: share of each task's episodes in which some step was a success, where environments report it."""
    choice: Choice | None = None
    """How the sizes of steps beyond those of training were chosen; None where all were given or are training's."""
    split: str = TEST
    """The split that the tasks were drawn from; `"given"` if they were given."""

    def __repr__(self) -> str:
        return as_text(self.table(steps=shown_episodes(self.returns.shape[1])))

    @property
    def mean(self) -> np.ndarray:
        """Mean return over tasks after each number of steps, [S + 1]."""
        return self.returns.mean(0)

    def rows(self, steps: Iterable[int] | None = None) -> list[Row]:
        """Mean and interquartile mean over tasks, each with a 95% bootstrap interval (percentiles, 10,000 draws), after
        these numbers of steps (by default all)."""
        rates = [None] * len(self.returns[0]) if self.success_rates is None else list(self.success_rates.T)
        steps = range(self.returns.shape[1]) if steps is None else steps
        return [_row(step, self.returns[:, step], rates[step]) for step in steps]

    def table(self, title: str = "", steps: Iterable[int] | None = None) -> Table:
        """`rows` for a terminal, and for `print`."""
        table = TextTable(title=title or f"{len(self.returns)} {self.split} tasks, {self.episodes} episodes each")
        table.caption = None if self.choice is None else self.choice.text()
        last = [] if self.success_rates is None else ["success [95%]"]
        for name in ("steps", "size", "mean [95% interval]", "interquartile mean [95%]", *last):
            table.add_column(name, justify="right")
        for row in self.rows(steps):
            size = self.step_sizes[row.step - 1] if row.step else None
            shown = "" if size is None else f"{size:g}"
            rate = [f"{row.success:.0%} \\[{row.success_low:.0%}, {row.success_high:.0%}]"] if last else []
            table.add_row(str(row.step), shown, f"{row.mean:.2f} \\[{row.mean_low:.2f}, {row.mean_high:.2f}]",
                          f"{row.iqm:.2f} \\[{row.iqm_low:.2f}, {row.iqm_high:.2f}]", *rate)  # fmt: skip
        return table

    def save(self, directory: Path) -> list[Path]:
        """Write `adaptation.csv` (one row per number of steps) and `adaptation.json` (also every task's returns
        and, where environments report it, success rates). Of any split but the test split they are called
        `adaptation-SPLIT`, so that no evaluation replaces one of another split."""
        rows = [{name: x for name, x in asdict(row).items() if x is not None} for row in self.rows()]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        csv_path, json_path = (Path(directory) / file_name("adaptation", self.split, end) for end in ("csv", "json"))
        atomic_write(csv_path, text.getvalue().encode())
        no_nan = [{name: None if value != value else value for name, value in row.items()} for row in rows]
        write_json(json_path, {
            "split": self.split, "rows": no_nan,
            "step_sizes": list(self.step_sizes), "episodes": self.episodes, "seed": self.seed,
            "step_sizes_chosen": None if self.choice is None else self.choice.as_data(),
            "tasks": {name: value.tolist() for name, value in self.tasks.items()},
            "returns": self.returns.tolist(),
            **({} if self.success_rates is None else {"success_rates": self.success_rates.tolist()}),
        })  # fmt: skip
        return [csv_path, json_path]


def side_by_side(evaluations: Sequence[Evaluation], title: str = "") -> Table:
    """The mean returns of evaluations on several splits as one table, and success rates where they are reported."""
    table = TextTable(title=title or f"{len(evaluations[0].returns)} tasks of each split")
    choices = {one.choice.text(): None for one in evaluations if one.choice is not None}
    table.caption = "; ".join(choices) or None
    for name in ("steps", "size"):
        table.add_column(name, justify="right")
    for one in evaluations:
        table.add_column(f"{one.split} [95% interval]", justify="right")
        if one.success_rates is not None:
            table.add_column(f"{one.split}, success [95%]", justify="right")
    for rows in zip(*(one.rows() for one in evaluations), strict=True):
        size = evaluations[0].step_sizes[rows[0].step - 1] if rows[0].step else None
        cells = ["" if size is None else f"{size:g}"]
        for row in rows:
            cells.append(f"{row.mean:.2f} \\[{row.mean_low:.2f}, {row.mean_high:.2f}]")
            if row.success is not None:
                cells.append(f"{row.success:.0%} \\[{row.success_low:.0%}, {row.success_high:.0%}]")
        table.add_row(str(rows[0].step), *cells)
    return table


def file_name(name: str, split: str, ending: str) -> str:
    """The name of a result's file; only those of the test split have no split in it."""
    return f"{name}.{ending}" if split == TEST else f"{name}-{split}.{ending}"


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


def _row(step: int, x: np.ndarray, rate: np.ndarray | None) -> Row:
    middle = float(interquartile_mean(x)), *bootstrap_interval(x, interquartile_mean)
    success = () if rate is None else (float(rate.mean()), *bootstrap_interval(rate))
    return Row(step, float(x.mean()), *bootstrap_interval(x), *middle, *success)


def checked_step_sizes(
    steps: int | None, sizes: Sequence[float] | None, usual: Callable[[int], tuple[float, ...]], otherwise: int
) -> tuple[float, ...]:
    """The inner step sizes that `steps` and `sizes`, each possibly None, ask for.

    Args:
        usual: number of steps -> their sizes where none are given.
        otherwise: how many steps where neither is given.

    Raises:
        ValueError: a negative number of steps, a size that is not positive and finite, or two that contradict.
    """
    steps = None if steps is None else whole("steps", steps)
    if steps is not None and steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    if sizes is None:
        return usual(otherwise if steps is None else steps)
    found = positive_sizes("step_sizes", sizes)
    if steps is not None and steps != len(found):
        raise ValueError(f"steps={steps} contradicts the {len(found)} step_sizes {list(found)}: leave one out")
    return found
