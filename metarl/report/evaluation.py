"""Evaluation of adaptation: the adaptation curve on the tasks of a split, with its uncertainty over tasks.

The result type is the same for all methods: gradient methods and RL2, whose tasks have returns, and few-shot learning,
whose tasks have losses (`metarl.report.measures`).
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from metarl.arguments import positive_sizes, whole
from metarl.checkpoint import atomic_write, write_json
from metarl.printing import TextTable, as_text
from metarl.recurrent.trials import shown_episodes
from metarl.report.measures import RETURN, Measure
from metarl.report.statistics import bootstrap_interval, interquartile_mean
from metarl.report.step_sizes import Choice
from metarl.splits import TEST

FINAL, PERIODIC, STEP_SIZES = 1, 2, 3
"""Purposes of an evaluation: the final one; the periodic ones of training, which choose the best state; and the choice
of step sizes. Each draws its own tasks, the latter two from the validation split."""
GIVEN = "given"
"""Stands for the split if tasks were given."""


def evaluation_seed(seed: int, purpose: int) -> int:
    """The seed of an evaluation's tasks and episodes: the same for every state of a run, and never used by training."""
    return int(np.random.SeedSequence([seed, purpose, 0xE7A1]).generate_state(1, np.uint64)[0] >> 2)


@dataclass(frozen=True)
class Row:
    """The return or loss after `step` units of adaptation, over tasks, with 95% intervals."""

    step: int
    mean: float
    mean_low: float
    mean_high: float
    iqm: float | None = None
    """The interquartile mean; None if the measure does not use it."""
    iqm_low: float | None = None
    iqm_high: float | None = None
    rate: float | None = None
    """Mean success rate or accuracy over tasks; None if there is none."""
    rate_low: float | None = None
    rate_high: float | None = None


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The result of adapting to K tasks by S steps.

    The numbers are also available under the names of what is measured: `returns`, `success_rates` and `episodes`, or
    `losses`, `accuracies`, `shots` and `queries`.
    """

    values: np.ndarray
    """[K, S + 1]: each task's mean undiscounted return, or mean loss on its query set, after 0, 1, ..., S steps."""
    step_sizes: tuple[float | None, ...]
    """The S inner step sizes, without learned factors; None for steps without a size (episodes of a trial)."""
    amounts: Mapping[str, int]
    """The data of each task: `episodes` before and after every step (of RL2: trials), or `shots` and `queries`."""
    tasks: Mapping[str, np.ndarray]
    """The task parameters, each [K, ...]; empty if a family of sets does not provide them."""
    seed: int
    details: Any = None
    """What the algorithm's `evaluate` returned (all rollouts and parameters), if it was asked for."""
    rates: np.ndarray | None = None
    """[K, S + 1]: fraction of each task's episodes with a success, or of its query set predicted correctly; None if not
    reported."""
    choice: Choice | None = None
    """How the sizes of steps beyond those of training were chosen; None if all were given or are training's."""
    split: str = TEST
    """The split that the tasks were drawn from; `"given"` if they were given."""
    measure: Measure = RETURN
    unit: str = "inner step"
    """The unit of adaptation: "inner step", or "episode" of a trial."""

    def __repr__(self) -> str:
        return as_text(self.table(steps=shown_episodes(self.values.shape[1])))

    @property
    def mean(self) -> np.ndarray:
        """Mean return or loss over tasks after each number of steps, [S + 1]."""
        return self.values.mean(0)

    @property
    def returns(self) -> np.ndarray:
        """`values`, where they are returns."""
        self._check("return", "returns")
        return self.values

    @property
    def success_rates(self) -> np.ndarray | None:
        """`rates`, beside returns."""
        self._check("return", "success_rates")
        return self.rates

    @property
    def episodes(self) -> int:
        """Episodes per task before and after every step; of RL2: trials per task."""
        self._check("return", "episodes")
        return self.amounts["episodes"]

    @property
    def losses(self) -> np.ndarray:
        """`values`, where they are losses."""
        self._check("loss", "losses")
        return self.values

    @property
    def accuracies(self) -> np.ndarray | None:
        """`rates`, beside losses."""
        self._check("loss", "accuracies")
        return self.rates

    @property
    def loss(self) -> np.ndarray:
        """Mean loss over tasks after each number of steps, [S + 1]."""
        self._check("loss", "loss")
        return self.mean

    @property
    def accuracy(self) -> np.ndarray | None:
        """Mean accuracy over tasks after each number of steps, [S + 1]."""
        return None if self.accuracies is None else self.accuracies.mean(0)

    @property
    def shots(self) -> int:
        """Examples in a support set, of each class where there are classes."""
        self._check("loss", "shots")
        return self.amounts["shots"]

    @property
    def queries(self) -> int:
        """Examples in a query set, likewise."""
        self._check("loss", "queries")
        return self.amounts["queries"]

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """`tasks`, of few-shot learning."""
        self._check("loss", "parameters")
        return self.tasks

    def _check(self, measure: str, name: str) -> None:
        if self.measure.name != measure:
            raise AttributeError(f"this evaluation is of {self.measure.values} and has no {name}: values, rates and "
                                 f"tasks are there in any")  # fmt: skip

    def rows(self, steps: Iterable[int] | None = None) -> list[Row]:
        """Mean and interquartile mean over tasks, each with a 95% bootstrap interval (percentiles, 10,000 draws), after
        these numbers of steps (by default all)."""
        steps = range(self.values.shape[1]) if steps is None else steps
        rates = self.rates
        return [_row(k, self.values[:, k], None if rates is None else rates[:, k], self.measure) for k in steps]

    def table(self, title: str = "", steps: Iterable[int] | None = None) -> Table:
        """`rows` for a terminal, and for `print`."""
        amounts = ", ".join(f"{n} {name}" for name, n in self.amounts.items())
        table = TextTable(title=title or f"{len(self.values)} {self.split} tasks, {amounts} each")
        table.caption = None if self.choice is None else self.choice.text()
        columns = ["steps", "size", f"{self.measure.column} [95% interval]"]
        columns += ["interquartile mean [95%]"] if self.measure.interquartile else []
        columns += [] if self.rates is None else [f"{self.measure.rate} [95%]"]
        for name in columns:
            table.add_column(name, justify="right")
        for row in self.rows(steps):
            cells = [_mean(row, self.measure)]
            if row.iqm is not None:
                cells.append(_cell(row.iqm, row.iqm_low, row.iqm_high, f".{self.measure.digits}f"))
            table.add_row(str(row.step), _size(self, row.step), *cells, *_rate(row, self.measure))
        return table

    def save(self, directory: Path | str) -> list[Path]:
        """Write a CSV file (one row per number of steps) and a JSON file (also every task's numbers): `adaptation.csv`
        of returns, `few_shot.csv` of losses. Of any split but the test split they are called `adaptation-SPLIT`, so
        that no evaluation replaces one of another split."""
        rows = [_named(row, self.measure) for row in self.rows()]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        stem = Path(directory) / self.measure.file
        csv_path, json_path = (stem.with_name(file_name(stem.name, self.split, end)) for end in ("csv", "json"))
        atomic_write(csv_path, text.getvalue().encode())
        write_json(json_path, {
            "split": self.split, "rows": _finite(rows), "unit": self.unit,
            "higher_is_better": self.measure.higher_is_better,
            "step_sizes": list(self.step_sizes), **self.amounts, "seed": self.seed,
            "step_sizes_chosen": None if self.choice is None else self.choice.as_data(),
            self.measure.tasks: {name: np.asarray(value).tolist() for name, value in self.tasks.items()},
            self.measure.values: _finite(self.values.tolist()),
            **({} if self.rates is None else {self.measure.rates: _finite(self.rates.tolist())}),
        })  # fmt: skip
        return [csv_path, json_path]


