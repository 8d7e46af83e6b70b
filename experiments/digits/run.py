"""Few-shot classification of handwritten digits: trained on 0 to 4, tested on 5 to 9, 5-way, 1 and 5 shots.

    python experiments/digits/run.py train --seed 0     # one seed; resumes where it was interrupted
    python experiments/digits/run.py report             # table and figure from all trained seeds

Every method is meta-trained on the digits 0 to 4 and their quarter turns (20 classes), and adapted to the same 400
tasks of telling 5, 6, 7, 8 and 9 apart by 10 gradient steps on 1 or 5 examples of each. The baselines start from random
weights, or from a network that was trained to name the digits 0 to 4, with the step size of a grid that does best on
300 other tasks with the test digits (in the baselines' favour: the methods take the size they were trained with). And
there is the nearest neighbour among the support set's pixels, which learns nothing. Needs scikit-learn.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarl import figures
from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.supervised import FewShotClasses, FewShotEvaluation, FewShotLearner, Sets, digits, method
from metarl.train import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ITERATIONS = 300
SHARED: dict[str, Any] = {"n_tasks": 16, "queries": 5, "inner_lr": 0.1, "inner_steps": 5, "hidden": (64,),
                          "anneal_over": ITERATIONS}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    name: SHARED | method(name, ITERATIONS)
    for name in ("maml", "fomaml", "reptile", "anil", "meta_sgd", "maml_plus_plus", "pretrained")
} | {"from scratch": SHARED}
NEIGHBOUR = "nearest neighbour"
GRID = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Step sizes tried for the two baselines."""
SHOTS = (1, 5)
STEPS = 10
TEST = {"tasks": 400, "queries": 15, "seed": 1_357_911}
TUNING = {"tasks": 300, "queries": 15, "seed": 24_680}


def family_of(name: str) -> FewShotClasses:
    return digits(shuffled=False) if name == "pretrained" else digits(rotations=True)


def test_sets(shots: int, protocol: dict[str, int]) -> Sets:
    """The same tasks for everybody."""
    rng = np.random.default_rng(protocol["seed"])
    return digits().sample(protocol["tasks"], rng, "test", shots, protocol["queries"])


def trained(name: str, shots: int, seed: int, runs: Path, iterations: int) -> tuple[FewShotLearner, float]:
    """The learner of one method, trained on from where it was; and the seconds that its training took."""
    path = runs / f"{name}-{shots}shot-seed{seed}.safetensors"
    clock = path.with_suffix(".json")
    if path.exists():
        learner = FewShotLearner.load(path, family_of(name), device="cpu")
    else:
        learner = FewShotLearner(family_of(name), seed=seed, device="cpu", shots=shots, **METHODS[name])
    seconds = read_json(clock)["seconds"] if clock.exists() else 0.0
    while name != "from scratch" and (left := iterations - learner.state.iteration) > 0:
        start = time.perf_counter()
        learner.learn(min(left, 100))
        seconds += time.perf_counter() - start
        learner.save(path)
        write_json(clock, {"seconds": seconds})
    return learner, seconds


def train(seed: int, runs: Path, names: Sequence[str], iterations: int) -> None:
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        for shots in SHOTS:
            if file_of(name, shots, seed).with_suffix(".json").exists():
                continue
            learner, seconds = trained(name, shots, seed, runs, iterations)
            size = learner.config.inner_lr if name not in ("pretrained", "from scratch") else tuned(learner, shots)
            found = learner.evaluate(sets=test_sets(shots, TEST), step_sizes=[size] * STEPS)
            save(found, learner, name, shots, seed, seconds)


def tuned(learner: FewShotLearner, shots: int) -> float:
    """The step size with the best accuracy after all steps on the tuning tasks."""
    sets = test_sets(shots, TUNING)
    rates = {size: learner.evaluate(sets=sets, step_sizes=[size] * STEPS).accuracies for size in GRID}
    return max(GRID, key=lambda size: rates[size][:, -1].mean())  # type: ignore[index]


