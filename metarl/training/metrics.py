"""metrics.csv: one row per meta-iteration, written so that a kill tears the last row at most, and read with care."""

import contextlib
import csv
import io
import numbers
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metarl.checkpoint import atomic_write

Row = dict[str, int | float | None]

OWN = re.compile(r"iteration|eval/(score|(step|success|accuracy)_\d+)")
"""Names that training itself writes beside an iteration's statistics."""


def numbered(names: Iterable[str], prefix: str) -> dict[str, int]:
    """The names that are `prefix` and a number, in the order of the numbers. A metric of the user's own may begin so
    too, as `eval/step_size` does."""
    found = {name: int(name.removeprefix(prefix)) for name in names if re.fullmatch(re.escape(prefix) + r"\d+", name)}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def read_metrics(path: Path) -> tuple[list[Row], list[str]]:
    """The rows that can be read, numbers as int or float and None where a row has no value; and what is wrong with
    the others. A last row without its end is what a power cut leaves: it is left out without a word."""
    if not path.exists():
        return [], []
    text = path.read_bytes().decode(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    try:
        table = list(csv.reader(lines))
    except csv.Error as error:
        return [], [f"cannot be read ({error})"]
    if not table:
        return [], []
    names = table[0]
    if "iteration" not in names or len(set(names)) != len(names):
        return [], ["has no header"]
    rows: list[Row] = []
    problems: list[str] = []
    for number, cells in enumerate(table[1:], 1):
        row = _row(names, cells)
        if row is None:
            problems.append(f"row {number} cannot be read")
        elif rows and row["iteration"] <= rows[-1]["iteration"]:  # type: ignore[operator]
            problems.append(f"row {number} is of iteration {row['iteration']} again")
        else:
            rows.append(row)
    return rows, problems


def _row(names: list[str], cells: list[str]) -> Row | None:
    if len(cells) != len(names):
        return None
    try:
        row = {name: _number(cell) for name, cell in zip(names, cells, strict=True)}
    except ValueError:
        return None
    return row if isinstance(row["iteration"], int) and row["iteration"] > 0 else None


def _number(text: str) -> int | float | None:
    if text == "":
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


class MetricsFile:
    """A writer for stable-baselines3's Logger: CSV with the columns in the order in which they first came up. (Its own
    orders them by hash, differently in every run, and rewrites the file in place when one is added.)"""

    def __init__(self, path: Path, rows: list[Row]):
        self.path = path
        self.start(rows)

    def start(self, rows: list[Row]) -> None:
        """Begin the file anew with these rows."""
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if rows:
            writer.writeheader()
        writer.writerows(rows)
        atomic_write(self.path, text.getvalue().encode())
        self.file = self.path.open("a", newline="")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        # Callbacks may log pictures and words, and at other times.
        key_values = {key: value for key, value in key_values.items() if isinstance(value, numbers.Real)}
        if "iteration" not in key_values:
            return
        if key_values.keys() - set(self.columns):
            self.file.close()
            self.start([*read_metrics(self.path)[0], dict(key_values)])
            return
        try:
            csv.DictWriter(self.file, self.columns, lineterminator="\n").writerow(key_values)
            self.file.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}") from error

    def sync(self) -> None:
        """Make the rows survive a power cut, as the checkpoint that counts on them will."""
        if not self.file.closed:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the row that could not be written has been reported
            self.file.close()