def side_by_side(evaluations: Sequence[Evaluation], title: str = "") -> Table:
    """The means of evaluations on several splits as one table, and success rates or accuracies where there are any."""
    table = TextTable(title=title or f"{len(evaluations[0].values)} tasks of each split")
    choices = {one.choice.text(): None for one in evaluations if one.choice is not None}
    table.caption = "; ".join(choices) or None
    for name in ("steps", "size"):
        table.add_column(name, justify="right")
    for one in evaluations:
        table.add_column(f"{one.split} [95% interval]", justify="right")
        if one.rates is not None:
            table.add_column(f"{one.split}, {one.measure.rate} [95%]", justify="right")
    for rows in zip(*(one.rows() for one in evaluations), strict=True):
        cells = [_size(evaluations[0], rows[0].step)]
        for one, row in zip(evaluations, rows, strict=True):
            cells += [_mean(row, one.measure), *_rate(row, one.measure)]
        table.add_row(str(rows[0].step), *cells)
    return table


def file_name(name: str, split: str, ending: str) -> str:
    """The name of a result's file; only those of the test split have no split in it."""
    return f"{name}.{ending}" if split == TEST else f"{name}-{split}.{ending}"


def _row(step: int, x: np.ndarray, rate: np.ndarray | None, measure: Measure) -> Row:
    middle: tuple[float | None, ...] = (None, None, None)
    if measure.interquartile:
        middle = (float(interquartile_mean(x)), *bootstrap_interval(x, interquartile_mean))
    rates = () if rate is None else (float(rate.mean()), *bootstrap_interval(rate))
    return Row(step, float(x.mean()), *bootstrap_interval(x), *middle, *rates)


def _named(row: Row, measure: Measure) -> dict[str, Any]:
    """A row by the names that its columns have in files, without what there is not."""
    names = {"mean": measure.column, "rate": measure.rate}
    found = {}
    for name, value in asdict(row).items():
        first, _, rest = name.partition("_")
        if value is not None:
            found["_".join(filter(None, (names.get(first, first), rest)))] = value
    return found


def _cell(value: float | None, low: float | None, high: float | None, form: str) -> str:
    return f"{value:{form}} \\[{low:{form}}, {high:{form}}]"


def _mean(row: Row, measure: Measure) -> str:
    return _cell(row.mean, row.mean_low, row.mean_high, f".{measure.digits}f")


def _rate(row: Row, measure: Measure) -> list[str]:
    form = f".{measure.rate_digits}%"
    return [] if row.rate is None else [_cell(row.rate, row.rate_low, row.rate_high, form)]


def _size(evaluation: Evaluation, step: int) -> str:
    size = evaluation.step_sizes[step - 1] if step else None
    return "" if size is None else f"{size:g}"


def _finite(value: Any) -> Any:
    """Data without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


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
