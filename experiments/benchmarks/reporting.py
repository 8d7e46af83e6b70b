"""What a benchmark prints and leaves behind: the machine, tables, JSON, CSVs, figure."""

import csv
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from metarl.report.figures import new_figure, save_figure
from metarl.training.train import versions

Rows = list[dict[str, Any]]


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
              if line.startswith("model name")] if info.exists() else []  # fmt: skip
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "versions": versions(),
        "commit": git.stdout.strip() or None,
    }


def show(title: str, rows: Rows) -> None:
    """A table, one column per key."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys] + [[cell(key, row.get(key)) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    print(f"\n{title}")
    for line in cells:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.1%}" if key == "share" else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def figure(results: dict[str, Rows], path: Path) -> None:
    """A bar of the parts; time and memory against K."""
    fig, (bar, time_axes, memory_axes) = new_figure(3)
    for row in (row for row in results.get("breakdown", []) if row.get("share") and row["part"] != "sum of the parts"):
        bar.barh(row["part"], row["value"], color="tab:blue")
    bar.invert_yaxis()
    bar.set(xlabel="seconds", title="one meta-iteration")
    for cap, colour in (("all", "tab:blue"), (0, "tab:orange")):
        rows = [row for row in results.get("growth", []) if row["graph_tasks"] == cap]
        k = [row["K"] for row in rows]
        time_axes.loglog(k, [row["seconds"] for row in rows], "o-", color=colour, label=f"graph_tasks: {cap}")
        memory_axes.plot(k, [row["peak_mib"] for row in rows], "o", color=colour, label=f"graph_tasks: {cap}")
        memory_axes.plot(k, [row["fit_mib"] for row in rows], "-", color=colour, linewidth=1)
    time_axes.set(xlabel="tasks K", ylabel="seconds per iteration", title="time")
    memory_axes.set(xlabel="tasks K", ylabel="peak MiB above start", title="memory and its linear fit")
    if "growth" in results:
        time_axes.legend(frameon=False, fontsize=8)
    save_figure(fig, path)


def write(results: dict[str, Rows], header: dict[str, Any], out: Path) -> None:
    """meta_iteration.json, one CSV per part, meta_iteration.png."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "meta_iteration.json").write_text(json.dumps(header | results, indent=2) + "\n")
    for name, rows in results.items():
        with (out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    figure(results, out / "meta_iteration.png")
