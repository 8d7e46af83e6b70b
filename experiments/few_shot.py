"""What the experiments with few-shot classification (digits/run.py, glyphs/run.py) share: train, measure, report."""

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.report import figures
from metarl.supervised import FewShotEvaluation, FewShotLearner, SetFamily, Sets
from metarl.training.train import versions

SCRATCH, PRETRAINED, NEIGHBOUR = "from scratch", "pretrained", "nearest neighbour"
GRID = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Step sizes tried for the two baselines."""
SHOTS = (1, 5)
STEPS = 10
SHOWN = (0, 1, 3, 5, 10)


def as_it_is(learner: FewShotLearner) -> FewShotLearner:
    return learner


@dataclass(frozen=True)
class Experiment:
    """What is compared, on what."""

    folder: Path
    iterations: int
    settings: Callable[[str], dict[str, Any]]
    """What a method is trained with, but for the shots."""
    names: tuple[str, ...]
    """The methods and the two baselines."""
    family_of: Callable[[str], SetFamily]
    """What a method is trained on."""
    test_sets: Callable[[int, dict[str, int]], Sets]
    """The tasks of the table: of so many shots, by a protocol of `tasks`, `queries` and `seed`."""
    tuning_sets: Callable[[int, dict[str, int]], Sets]
    """Those on which the baselines' step size is chosen."""
    test: dict[str, int]
    tuning: dict[str, int]
    label: Callable[[int], str] = str
    """A class as it is written down."""
    with_new_head: Callable[[FewShotLearner], FewShotLearner] = as_it_is
    """The pretrained network as it adapts to tasks."""

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def file_of(self, name: str, shots: int, seed: int | str) -> Path:
        return self.results / f"{name.replace(' ', '_')}-{shots}shot-seed{seed}"


def trained(
    experiment: Experiment, name: str, shots: int, seed: int, runs: Path, iterations: int
) -> tuple[FewShotLearner, float]:  # fmt: skip
    """The learner of one method, trained on from where it was; and the seconds that its training took."""
    path = runs / f"{name}-{shots}shot-seed{seed}.safetensors"
    clock = path.with_suffix(".json")
    family = experiment.family_of(name)
    if path.exists():
        learner = FewShotLearner.load(path, family, device="cpu")
    else:
        learner = FewShotLearner(family, seed=seed, device="cpu", shots=shots, **experiment.settings(name))
    seconds = read_json(clock)["seconds"] if clock.exists() else 0.0
    while name != SCRATCH and (left := iterations - learner.state.iteration) > 0:
        start = time.perf_counter()
        learner.learn(min(left, 100))
        seconds += time.perf_counter() - start
        learner.save(path)
        write_json(clock, {"seconds": seconds})
    return learner, seconds


def train(experiment: Experiment, seed: int, runs: Path, names: Sequence[str], iterations: int) -> None:
    experiment.results.mkdir(exist_ok=True)
    for name in names:
        for shots in SHOTS:
            if experiment.file_of(name, shots, seed).with_suffix(".json").exists():
                continue
            learner, seconds = trained(experiment, name, shots, seed, runs, iterations)
            own = learner if name != PRETRAINED else experiment.with_new_head(learner)
            size = tuned(experiment, own, shots) if name in (PRETRAINED, SCRATCH) else learner.config.inner_lr
            found = own.evaluate(sets=experiment.test_sets(shots, experiment.test), step_sizes=[size] * STEPS)
            save(experiment, found, learner, name, shots, seed, seconds)


def tuned(experiment: Experiment, learner: FewShotLearner, shots: int) -> float:
    """The step size with the best accuracy after all steps on the tuning tasks."""
    sets = experiment.tuning_sets(shots, experiment.tuning)
    return max(GRID, key=lambda size: accuracy(learner.evaluate(sets=sets, step_sizes=[size] * STEPS))[-1])


def accuracy(found: FewShotEvaluation) -> np.ndarray:
    """[steps + 1]: mean over tasks."""
    assert found.accuracies is not None
    return found.accuracies.mean(0)


