"""How many Fisher products, how much damping and which baseline MAML-TRPO learns best with: four families, five seeds.

    python experiments/benchmarks/trust_region_settings.py run      # about 80 CPU minutes; resumes where it stopped
    python experiments/benchmarks/trust_region_settings.py report   # the table, from results/trust_region_settings.csv

Each cell trains one seed with one setting and adapts the last state to tasks that no training or reported test saw.
"""

import argparse
import csv
import math
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import metarl
from metarl.outer import trust_region
from metarl.outer.trust_region import conjugate_gradient

RESULTS = Path(__file__).parent / "results" / "trust_region_settings.csv"
SEEDS = (50, 51, 52, 53, 54)
EVALUATION_SEED = 777_001
SETTINGS: dict[str, dict[str, Any]] = {
    "10 products, 1e-5, to the end": {"cg_iterations": 10, "damping": 1e-5},
    "10 products, 1e-5": {"cg_iterations": 10, "damping": 1e-5},
    "10 products, 1e-2": {"cg_iterations": 10, "damping": 1e-2},
    "5 products, 1e-5": {"cg_iterations": 5, "damping": 1e-5},
    "5 products, 1e-2": {"cg_iterations": 5, "damping": 1e-2},
    "10 products, 1e-1": {"cg_iterations": 10, "damping": 1e-1},
    "7 products, 1e-2": {"cg_iterations": 7, "damping": 1e-2},
    **{f"5 products, 1e-5; baseline {kind}": {"cg_iterations": 5, "damping": 1e-5, "baseline": kind}
       for kind in ("value", "time", "none")},
}  # fmt: skip
TO_THE_END = "10 products, 1e-5, to the end"
"""Also where the residuals are no longer orthogonal."""
FAMILIES: dict[str, dict[str, Any]] = {
    "TabularMDP-v0": {
        "iterations": 100, "tasks": 200, "episodes": 20, "step_sizes": (2.0,),
        "config": {"inner_lr": 2.0, "hidden": (32, 32)},
    },
    "PendulumParams-v0": {
        "iterations": 40, "tasks": 100, "episodes": 10, "step_sizes": (0.5,),
        "config": {"episodes": 10, "inner_lr": 0.5, "lr_in_std": True, "hidden": (32, 32)},
    },
    "PointNavigation-v0": {
        "iterations": 60, "tasks": 100, "episodes": 40, "step_sizes": (0.5, 0.25, 0.125),
        "config": {"max_kl": 0.02, "min_std": 0.4, "lr_in_std": True},
    },
    "HalfCheetahDir-v0": {
        "iterations": 30, "tasks": 20, "episodes": 10, "step_sizes": (1.0,), "kwargs": {"horizon": 100},
        "config": {"n_tasks": 20, "episodes": 10, "inner_lr": 1.0, "lr_in_std": True, "min_std": 0.1, "max_kl": 0.02},
    },
}  # fmt: skip
COLUMNS = ("family", "setting", "seed", "products", "accepted", "cpu_seconds", "training_return",
           "k0", "k1", "k2", "k3")  # fmt: skip


def cell(family: str, setting: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one seed: a row of the results."""
    spec = FAMILIES[family]
    made = metarl.make(family, **spec.get("kwargs", {}))
    learner = metarl.MetaLearner("maml_trpo", made, seed=seed, **spec["config"], **SETTINGS[setting])
    logged: list[dict[str, Any]] = []
    limit = math.inf if setting == TO_THE_END else 0.001
    start = time.process_time()
    with patch.object(trust_region, "conjugate_gradient", partial(conjugate_gradient, orthogonality=limit)):
        learner.learn(spec["iterations"], callback=lambda stats: logged.append(dict(stats)), eval_every=0)
    seconds = time.process_time() - start
    found = learner.evaluate(n_tasks=spec["tasks"], episodes=spec["episodes"], step_sizes=spec["step_sizes"],
                             seed=EVALUATION_SEED)  # fmt: skip
    last = logged[-10:]
    row = {"family": family, "setting": setting, "seed": seed,
           "products": round(float(np.mean([x["outer/cg_products"] for x in logged])), 2),
           "accepted": round(float(np.mean([x["outer/accepted"] for x in logged])), 3),
           "cpu_seconds": round(seconds, 1),
           "training_return": round(float(np.mean([x["return/step_1"] for x in last])), 3)}  # fmt: skip
    return row | {f"k{k}": round(float(x), 3) for k, x in enumerate(found.mean)}


def rows() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def run(families: list[str], settings: list[str], seeds: list[int]) -> None:
    done = {(row["family"], row["setting"], int(row["seed"])) for row in rows()}
    for seed in seeds:
        for family in families:
            for setting in settings:
                if (family, setting, seed) in done:
                    continue
                found = cell(family, setting, seed)
                new = not RESULTS.exists()
                with RESULTS.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
                    if new:
                        writer.writeheader()
                    writer.writerow(found)
                print(found, flush=True)


def report() -> None:
    print("| family | setting | seeds | products taken | k = 0 | 1 | 2 | 3 | last k: seeds' range | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    found = rows()
    for family in FAMILIES:
        for setting in SETTINGS:
            own = [row for row in found if (row["family"], row["setting"]) == (family, setting)]
            if not own:
                continue
            names = [name for name in ("k0", "k1", "k2", "k3") if own[0][name]]
            means = [f"{np.mean([float(row[name]) for row in own]):.2f}" for name in names] + [""] * (4 - len(names))
            last = [float(row[names[-1]]) for row in own]
            products, seconds = (np.mean([float(row[name]) for row in own]) for name in ("products", "cpu_seconds"))
            print(f"| {family} | {setting} | {len(own)} | {products:.1f} | " + " | ".join(means)
                  + f" | {min(last):.2f} to {max(last):.2f} | {seconds:.0f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "run":
        run(args.families, args.settings, args.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