def file_of(name: str, shots: int, seed: int) -> Path:
    return RESULTS / f"{name.replace(' ', '_')}-{shots}shot-seed{seed}"


def save(found: FewShotEvaluation, learner: FewShotLearner, name: str, shots: int, seed: int, seconds: float) -> None:
    assert found.accuracies is not None
    stem = file_of(name, shots, seed)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "classes", *(f"accuracy_{s}" for s in range(STEPS + 1))])
        for k, rates in enumerate(found.accuracies):
            writer.writerow([k, "".join(map(str, found.parameters["classes"][k])), *(f"{x:.4f}" for x in rates)])
    write_json(stem.with_suffix(".json"), {
        "method": name, "shots": shots, "seed": seed, "iterations": learner.state.iteration,
        "step_sizes": list(found.step_sizes), "protocol": TEST,
        "accuracy": [round(float(x), 4) for x in found.accuracies.mean(0)], "training_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(), "settings": learner.describe(), "versions": versions(),
    })  # fmt: skip
    print(name, f"{shots} shots, seed {seed}: accuracy", np.round(found.accuracies.mean(0), 3), flush=True)


def nearest_neighbour(sets: Sets) -> float:
    """Accuracy of giving each query example the class of the support example with the nearest pixels."""
    nearest = torch.cdist(sets.x_query.flatten(2), sets.x_support.flatten(2)).argmin(-1)
    return (sets.y_support.gather(1, nearest) == sets.y_query).double().mean().item()


def report() -> None:
    """Table over seeds and the figure, from the committed files (and, for the neighbour, the test tasks)."""
    shown = (0, 1, 3, 5, 10)
    lines = ["| method | shots | seeds | k = 0 | " + " | ".join(map(str, shown[1:])) + " |", "|---" * 8 + "|"]
    curves: dict[tuple[str, int], np.ndarray] = {}
    for shots in SHOTS:
        for name in METHODS:
            paths = sorted(RESULTS.glob(f"{name.replace(' ', '_')}-{shots}shot-seed*.json"))
            if not paths:
                continue
            metas = [read_json(path) for path in paths]
            found = curves[name, shots] = np.array([meta["accuracy"] for meta in metas])  # [seeds, steps + 1]
            lines.append(f"| {name} | {shots} | {len(paths)} | " + " | ".join(cell(found[:, k]) for k in shown) + " |")
        rate = nearest_neighbour(test_sets(shots, TEST))
        curves[NEIGHBOUR, shots] = np.array([[rate]])
        lines.append(f"| {NEIGHBOUR} | {shots} | | {rate:.1%} |" + " |" * 4)
    table = "\n".join(lines)
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    draw(curves)


def cell(seeds: np.ndarray) -> str:
    """Mean, lowest and highest seed."""
    spread = f" ({seeds.min():.1%} to {seeds.max():.1%})" if len(seeds) > 1 else ""
    return f"{seeds.mean():.1%}{spread}"


def draw(curves: dict[tuple[str, int], np.ndarray]) -> None:
    """Accuracy against gradient steps; a thin line for every seed."""
    figure, axes = figures.new_figure(len(SHOTS), width=5.0)
    for ax, shots in zip(axes, SHOTS, strict=True):
        for i, name in enumerate((*METHODS, NEIGHBOUR)):
            if (name, shots) not in curves:
                continue
            found, colour = curves[name, shots], f"C{i}"
            if found.shape[1] == 1:
                ax.axhline(found.mean(), color=colour, linestyle="--", label=name)
                continue
            for one in found:
                ax.plot(one, color=colour, alpha=0.3, linewidth=0.8)
            ax.plot(found.mean(0), "o-", color=colour, label=name, markersize=3)
        ax.set(xlabel="gradient steps", ylabel="accuracy", title=f"5-way, {shots} shots, 400 test tasks", ylim=(0, 1))
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figures.save_figure(figure, RESULTS / "digits.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--runs", type=Path, default=Path("runs/digits"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.seed, args.runs, args.methods, args.iterations)
    else:
        report()


if __name__ == "__main__":
    main()
