"""What a benchmark found: one row for each task and unit of adaptation, and the summary of each contender."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from metarl.benchmark import statistics
from metarl.benchmark.cell import FAILURE, RESULT
from metarl.checkpoint import atomic_write, read_json
from metarl.printing import TextTable
from metarl.splits import TEST

RANDOM, ORACLE = "random", "oracle"
"""The contenders, by kind, whose returns are the scores 0 and 1."""
ROWS, SUMMARY = "results.csv", "summary.csv"


@dataclass(frozen=True)
class Curve:
    """One contender on one family and split, all seeds."""

    label: str
    seeds: tuple[int, ...]
    episodes: tuple[int, ...]
    """That adaptation has seen at each unit."""
    returns: np.ndarray
    """[seeds, units, tasks]."""
    success: np.ndarray | None
    first: np.ndarray
    """[seeds, tasks]: of the first episode of all."""
    steps: tuple[float, ...]
    training_steps: float
    """Mean over seeds."""
    training_seconds: float
    exceeded: bool


def cells(out: Path) -> list[dict[str, Any]]:
    """The results of all cells that are done, by family, contender and seed."""
    found = [read_json(path) for path in sorted((out / "cells").glob(f"*/*/*/{RESULT}"))]
    return sorted(found, key=lambda one: (one["family"], one["contender"], one["seed"]))


def failures(out: Path) -> list[Path]:
    """Where failed cells wrote why."""
    return sorted((out / "cells").glob(f"*/*/*/{FAILURE}"))


def curves(out: Path, split: str = TEST) -> dict[str, dict[str, Curve]]:
    """Family -> contender -> its curve."""
    grouped = dict[str, dict[str, list[dict[str, Any]]]]()
    for cell in cells(out):
        if split in cell.get("splits", {}):
            grouped.setdefault(cell["family"], {}).setdefault(cell["contender"], []).append(cell)
    return {family: {name: _curve(each, split) for name, each in of.items()} for family, of in grouped.items()}


def _curve(each: Sequence[Mapping[str, Any]], split: str) -> Curve:
    units = min(len(cell["splits"][split]["returns"]) for cell in each)
    parts = [cell["splits"][split] for cell in each]
    success = None
    if all(part["success"] is not None for part in parts):
        success = np.array([part["success"][:units] for part in parts])
    return Curve(
        each[0]["label"], tuple(cell["seed"] for cell in each), tuple(parts[0]["episodes"][:units]),
        np.array([part["returns"][:units] for part in parts]), success,
        np.array([part["first_returns"] for part in parts]),
        tuple(float(np.mean([part["steps"][u] for part in parts])) for u in range(units)),
        float(np.mean([cell["training_steps"] for cell in each])),
        float(np.mean([cell["training_seconds"] for cell in each])),
        any(part["exceeded"] for part in parts) or any(cell["training_exceeded"] for cell in each),
    )  # fmt: skip


def rows(out: Path) -> Iterator[dict[str, Any]]:
    """One row for each family, contender, seed, split, task and unit of adaptation."""
    for cell in cells(out):
        for split, part in cell.get("splits", {}).items():
            for unit, returns in enumerate(part["returns"]):
                for k, value in enumerate(returns):
                    row = {"family": cell["family"], "contender": cell["contender"], "seed": cell["seed"],
                           "split": split, "task": k, "unit": unit, "adaptation_episodes": part["episodes"][unit],
                           "adaptation_steps": part["steps"][unit], "return": value,
                           "success": None if part["success"] is None else part["success"][unit][k],
                           "training_steps": cell["training_steps"], "tasks_hash": cell["tasks_hash"]}  # fmt: skip
                    for name, values in part["tasks"].items():
                        flat = np.ravel(values[k])
                        row |= {name if len(flat) == 1 else f"{name}_{i}": x.item() for i, x in enumerate(flat)}
                    yield row


def summary(out: Path, split: str = TEST) -> list[dict[str, Any]]:
    """One row for each family and contender. Scores are returns with the random policy's mean at 0 and the oracle's at
    1, where the benchmark has both."""
    found = []
    for family, of in curves(out, split).items():
        scale = _scale(of)
        until = max(curve.episodes[-1] for curve in of.values()) or 1
        for name, curve in of.items():
            last = curve.returns[:, -1]
            low, high = statistics.interval(statistics.interquartile_mean, last)
            row: dict[str, Any] = {
                "family": family, "contender": name, "label": curve.label, "seeds": len(curve.seeds),
                "tasks": last.shape[1], "first_episode": curve.first.mean(), "zero_shot": curve.returns[:, 0].mean(),
                "adapted": last.mean(), "adaptation_episodes": curve.episodes[-1],
                "iqm": statistics.interquartile_mean(last), "iqm_low": low, "iqm_high": high,
                "worst_tenth": statistics.cvar(last),
                "area": statistics.area_under_curve(curve.episodes, curve.returns.mean((0, 2)), until),
                "success": None if curve.success is None else curve.success[:, -1].mean(),
                "training_steps": curve.training_steps, "training_seconds": curve.training_seconds,
                "over_budget": curve.exceeded,
            }  # fmt: skip
            if scale is not None:
                scores = statistics.normalised(curve.returns, *scale)
                reached = statistics.first_reaching(curve.episodes, scores.mean((0, 2)), 0.9)
                row |= {"score": scores[:, -1].mean(), "regret": scale[1] - last.mean(), "episodes_to_90": reached,
                        "optimality_gap": statistics.optimality_gap(scores[:, -1])}  # fmt: skip
            found.append(row)
    return found


def _scale(of: Mapping[str, Curve]) -> tuple[float, float] | None:
    if RANDOM not in of or ORACLE not in of:
        return None
    low, high = (float(of[name].returns[:, -1].mean()) for name in (RANDOM, ORACLE))
    return (low, high) if high > low else None


def write(out: Path) -> list[Path]:
    """`results.csv` and `summary.csv`."""
    paths = []
    for name, found in ((ROWS, list(rows(out))), (SUMMARY, summary(out))):
        if found:
            columns = list(dict.fromkeys(column for row in found for column in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(found)
            atomic_write(out / name, text.getvalue().encode())
            paths.append(out / name)
    return paths


def table(out: Path, family: str, split: str = TEST) -> Table:
    """A family's contenders for a terminal, best first."""
    found = sorted((row for row in summary(out, split) if row["family"] == family), key=lambda row: -row["adapted"])
    shown = TextTable(title=f"{family}: {found[0]['tasks']} {split} tasks" if found else family)
    scored = any("score" in row for row in found)
    columns = ["contender", "seeds", "zero-shot", "episodes", "adapted", "interquartile mean [95%]", "worst tenth"]
    for name in (*columns, *(["score"] if scored else [])):
        shown.add_column(name, justify="left" if name == "contender" else "right", no_wrap=name != "contender")
    for row in found:
        score = [f"{row['score']:.2f}"] if "score" in row else [""] if scored else []
        shown.add_row(
            row["label"] + (" *" if row["over_budget"] else ""), str(row["seeds"]), f"{row['zero_shot']:.2f}",
            str(row["adaptation_episodes"]), f"{row['adapted']:.2f}",
            f"{row['iqm']:.2f} \\[{row['iqm_low']:.2f}, {row['iqm_high']:.2f}]", f"{row['worst_tenth']:.2f}", *score,
        )  # fmt: skip
    if any(row["over_budget"] for row in found):
        shown.caption = "* asked for more environment steps than its budget, and was stopped"
    return shown
