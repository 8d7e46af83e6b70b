"""2D navigation by every meta-learner under one protocol.

    python experiments/navigation/run.py trials             # short runs that choose the step sizes of training
    python experiments/navigation/run.py train --seed 0     # all methods; resumes where it was interrupted
    python experiments/navigation/run.py report             # table and figure from the committed files alone

Every method trains on the same number of environment steps, and its last iterate is adapted to the same 100 test goals
by 3 inner steps on 40 fresh episodes each; RL² by the first 3 episodes of a trial, over 40 trials of 4. What training's
step sizes are is chosen by short runs on a seed of its own, what those of the test are, step by step, on validation
goals; from the same grids for every method (RL² has no step sizes in the test).
"""

import argparse
import csv
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metarl
from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.report import figures
from metarl.report.evaluation import Evaluation
from metarl.training.train import versions

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import point_oracles  # noqa: E402

RESULTS = HERE / "results"
FAMILY, HORIZON = "PointNavigation-v0", 50
SETTINGS: dict[str, Any] = {"n_tasks": 20, "episodes": 20, "lr_in_std": True, "min_std": 0.4}
BUDGET, TRIAL_BUDGET = 800_000, 480_000
"""Environment steps: 20 and 12 iterations of one inner step in which no episode ends early."""
TRPO = {"max_kl": 0.02}
RL2: dict[str, Any] = {"n_tasks": 50, "trial_episodes": 4, "hidden": 64}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml_trpo": ("maml_trpo", TRPO),
    "lvc": ("maml_trpo", TRPO | {"inner_gradient": "lvc"}),
    "dice": ("maml_trpo", TRPO | {"inner_gradient": "dice"}),
    "fomaml": ("fomaml", TRPO),
    "e_maml": ("e_maml", TRPO | {"exploration": 0.05}),
    "e_maml_1": ("e_maml", TRPO | {"exploration": 1.0}),
    "meta_sgd": ("meta_sgd", TRPO),
    "anil": ("anil", TRPO),
    "cavia": ("cavia", TRPO),
    "maml_ppo": ("maml_ppo", {}),
    "promp": ("promp", {}),
    "maml_vpg": ("maml_vpg", {}),
    "maml_plus_plus": ("maml_plus_plus", {"first_order_until": 3, "multi_step_until": 7, "anneal_over": 14}),
    "reptile": ("reptile", {}),
    "rl2": ("rl2", RL2),
    "rl2_critic": ("rl2", RL2 | {"task_critic": True}),
    "joint": ("maml_trpo", TRPO | {"inner_steps": 0}),
}
"""Algorithm and its settings. MAML++ anneals over what is 14 iterations of its two inner steps: the whole budget.
`e_maml` has the default weight of E-MAML's term, `e_maml_1` that of the exact gradient."""
CONTROLS = ("joint", "e_maml_1")
VARIANTS = {"lvc": "maml_trpo", "dice": "maml_trpo", "rl2_critic": "rl2"}
"""Those that differ in the estimator alone take the step sizes of the other."""
INNER_LR = (0.5, 1.0, 2.0)
OUTER_LR = {"maml_ppo": (3e-3, 1e-2), "promp": (3e-3, 1e-2), "maml_vpg": (3e-3, 1e-2), "maml_plus_plus": (3e-3, 1e-2),
            "reptile": (0.5, 1.0), "rl2": (3e-3, 1e-2)}  # fmt: skip