def save(
    experiment: Experiment, found: FewShotEvaluation, learner: FewShotLearner, name: str, shots: int, seed: int,
    seconds: float,
) -> None:  # fmt: skip
    assert found.accuracies is not None
    stem = experiment.file_of(name, shots, seed)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "classes", *(f"accuracy_{s}" for s in range(STEPS + 1))])
        for k, rates in enumerate(found.accuracies):
            classes = "".join(map(experiment.label, found.parameters["classes"][k]))
            writer.writerow([k, classes, *(f"{x:.4g}" for x in rates)])
    write_json(stem.with_suffix(".json"), {
        "method": name, "shots": shots, "seed": seed, "iterations": learner.state.iteration,
        "step_sizes": list(found.step_sizes), "protocol": experiment.test,
        "accuracy": [round(float(x), 4) for x in accuracy(found)], "training_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(), "settings": learner.describe(), "versions": versions(),
    })  # fmt: skip
    print(name, f"{shots} shots, seed {seed}: accuracy", np.round(accuracy(found), 3), flush=True)


def nearest_neighbour(sets: Sets) -> float:
    """Accuracy of giving each query example the class of the support example with the nearest pixels."""
    nearest = torch.cdist(sets.x_query.flatten(2), sets.x_support.flatten(2)).argmin(-1)
    return (sets.y_support.gather(1, nearest) == sets.y_query).double().mean().item()


def report(experiment: Experiment) -> None:
    """Table over seeds and the figure, from the committed files (and, for the neighbour, the test tasks)."""
    lines = ["| method | shots | seeds | k = 0 | " + " | ".join(map(str, SHOWN[1:])) + " |", "|---" * 8 + "|"]
    curves: dict[tuple[str, int], np.ndarray] = {}
    for shots in SHOTS:
        for name in experiment.names:
            paths = sorted(experiment.results.glob(experiment.file_of(name, shots, "*").name + ".json"))
            if not paths:
                continue
            found = curves[name, shots] = np.array([read_json(path)["accuracy"] for path in paths])
            lines.append(f"| {name} | {shots} | {len(paths)} | " + " | ".join(cell(found[:, k]) for k in SHOWN) + " |")
        rate = nearest_neighbour(experiment.test_sets(shots, experiment.test))
        curves[NEIGHBOUR, shots] = np.array([[rate]])
        lines.append(f"| {NEIGHBOUR} | {shots} | | {rate:.1%} |" + " |" * 4)
    table = "\n".join(lines)
    print(table)
    atomic_write(experiment.results / "table.md", (table + "\n").encode())
    draw(experiment, curves)


def cell(seeds: np.ndarray) -> str:
    """Mean, lowest and highest seed."""
    spread = f" ({seeds.min():.1%} to {seeds.max():.1%})" if len(seeds) > 1 else ""
    return f"{seeds.mean():.1%}{spread}"


def draw_curve(ax: Any, found: np.ndarray, colour: str, name: str) -> None:
    """The mean over seeds of `found` [seeds, steps + 1], a thin line for every seed; one number: a dashed line."""
    if found.shape[1] == 1:
        ax.axhline(found.mean(), color=colour, linestyle="--", label=name)
        return
    for one in found:
        ax.plot(one, color=colour, alpha=0.3, linewidth=0.8)
    ax.plot(found.mean(0), "o-", color=colour, label=name, markersize=3)


def draw(experiment: Experiment, curves: dict[tuple[str, int], np.ndarray]) -> None:
    """Accuracy against gradient steps; a thin line for every seed."""
    figure, axes = figures.new_figure(len(SHOTS), width=5.0)
    for ax, shots in zip(axes, SHOTS, strict=True):
        for i, name in enumerate((*experiment.names, NEIGHBOUR)):
            if (name, shots) not in curves:
                continue
            draw_curve(ax, curves[name, shots], f"C{i}", name)
        title = f"5-way, {shots} shots, {experiment.test['tasks']} test tasks"
        ax.set(xlabel="gradient steps", ylabel="accuracy", title=title, ylim=(0, 1))
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figures.save_figure(figure, experiment.results / f"{experiment.folder.name}.png")


def main(experiment: Experiment, description: str | None, more: dict[str, Callable[[], None]]) -> None:
    """The command line: train, report, and the commands `more`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report", *more))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=experiment.names, default=experiment.names)
    parser.add_argument("--iterations", type=int, default=experiment.iterations)
    parser.add_argument("--runs", type=Path, default=Path("runs", experiment.folder.name))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(experiment, args.seed, args.runs, args.methods, args.iterations)
    elif args.command == "report":
        report(experiment)
    else:
        more[args.command]()
