"""Sinusoid regression as in the MAML paper (Finn, Abbeel, Levine 2017, section 5.1 and figure 3).

    python experiments/sinusoid/run.py train --seed 0     # one seed; resumes where it was interrupted
    python experiments/sinusoid/run.py report             # table and figure from all trained seeds

Every method is meta-trained with as many iterations of as many tasks (Reptile with 40 query points, since it learns
from batches within a task), and adapted to the same 600 test sinusoids by 10
gradient steps on 5 or 10 points. As in the paper there are two baselines: one network that was trained on all
sinusoids together, fine-tuned with the step size that does best on 300 validation sinusoids; and an oracle that is
told amplitude and phase.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.report import figures
from metarl.supervised import FewShotEvaluation, FewShotLearner, Sinusoid, method
from metarl.training.train import versions

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import few_shot  # noqa: E402

RESULTS = HERE / "results"
ITERATIONS = 2000
TASKS = {"n_tasks": 100}
ADAM = {"outer_lr": 0.003, "anneal_over": ITERATIONS}
METHODS: dict[str, dict[str, Any]] = {
    **{name: TASKS | method(name, ITERATIONS) | ADAM
       for name in ("maml", "fomaml", "anil", "meta_sgd", "maml_plus_plus", "pretrained")},
    "reptile": TASKS | method("reptile", ITERATIONS) | {"queries": 40},
    "oracle": TASKS | method("pretrained", ITERATIONS) | ADAM,
}  # fmt: skip
"""The rest as in `metarl.supervised.Config`: inner steps of 0.01, 40-40 relu, 10 query points."""
SHOTS = (5, 10)
STEPS = 10
GRID = (0.0003, 0.001, 0.003, 0.01, 0.02, 0.05)
"""Step sizes tried on validation tasks for the network that was trained on all tasks together."""
TEST = {"n_tasks": 600, "queries": 100, "seed": 1_357_911}
VALIDATION = {"n_tasks": 300, "queries": 100, "seed": 24_680}


def family_of(name: str) -> Sinusoid:
    return Sinusoid(visible=name == "oracle")


def runs_of(shots: int, name: str) -> str:
    """The run behind a row of the table: networks that adapt to nothing in training serve any number of shots."""
    return name if METHODS[name].get("inner_steps") == 0 else f"{name}-{shots}shot"


def trained(name: str, shots: int, seed: int, runs: Path, iterations: int) -> tuple[FewShotLearner, float]:
    """The learner of one method, trained on from where it was; and the seconds that its training took."""
    path = runs / f"{runs_of(shots, name)}-seed{seed}.safetensors"
    clock = path.with_suffix(".json")
    if path.exists():
        learner = FewShotLearner.load(path, family_of(name), device="cpu")
    else:
        learner = FewShotLearner(family_of(name), seed=seed, device="cpu", shots=shots, **METHODS[name])
    seconds = read_json(clock)["seconds"] if clock.exists() else 0.0
    while (left := iterations - learner.state.iteration) > 0:
        start = time.perf_counter()
        learner.learn(min(left, 1000))
        seconds += time.perf_counter() - start
        learner.save(path)
        write_json(clock, {"seconds": seconds})
    return learner, seconds


def train(seed: int, runs: Path, names: Sequence[str], iterations: int) -> None:
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        for shots in SHOTS:
            if (RESULTS / f"{name}-{shots}shot-seed{seed}.json").exists():
                continue
            learner, seconds = trained(name, shots, seed, runs, iterations)
            sizes = step_sizes(name, learner, shots)
            found = learner.evaluate(**TEST, shots=shots, step_sizes=sizes)
            save(found, learner, name, shots, seed, seconds)


def step_sizes(name: str, learner: FewShotLearner, shots: int) -> list[float]:
    if name == "oracle":
        return []  # it has nothing to adapt to
    if name != "pretrained":
        return [learner.config.inner_lr] * STEPS
    after = {size: learner.evaluate(**VALIDATION, shots=shots, step_sizes=[size] * STEPS).loss[-1] for size in GRID}
    return [min(GRID, key=lambda size: after[size] if np.isfinite(after[size]) else np.inf)] * STEPS


def save(found: FewShotEvaluation, learner: FewShotLearner, name: str, shots: int, seed: int, seconds: float) -> None:
    stem = RESULTS / f"{name}-{shots}shot-seed{seed}"
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "amplitude", "phase", *(f"mse_{s}" for s in range(found.losses.shape[1]))])
        for k, losses in enumerate(found.losses):
            task = [found.parameters[p][k] for p in ("amplitude", "phase")]
            writer.writerow([k, *(f"{x:.5g}" for x in (*task, *losses))])
    write_json(stem.with_suffix(".json"), {
        "method": name, "shots": shots, "seed": seed, "iterations": learner.state.iteration,
        "step_sizes": list(found.step_sizes), "protocol": TEST, "mse": [round(float(x), 4) for x in found.loss],
        "training_seconds": round(seconds, 1), "threads": torch.get_num_threads(), "settings": learner.describe(),
        "versions": versions(),
    })  # fmt: skip
    print(name, f"{shots} shots, seed {seed}: mean squared error", np.round(found.loss, 3), flush=True)


def read_losses(path: Path) -> np.ndarray:
    """[tasks, steps + 1]"""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[name]) for name in row if name.startswith("mse_")] for row in rows])


def report() -> None:
    """Table over seeds and the figure, from the committed files alone."""
    lines = ["| method | points | seeds | k = 0 | 1 | 2 | 5 | 10 |", "|---|---|---|---|---|---|---|---|"]
    curves: dict[tuple[str, int], np.ndarray] = {}
    for shots in SHOTS:
        for name in METHODS:
            paths = sorted(RESULTS.glob(f"{name}-{shots}shot-seed*.csv"))
            if not paths:
                continue
            found = np.stack([read_losses(path).mean(0) for path in paths])  # [seeds, steps + 1]
            curves[name, shots] = found
            shown = [k for k in (0, 1, 2, 5, 10) if k < found.shape[1]]
            cells = [cell(found[:, k]) for k in shown] + [""] * (5 - len(shown))
            lines.append(f"| {name} | {shots} | {len(paths)} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    draw(curves)


def cell(seeds: np.ndarray) -> str:
    """Mean, lowest and highest seed."""
    spread = f" ({seeds.min():.3f} to {seeds.max():.3f})" if len(seeds) > 1 else ""
    return f"{seeds.mean():.3f}{spread}"


def draw(curves: dict[tuple[str, int], np.ndarray]) -> None:
    """Mean squared error against gradient steps, as in the paper's figure 3; a thin line for every seed."""
    figure, axes = figures.new_figure(len(SHOTS), width=5.0)
    for ax, shots in zip(axes, SHOTS, strict=True):
        for i, name in enumerate(METHODS):
            if (name, shots) not in curves:
                continue
            few_shot.draw_curve(ax, curves[name, shots], f"C{i}", name)
        ax.set(xlabel="gradient steps", ylabel="mean squared error", title=f"{shots} points, 600 test sinusoids",
               yscale="log", ylim=(0.01, 6))  # fmt: skip
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figures.save_figure(figure, RESULTS / "sinusoid.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--runs", type=Path, default=Path("runs/sinusoid"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.seed, args.runs, args.methods, args.iterations)
    else:
        report()


if __name__ == "__main__":
    main()