"""What the trials choose from, for a seed of their own. The controls have no trials: joint training has no inner loop,
and E-MAML with the weight 1 diverged where it was tried."""
TRIAL_SEED = 100
TEST_SIZES = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Step sizes tried on validation goals."""
TEST = {"n_tasks": 100, "episodes": 40}
VALIDATION: dict[str, Any] = {"n_tasks": 20, "episodes": 20, "seed": 24_680}
TEST_SEED = 1_357_911
STEPS = 3


def shared(algorithm: str) -> dict[str, Any]:
    """The settings of all gradient-based methods; RL² has none of them in common."""
    return {} if algorithm == "rl2" else SETTINGS


def candidates(method: str) -> list[dict[str, float]]:
    """The step sizes of training that the trials try."""
    if method in CONTROLS:
        return [{"inner_lr": 0.5}]
    outer = [{"outer_lr": lr} for lr in OUTER_LR.get(method, ())] or [{}]
    if METHODS[method][0] == "rl2":
        return outer
    return [{"inner_lr": inner, **rest} for inner in INNER_LR for rest in outer]


def train_to(method: str, sizes: dict[str, float], seed: int, budget: int, directory: Path) -> metarl.MetaLearner:
    """The learner after `budget` environment steps, going on with what `directory` holds."""
    algorithm, own = METHODS[method]
    if (directory / "latest.safetensors").exists():
        made = metarl.MetaLearner.load(directory, device="cpu")
    else:
        shutil.rmtree(directory, ignore_errors=True)  # what broke off before its first checkpoint
        family = metarl.make(FAMILY, horizon=HORIZON)
        made = metarl.MetaLearner(algorithm, family, seed=seed, device="cpu", **shared(algorithm), **own, **sizes)
    if made.state.env_steps < budget:
        made.learn(100_000, run_dir=directory, callback=lambda stats: stats["env_steps"] < budget, eval_every=0,
                   checkpoint_every=5)  # fmt: skip
    return made


def trials(runs: Path, methods: Sequence[str]) -> None:
    """Short runs with every candidate; the mean return of each on validation goals after training's inner steps."""
    for method in methods:
        path = RESULTS / f"{method}-trials.json"
        if path.exists() or method in (*CONTROLS, *VARIANTS):
            continue
        rows = []
        for i, sizes in enumerate(candidates(method)):
            try:
                made = train_to(method, sizes, TRIAL_SEED, TRIAL_BUDGET, runs / f"{method}-trial{i}")
                curve = made.evaluate(**VALIDATION | {"n_tasks": 100}, steps=made.config.inner_steps).mean
                score = round(float(curve[-1]), 3)
            except ValueError as error:
                if not any(word in str(error) for word in ("nan", "inf")):
                    raise
                print(method, sizes, error, flush=True)  # steps so large that some number is not finite
                score = None
            rows.append({**sizes, "score": score})
            print(method, rows[-1], flush=True)
        RESULTS.mkdir(exist_ok=True)
        write_json(path, {"method": method, "seed": TRIAL_SEED, "env_steps": TRIAL_BUDGET, "trials": rows})


def chosen(method: str) -> dict[str, float]:
    """The step sizes of training with the best trial."""
    if method in CONTROLS:
        return candidates(method)[0]
    method = VARIANTS.get(method, method)
    rows = [row for row in read_json(RESULTS / f"{method}-trials.json")["trials"] if row["score"] is not None]
    best = max(rows, key=lambda row: row["score"])
    return {name: value for name, value in best.items() if name != "score"}


def train(seed: int, runs: Path, methods: Sequence[str], budget: int) -> None:
    for method in methods:
        if (RESULTS / f"{method}-seed{seed}.json").exists():
            continue
        directory = runs / f"{method}-seed{seed}"
        fresh, cpu = not (directory / "latest.safetensors").exists(), time.process_time()
        made = train_to(method, chosen(method), seed, budget, directory)
        seconds = time.process_time() - cpu if fresh else None
        steps: dict[str, Any] = {"steps": STEPS} if made.algorithm == "rl2" else {"step_sizes": tuned(made)}
        found = made.evaluate(**TEST, **steps, seed=TEST_SEED)
        save(found, made, method, seed, directory, seconds)


def tuned(made: metarl.MetaLearner) -> tuple[float, ...]:
    """Step by step, the size with the best mean return after that step on validation goals."""
    sizes: tuple[float, ...] = ()
    for _ in range(STEPS):
        found = {size: made.evaluate(**VALIDATION, step_sizes=(*sizes, size)).mean[-1] for size in TEST_SIZES}
        sizes = (*sizes, max(found, key=found.__getitem__))
    return sizes


def save(
    found: Evaluation, made: metarl.MetaLearner, method: str, seed: int, directory: Path, cpu: float | None
) -> None:  # fmt: skip
    rows = [{"task": k, "goal_x": found.tasks["goal"][k, 0], "goal_y": found.tasks["goal"][k, 1],
             **{f"return_{s}": round(float(found.returns[k, s]), 4) for s in range(found.returns.shape[1])}}
            for k in range(len(found.returns))]  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{method}-seed{seed}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    atomic_write(RESULTS / f"{method}-seed{seed}-training.csv", (directory / "metrics.csv").read_bytes())
    metrics = training_rows(RESULTS / f"{method}-seed{seed}-training.csv")
    write_json(RESULTS / f"{method}-seed{seed}.json", {
        "method": method, "seed": seed, "iterations": made.state.iteration, "env_steps": made.state.env_steps,
        "step_sizes": list(found.step_sizes), "protocol": {**TEST, "seed": TEST_SEED}, "settings": made.describe(),
        "wall_seconds": round(sum(row["time/rollout"] + row["time/update"] for row in metrics), 1),
        "cpu_seconds": None if cpu is None else round(cpu, 1), "threads": torch.get_num_threads(),
        "machine": platform.machine(), "versions": versions(), "mean": [round(float(x), 3) for x in found.mean],
    })  # fmt: skip
    print(method, "seed", seed, "step sizes", found.step_sizes, "mean return", np.round(found.mean, 2), flush=True)


