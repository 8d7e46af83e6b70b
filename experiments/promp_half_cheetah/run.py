"""ProMP against MAML-TRPO on the half cheetah, forwards or backwards (Rothfuss et al. 2019, figure 2).

    python experiments/promp_half_cheetah/run.py train --seed 0     # both, one after the other; resumes
    python experiments/promp_half_cheetah/run.py report             # table and figure from the committed files alone

Needs the extra `mujoco`. Both methods train for as many iterations, on as many environment steps. Beside the usual
statistics every iteration's own seconds are written down: those on the clock, and those of this process's CPU time,
which other work on the machine does not lengthen.
"""

import argparse
import csv
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metarl
from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.report import figures
from metarl.training.train import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FAMILY, HORIZON = "HalfCheetahDir-v0", 100
SETTINGS: dict[str, Any] = {"n_tasks": 20, "episodes": 10, "inner_lr": 1.0, "lr_in_std": True, "min_std": 0.1}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml_trpo": ("maml_trpo", {"max_kl": 0.06}),
    "promp": ("promp", {"outer_lr": 3e-3}),
}
ITERATIONS = 100
TEST = {"n_tasks": 20, "episodes": 20, "seed": 1_357_911}
COLUMNS = ("iteration", "env_steps", "clock_seconds", "cpu_seconds", "return_0", "return_1")


class Clock:
    """A callback of `learn` that writes COLUMNS to a CSV file after every iteration, going on with what is there."""

    def __init__(self, path: Path, iteration: int):
        self.path = path
        self.rows = [row for row in read_rows(path) if row["iteration"] <= iteration] if path.exists() else []
        last = self.rows[-1] if self.rows else {"clock_seconds": 0.0, "cpu_seconds": 0.0}
        self.clock = last["clock_seconds"] - time.perf_counter()
        self.cpu = last["cpu_seconds"] - time.process_time()

    def __call__(self, stats: dict[str, Any]) -> None:
        values = (stats["iteration"], stats["env_steps"], round(self.clock + time.perf_counter(), 2),
                  round(self.cpu + time.process_time(), 2), round(stats["return/step_0"], 3),
                  round(stats["return/step_1"], 3))  # fmt: skip
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))
        text = "\n".join([",".join(COLUMNS), *(",".join(str(row[name]) for name in COLUMNS) for row in self.rows)])
        atomic_write(self.path, (text + "\n").encode())


def train(seed: int, runs: Path, methods: Sequence[str], iterations: int) -> None:
    for method in methods:
        directory = runs / f"{method}-seed{seed}"
        if (directory / "latest.safetensors").exists():
            made = metarl.MetaLearner.load(directory, device="cpu")
        else:
            shutil.rmtree(directory, ignore_errors=True)  # what broke off before its first checkpoint
            algorithm, own = METHODS[method]
            family = metarl.make(FAMILY, horizon=HORIZON)
            made = metarl.MetaLearner(algorithm, family, seed=seed, device="cpu", **SETTINGS | own)
        RESULTS.mkdir(exist_ok=True)
        clock = Clock(RESULTS / f"{method}-seed{seed}-training.csv", made.state.iteration)
        if made.state.iteration < iterations:
            made.learn(iterations - made.state.iteration, run_dir=directory, callback=clock, eval_every=0,
                       checkpoint_every=1)  # fmt: skip
        lr = made.config.inner_lr
        found = made.evaluate(**TEST, step_sizes=(lr, lr / 2, lr / 2))
        write_json(RESULTS / f"{method}-seed{seed}.json", {
            "method": method, "seed": seed, "iterations": made.state.iteration, "env_steps": made.state.env_steps,
            "step_sizes": list(found.step_sizes), "protocol": TEST, "settings": made.describe(),
            "mean": [round(float(x), 2) for x in found.mean], "returns": np.round(found.returns, 2).tolist(),
            "forward": found.tasks["forward"].tolist(), "threads": torch.get_num_threads(),
            "machine": platform.machine(), "versions": versions(),
        })  # fmt: skip
        print(method, "seed", seed, "mean return", np.round(found.mean, 1), flush=True)


def read_rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def report() -> None:
    """Table and figure, from the committed files alone."""
    lines = ["| method | seed | iterations | million steps | CPU seconds per iteration | k = 0 | 1 | 2 | 3 |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    figure, axes = figures.new_figure(3, width=4.4)
    for i, method in enumerate(METHODS):
        for n, path in enumerate(sorted(RESULTS.glob(f"{method}-seed*.json"))):
            meta, rows = read_json(path), read_rows(path.with_name(f"{path.stem}-training.csv"))
            cells = " | ".join(f"{x:.1f}" for x in meta["mean"])
            lines.append(f"| `{method}` | {meta['seed']} | {meta['iterations']} | {meta['env_steps'] / 1e6:.2f} | "
                         f"{rows[-1]['cpu_seconds'] / len(rows):.2f} | {cells} |")  # fmt: skip
            for ax, name, unit in zip(axes, ("env_steps", "clock_seconds", "cpu_seconds"), (1e6, 60, 60), strict=True):
                for step, style in ((0, ":"), (1, "-")):
                    label = None if n else f"{method}, {'after' if step else 'before'} adaptation"
                    ax.plot([row[name] / unit for row in rows], [row[f"return_{step}"] for row in rows], style,
                            color=f"C{i}", linewidth=1, label=label)  # fmt: skip
    for ax, label in zip(axes, ("million environment steps", "minutes on the clock", "minutes of CPU"), strict=True):
        ax.set(xlabel=label, ylabel="mean return, train tasks")
    axes[0].legend(frameon=False, fontsize=8)
    table = "\n".join(lines)
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    figures.save_figure(figure, RESULTS / "promp_half_cheetah.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--runs", type=Path, default=Path("runs/promp_half_cheetah"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.seed, args.runs, args.methods, args.iterations)
    else:
        report()


if __name__ == "__main__":
    main()
