"""How well few-shot learning works: the curve over inner steps on test tasks, with its uncertainty over tasks."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from metarl.checkpoint import atomic_write, write_json
from metarl.printing import TextTable, as_text
from metarl.report.evaluation import bootstrap_interval, file_name
from metarl.splits import TEST


@dataclass(frozen=True)
class FewShotRow:
    """Loss and accuracy on query sets after `step` inner steps: means over tasks, 95% bootstrap intervals."""

    step: int
    loss: float
    loss_low: float
    loss_high: float
    accuracy: float | None = None
    """None where nothing is right or wrong (squared error)."""
    accuracy_low: float | None = None
    accuracy_high: float | None = None


@dataclass(frozen=True, repr=False)
class FewShotEvaluation:
    """Losses of adapting to K tasks by S inner steps."""

    losses: np.ndarray
    """[K, S + 1]: mean loss over each task's query set after 0, 1, ..., S inner steps."""
    accuracies: np.ndarray | None
    """[K, S + 1]: share of the query set that is predicted right, where that has a meaning."""
    step_sizes: tuple[float, ...]
    """The S inner step sizes, without learned factors."""
    shots: int
    queries: int
    seed: int
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What tells the tasks apart, each [K, ...], where the family says it."""
    split: str = TEST
    """The split that the tasks were drawn from; `"given"` if they were given."""

    def __repr__(self) -> str:
        return as_text(self.table())

    @property
    def loss(self) -> np.ndarray:
        """Mean loss over tasks after each number of steps, [S + 1]."""
        return self.losses.mean(0)

    @property
    def accuracy(self) -> np.ndarray | None:
        """Mean accuracy over tasks after each number of steps, [S + 1]."""
        return None if self.accuracies is None else self.accuracies.mean(0)

    def rows(self) -> list[FewShotRow]:
        """Means over tasks, each with a 95% bootstrap interval (percentiles, 10,000 draws)."""
        out = []
        for step, x in enumerate(self.losses.T):
            row = [float(x.mean()), *bootstrap_interval(x)]
            if self.accuracies is not None:
                right = self.accuracies[:, step]
                row += [float(right.mean()), *bootstrap_interval(right)]
            out.append(FewShotRow(step, *row))
        return out

    def table(self, title: str = "") -> Table:
        """`rows` for a terminal."""
        what = f"{len(self.losses)} {self.split} tasks, {self.shots} shots, {self.queries} queries"
        table = TextTable(title=title or what)
        last = [] if self.accuracies is None else ["accuracy [95%]"]
        for name in ("steps", "size", "loss [95% interval]", *last):
            table.add_column(name, justify="right")
        for row in self.rows():
            size = f"{self.step_sizes[row.step - 1]:g}" if row.step else ""
            rate = [f"{row.accuracy:.1%} \\[{row.accuracy_low:.1%}, {row.accuracy_high:.1%}]"] if last else []
            table.add_row(str(row.step), size, f"{row.loss:.3f} \\[{row.loss_low:.3f}, {row.loss_high:.3f}]", *rate)
        return table

    def save(self, directory: Path | str) -> list[Path]:
        """Write `few_shot.csv` (one row per number of steps) and `few_shot.json` (also every task's numbers). Of any
        split but the test split they are called `few_shot-SPLIT`."""
        rows = [{name: x for name, x in asdict(row).items() if x is not None} for row in self.rows()]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        csv_path, json_path = (Path(directory) / file_name("few_shot", self.split, end) for end in ("csv", "json"))
        atomic_write(csv_path, text.getvalue().encode())
        write_json(json_path, {
            "rows": [{name: _finite(value) for name, value in row.items()} for row in rows],
            "split": self.split, "step_sizes": list(self.step_sizes), "shots": self.shots, "queries": self.queries,
            "seed": self.seed, "parameters": {name: np.asarray(x).tolist() for name, x in self.parameters.items()},
            "losses": [[_finite(value) for value in task] for task in self.losses.tolist()],
            **({} if self.accuracies is None else {"accuracies": self.accuracies.tolist()}),
        })  # fmt: skip
        return [csv_path, json_path]


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if np.isfinite(value) else None