def training_rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v not in ("", "True", "False")} for row in csv.DictReader(file)]


# ---------------------------------------------------------------------------------------------------------------------
# Report


def report() -> None:
    """Table over seeds and the figure, from the committed files alone."""
    lines = ["| method | inner_lr, outer_lr | seeds | k = 0 | 1 | 2 | 3 | iterations | CPU seconds per run |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        metas = [read_json(path) for path in sorted(RESULTS.glob(f"{method}-seed*.json"))]
        if not metas:
            continue
        found[method] = metas
        curves, config = np.array([meta["mean"] for meta in metas]), metas[0]["settings"]["config"]
        cells = [f"{x.mean():.1f} ({x.min():.1f} to {x.max():.1f})" if len(x) > 1 else f"{x[0]:.1f}" for x in curves.T]
        sizes = ", ".join(f"{config[name]:g}" for name in ("inner_lr", "outer_lr") if name in config)
        seconds = [meta["cpu_seconds"] for meta in metas if meta["cpu_seconds"]]
        lines.append(f"| `{method}` | {sizes} | {len(metas)} | " + " | ".join(cells) +
                     f" | {metas[0]['iterations']} | {np.mean(seconds):.0f} |")  # fmt: skip
    goals = read_goals(RESULTS / f"{next(iter(found))}-seed{next(iter(found.values()))[0]['seed']}.csv")
    lines += ["", *point_oracles.table(goals, HORIZON)]
    table = "\n".join(lines)
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    draw(found)


def read_goals(path: Path) -> np.ndarray:
    """[tasks, 2]"""
    with path.open(newline="") as file:
        return np.array([(float(row["goal_x"]), float(row["goal_y"])) for row in csv.DictReader(file)])


def draw(found: dict[str, list[dict[str, Any]]]) -> None:
    figure, (left, right) = figures.new_figure(2, width=6.0, height=4.6)
    for i, (method, metas) in enumerate(found.items()):
        look = {"color": f"C{i % 7}", "linestyle": ("-", "--", ":")[i // 7], "linewidth": 1.2}
        for n, meta in enumerate(metas):
            rows = training_rows(RESULTS / f"{method}-seed{meta['seed']}-training.csv")
            name = "return/step_1" if "return/step_1" in rows[0] else "return/step_0"
            left.plot([row["env_steps"] / 1e6 for row in rows], smooth([row[name] for row in rows]),
                      label=None if n else method, alpha=1.0 if n == 0 else 0.4, **look)  # fmt: skip
        right.plot(range(STEPS + 1), np.mean([meta["mean"] for meta in metas], 0), marker="o", markersize=3, **look)
    left.set(xlabel="million environment steps", ylabel="mean return after one inner step (joint: none; rl2: episode)",
             title="meta-training, train goals, mean of 3 iterations", ylim=(-40, 0))  # fmt: skip
    right.set(xlabel="inner steps (rl2: earlier episodes)", ylabel="mean return", ylim=(-27, 0),
              title="100 test goals, mean over seeds")  # fmt: skip
    right.set_xticks(range(STEPS + 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figures.save_figure(figure, RESULTS / "navigation.png")


def smooth(x: Sequence[float], width: int = 3) -> np.ndarray:
    """Means over this and the `width` - 1 values before (fewer at the start)."""
    return np.array([np.mean(x[max(0, i - width + 1) : i + 1]) for i in range(len(x))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("trials", "train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--budget", type=int, default=BUDGET, help="environment steps of training")
    parser.add_argument("--runs", type=Path, default=Path("runs/navigation"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "trials":
        trials(args.runs, args.methods)
    elif args.command == "train":
        train(args.seed, args.runs, args.methods, args.budget)
    else:
        report()


if __name__ == "__main__":
    main()
