"""Run a suite: all cells, several at once, each in a process of its own; what is done is skipped."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from metarl.benchmark import cell as cells
from metarl.benchmark.suite import Cell, Suite
from metarl.benchmark.tasks import TaskLists, draw
from metarl.checkpoint import read_json, write_json

SUITE = "suite.json"
Report = Callable[[Cell, str], None]
"""Called with a cell and "done", "failed: ..." or "left out: ...", as cells end."""


def run(suite: Suite, out: Path, jobs: int = 1, report: Report | None = None) -> list[Cell]:
    """Run every cell of `suite` that `out` has no result of. -> the cells that failed.

    Args:
        out: a directory, new or of the same suite (then its tasks are used again, and cells that broke off go on).
        jobs: cells at once, each in a process of its own with one thread; 1 runs them in this one.

    Raises:
        ValueError: `out` has another suite's results.
    """
    lists = prepared(suite, out)
    left = [cell for cell in suite.cells() if not (out / cell.path / cells.RESULT).exists()]
    say = report or (lambda *_: None)
    failed = list[Cell]()
    for cell, outcome in _outcomes(left, lists, out, jobs):
        say(cell, outcome)
        if outcome.startswith("failed"):
            failed.append(cell)
    return failed


def prepared(suite: Suite, out: Path) -> dict[str, TaskLists]:
    """The frozen tasks of every family: those that `out` has, or drawn and written there."""
    path, data = out / SUITE, json.loads(json.dumps(asdict(suite)))
    if path.exists() and (before := read_json(path)) != data:
        changed = ", ".join(name for name in data if before.get(name) != data[name])
        raise ValueError(f"{out} holds a benchmark with other entries ({changed}): choose another directory")
    write_json(path, data)
    lists = {}
    for name in suite.families:
        family, file = Cell(suite, name, next(iter(suite.contenders)), 0).made_family(), out / "tasks" / f"{name}.json"
        if not file.exists():
            draw(family, suite.task_seed, suite.tasks).save(file)
        lists[name] = TaskLists.load(file, family)
    return lists


def _outcomes(
    left: Iterable[Cell], lists: dict[str, TaskLists], out: Path, jobs: int
) -> Iterable[tuple[Cell, str]]:  # fmt: skip
    if jobs <= 1:
        for cell in left:
            yield cell, _outcome(cell, lists[cell.family], out)
        return
    # A fresh interpreter each: PyTorch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread, max_tasks_per_child=1) as pool:
        futures = {pool.submit(_outcome, cell, lists[cell.family], out): cell for cell in left}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], future.result() if error is None else f"failed: {type(error).__name__}: {error}"


def _one_thread() -> None:
    torch.set_num_threads(1)


def _outcome(cell: Cell, lists: TaskLists, out: Path) -> str:
    try:
        found: Any = cells.run(cell, lists, out)
    except Exception as error:  # one cell's failure is not the benchmark's
        return f"failed: {type(error).__name__}: {error} (see {out / cell.path / cells.FAILURE})"
    return f"left out: {found['left_out']}" if "left_out" in found else "done"
