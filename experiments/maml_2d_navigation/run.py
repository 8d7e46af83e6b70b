"""2D navigation as in the MAML paper (Finn, Abbeel, Levine 2017, figure 4 and appendix table 4).

    python experiments/maml_2d_navigation/run.py train --seed 0     # one seed; resumes where it was interrupted
    python experiments/maml_2d_navigation/run.py report             # table and figure from all trained seeds

Per seed it meta-trains with MAML-TRPO and, with the same settings and number of iterations, one policy on all tasks
jointly (the paper's "pretrained"); with Meta-SGD, which is MAML that learns a step size for every parameter; with
Meta-SGD whose noise before adaptation stays while that after it is learned ("kept_noise"); and with the same, trained
for two inner steps ("two_steps"). Then these and a random initialisation are adapted to the same 400 test goals by the
same protocol: 3 inner steps, each on 40 fresh episodes of 100 steps. The size of every step is the one of a grid that
does best on 200 validation goals, after the steps before it, for every method alike.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metarl
from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.report import figures
from metarl.report.evaluation import Evaluation
from metarl.report.statistics import interquartile_mean
from metarl.training.train import versions

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import point_oracles  # noqa: E402

RESULTS = HERE / "results"
FAMILY = "PointNavigation-v0"
SETTINGS = {"n_tasks": 20, "episodes": 20, "inner_lr": 0.5, "lr_in_std": True, "min_std": 0.4, "max_kl": 0.02}
VARIANTS: dict[str, dict] = {
    "maml": {},
    "meta_sgd": {},
    "learned_noise": {"learned_noise": True, "learned_lr": "scalar", "min_std": 0.1},
    "kept_noise": {"learned_std": False, "init_std": 0.6, "min_std": 0.1, "learned_noise": True, "fisher_stride": 3},
    "two_steps": {
        "learned_std": False,
        "init_std": 0.8,
        "min_std": 0.2,
        "learned_noise": True,
        "fisher_stride": 3,
        "inner_steps": 2,
        "lr_schedule": (1.0, 0.2),
    },
    "pretrained": {"inner_steps": 0},
    "random": {},
}
ALGORITHMS = {"meta_sgd": "meta_sgd", "kept_noise": "meta_sgd", "two_steps": "meta_sgd"}
"""Where it is not `maml_trpo`."""
ITERATIONS = {"maml": 120, "meta_sgd": 120, "learned_noise": 120, "kept_noise": 40, "two_steps": 60, "pretrained": 120,
              "random": 0}  # fmt: skip
ONE_STEP_FIRST = 15
"""Iterations with one inner step before those with two, in `two_steps`: from a random initialisation the second step
alone learns in some seeds, and the first lags behind for good."""
SELECTION_STEP_SIZES = (0.5, 0.25, 0.125)
"""In training, for choosing the iterate."""
NOISE_SELECTION_STEP_SIZES = (0.5, 0.1, 0.05)
"""Where there is less noise after the first step, the score is larger, and steps have to be smaller."""
TWO_STEPS_SELECTION_STEP_SIZES = (0.5, 0.1, 0.02)
SELECTIONS = {
    "learned_noise": NOISE_SELECTION_STEP_SIZES, "kept_noise": NOISE_SELECTION_STEP_SIZES,
    "two_steps": TWO_STEPS_SELECTION_STEP_SIZES,
}  # fmt: skip
SELECTED = ("maml", "meta_sgd", "kept_noise", "two_steps")
"""Of these the iterate is used that is best on validation goals, as the paper uses its best one; else the last."""
GRIDS = {
    "maml": (0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.6, 0.7, 0.8),
    "meta_sgd": (0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.6, 0.7, 0.8),
    "learned_noise": (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.6, 0.7, 0.8),
    "kept_noise": (0.02, 0.035, 0.05, 0.07, 0.1, 0.15, 0.3, 0.5, 0.7),
    "two_steps": (0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.15, 0.3, 0.5, 0.7),
    "pretrained": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
    "random": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
}
"""Step sizes tried on validation goals."""
TEST = {"n_tasks": 400, "episodes": 40}
VALIDATION = {"n_tasks": 200, "episodes": 40, "seed": 24_680}
TEST_SEED = 1_357_911
METHODS = tuple(VARIANTS)
PAPER = {"MAML (paper)": (-40.41, -11.68, -3.33, -3.23)}
"""Finn et al. 2017, table 4."""


def learner(method: str, seed: int, runs: Path) -> tuple[metarl.MetaLearner, int]:
    """The learner of one method, its training gone on with where it was, and the number of iterations wanted."""
    directory = runs / f"{method}-seed{seed}"
    if (directory / "latest.safetensors").exists():
        made = metarl.MetaLearner.load(directory, device="cpu")
    else:
        made = new_learner(method, seed)
        if method == "two_steps":
            after_one_step(made, new_learner(method, seed, inner_steps=1, lr_schedule=()))
    return made, ITERATIONS[method]


def new_learner(method: str, seed: int, **settings: Any) -> metarl.MetaLearner:
    settings = SETTINGS | VARIANTS[method] | settings
    return metarl.MetaLearner(ALGORITHMS.get(method, "maml_trpo"), FAMILY, seed=seed, device="cpu", **settings)


def after_one_step(made: metarl.MetaLearner, first: metarl.MetaLearner) -> None:
    """`made`, with two inner steps, goes on from `first`, which has one and is trained here."""
    first.learn(ONE_STEP_FIRST, progress_bar=True)
    learned = dict(first.state.learned)
    learned["noise"] = torch.cat([learned["noise"], made.state.learned["noise"][1:]])  # the second step's is as it was
    made.state = replace(first.state, learned=learned)


def train(seed: int, runs: Path, methods: Sequence[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    for method in methods:
        selection = SELECTIONS.get(method, SELECTION_STEP_SIZES)
        made, iterations = learner(method, seed, runs)
        if made.state.iteration < iterations:
            made.learn(iterations - made.state.iteration, run_dir=runs / f"{method}-seed{seed}", progress_bar=True,
                       eval_every=10, eval_tasks=40,
                       eval_step_sizes=selection)  # fmt: skip
        best = runs / f"{method}-seed{seed}" / "best.safetensors"
        if method in SELECTED:
            made = metarl.MetaLearner.load(best, device="cpu")
        sizes = tuned(made, GRIDS[method])
        found = made.evaluate(**TEST, step_sizes=sizes, seed=TEST_SEED)
        save(found, made, method, seed)
        if iterations:
            atomic_write(RESULTS / f"{method}-seed{seed}-training.csv",
                         (runs / f"{method}-seed{seed}" / "metrics.csv").read_bytes())  # fmt: skip


def tuned(made: metarl.MetaLearner, grid: Sequence[float], steps: int = 3) -> tuple[float, ...]:
    """Step by step, the size in `grid` with the best mean return after that step on validation goals."""
    sizes: tuple[float, ...] = ()
    for _ in range(steps):
        found = {size: made.evaluate(**VALIDATION, step_sizes=(*sizes, size)).mean[-1] for size in grid}
        sizes = (*sizes, max(found, key=found.__getitem__))
    return sizes


def save(found: Evaluation, made: metarl.MetaLearner, method: str, seed: int) -> None:
    rows = [{"method": method, "seed": seed, "task": k, "goal_x": found.tasks["goal"][k, 0],
             "goal_y": found.tasks["goal"][k, 1],
             **{f"return_{s}": found.returns[k, s] for s in range(found.returns.shape[1])}}
            for k in range(len(found.returns))]  # fmt: skip
    with (RESULTS / f"{method}-seed{seed}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_json(RESULTS / f"{method}-seed{seed}.json", {
        "method": method, "seed": seed, "iteration": made.state.iteration, "env_steps": made.state.env_steps,
        "step_sizes": list(found.step_sizes), "protocol": {**TEST, "seed": TEST_SEED}, "settings": made.describe(),
        "threads": torch.get_num_threads(),
        "versions": versions(), "mean": [round(float(x), 3) for x in found.mean],
    })  # fmt: skip
    print(method, "seed", seed, "step sizes", found.step_sizes, "mean return", np.round(found.mean, 2))


def report() -> None:
    """Table over seeds and the figure, from the committed CSV files alone."""
    metas = [read_json(path) for path in sorted(RESULTS.glob("*-seed*.json"))]
    lines = ["| initialisation | seeds | k = 0 | 1 | 2 | 3 |", "|---|---|---|---|---|---|"]
    curves = {}
    goals = read_goals(next(iter(sorted(RESULTS.glob("maml-seed*[0-9].csv")))))
    weights = stratified_weights(goals)
    for method in METHODS:
        seeds = sorted(m["seed"] for m in metas if m["method"] == method)
        if not seeds:
            continue
        curves[method] = np.stack([read_returns(RESULTS / f"{method}-seed{seed}.csv") for seed in seeds])
        mean = curves[method].mean((0, 1))
        low, high = curves[method].mean(1).min(0), curves[method].mean(1).max(0)
        cells = [f"{m:.2f} ({a:.2f} to {b:.2f})" for m, a, b in zip(mean, low, high, strict=True)]
        lines.append(f"| {method} | {len(seeds)} | " + " | ".join(cells) + " |")
        iqm = interquartile_mean(curves[method].reshape(-1, curves[method].shape[-1]), axis=0)
        lines.append(f"| {method}, interquartile mean | {len(seeds)} | " + " | ".join(f"{x:.2f}" for x in iqm) + " |")
        expected = (weights[:, None] * curves[method].mean(0)).sum(0)
        lines.append(f"| {method}, all goals | {len(seeds)} | " + " | ".join(f"{x:.2f}" for x in expected) + " |")
    for name, values in PAPER.items():
        lines.append(f"| {name} | | " + " | ".join(f"{x:.2f}" for x in values) + " |")
    lines += ["", *point_oracles.table(goals, horizon=100)]
    table = "\n".join(lines)
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    draw(curves)


def stratified_weights(goals: np.ndarray, strata: int = 20) -> np.ndarray:
    """Weights [n] that give the goals' distances from the start the distribution that they have in the whole square.

    Returns depend on the distance above all, and those of 400 goals differ from the whole square's by half a point.
    Within each of `strata` equally likely ranges of distances all goals count the same (post-stratification).
    """
    square = np.linalg.norm(np.random.default_rng(0).uniform(-0.5, 0.5, (1_000_000, 2)), axis=-1)
    bounds = np.quantile(square, np.linspace(0, 1, strata + 1)[1:-1])
    stratum = np.digitize(np.linalg.norm(goals, axis=-1), bounds)
    return 1 / (strata * np.bincount(stratum, minlength=strata)[stratum])


def read_goals(path: Path) -> np.ndarray:
    """[tasks, 2]"""
    with path.open(newline="") as file:
        return np.array([(float(row["goal_x"]), float(row["goal_y"])) for row in csv.DictReader(file)])


def read_returns(path: Path) -> np.ndarray:
    """[tasks, steps + 1]"""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("return_")]
    return np.array([[float(row[name]) for name in names] for row in rows])


def draw(curves: dict[str, np.ndarray]) -> None:
    figure, (left, right) = figures.new_figure(2, width=5.0)
    for i, (method, returns) in enumerate(curves.items()):
        k = np.arange(returns.shape[-1])
        for seed_mean in returns.mean(1):
            left.plot(k, seed_mean, color=f"C{i}", alpha=0.3, linewidth=0.8)
        left.plot(k, returns.mean((0, 1)), "o-", color=f"C{i}", label=f"{method} (ours)", markersize=4)
    for name, values in PAPER.items():
        left.plot(range(4), values, "x--", color="0.4", label=name)
    left.set(xlabel="inner steps", ylabel="mean return", title="400 test goals, 40 episodes each", ylim=(-60, 2))
    left.set_xticks(range(4))
    left.legend(frameon=False, fontsize=8)
    for i, path in enumerate(sorted(RESULTS.glob("maml-seed*-training.csv"))):
        rows = training_rows(path)
        for step in range(4):
            shown = [(row["iteration"], row[f"eval/step_{step}"]) for row in rows if row.get(f"eval/step_{step}")]
            label = None if i else f"k = {step}"
            right.plot(*zip(*shown, strict=True), color=f"C{step}", linewidth=1, label=label)
    right.set(
        xlabel="meta-iteration", ylabel="mean return", title="MAML, 40 validation goals, all seeds", ylim=(-60, 2)
    )
    right.legend(frameon=False, fontsize=8)
    figures.save_figure(figure, RESULTS / "maml_2d_navigation.png")


def training_rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return [{k: float(v) if v not in ("", "True", "False") else None for k, v in row.items()}
                for row in csv.DictReader(file)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--runs", type=Path, default=Path("runs/maml_2d_navigation"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.seed, args.runs, args.methods)
    else:
        report()


if __name__ == "__main__":
    main()
