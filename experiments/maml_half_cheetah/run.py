"""Half cheetah, direction and velocity, as in the MAML paper (Finn, Abbeel, Levine 2017, figure 5, appendix table 5).

    python experiments/maml_half_cheetah/run.py train --task dir --seed 0     # resumes where it was interrupted
    python experiments/maml_half_cheetah/run.py train --task vel --seed 0
    python experiments/maml_half_cheetah/run.py train --task dir --seed 0 --go-on --iterations 1000   # from the results
    python experiments/maml_half_cheetah/run.py report                        # table and figures of what was trained

Needs the extra `mujoco`. Training stops after --iterations or after --hours, whichever comes first, and goes on from
there when the command is given again; with --go-on, where the run directory is gone, from the checkpoint that lies
beside the results. Then the best iterate (by validation tasks) is adapted to test tasks as in the paper: 3 inner
steps, each on 20 fresh episodes, the first with training's step size and the later ones with half of it.
"""

import argparse
import csv
import shutil
import time
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
FAMILIES = {"dir": ("HalfCheetahDir-v0", {"horizon": 200}), "vel": ("HalfCheetahVel-v0", {"horizon": 200})}
SETTINGS: dict[str, Any] = {"n_tasks": 40, "episodes": 20, "inner_lr": 1.0, "lr_in_std": True, "min_std": 0.1,
                            "max_kl": 0.06}  # fmt: skip
TEST = {"n_tasks": 40, "episodes": 20}
TEST_SEED = 123_456_789
PAPER = {"dir": {"MAML (paper)": (-50.69, 293.19, 313.48, 315.65)}, "vel": {}}
"""Finn et al. 2017, table 5. The velocity experiment is only shown as a curve there."""


def train(task: str, seed: int, runs: Path, iterations: int, hours: float, go_on: bool = False) -> None:
    directory, kept = runs / f"{task}-seed{seed}", RESULTS / f"{task}-seed{seed}"
    id, kwargs = FAMILIES[task]
    if go_on and not directory.exists():
        shutil.copytree(kept, directory)
    if (directory / "latest.safetensors").exists():
        made = metarl.MetaLearner.load(directory, device="cpu")
    else:
        made = metarl.MetaLearner("maml_trpo", metarl.make(id, **kwargs), seed=seed, device="cpu", **SETTINGS)
    stop = time.monotonic() + 3600 * hours
    step_sizes = sizes(made)
    while made.state.iteration < iterations and time.monotonic() < stop:
        made.learn(min(10, iterations - made.state.iteration), run_dir=directory, progress_bar=True, eval_every=10,
                   eval_tasks=10, eval_step_sizes=step_sizes)  # fmt: skip
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "latest.safetensors", "best.safetensors", "metrics.csv"):
            atomic_write(kept / name, (directory / name).read_bytes())
    best = metarl.MetaLearner.load(directory / "best.safetensors", device="cpu")
    found = best.evaluate(**TEST, step_sizes=step_sizes, seed=TEST_SEED)
    rows = [{"task": k, **{name: float(value[k]) for name, value in found.tasks.items()},
             **{f"return_{s}": found.returns[k, s] for s in range(found.returns.shape[1])}}
            for k in range(len(found.returns))]  # fmt: skip
    with (RESULTS / f"{task}-seed{seed}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_json(RESULTS / f"{task}-seed{seed}.json", {
        "task": task, "seed": seed, "iterations": made.state.iteration, "env_steps": made.state.env_steps,
        "best_iteration": best.state.iteration, "step_sizes": list(found.step_sizes),
        "protocol": {**TEST, "seed": TEST_SEED}, "settings": made.describe(), "threads": torch.get_num_threads(),
        "versions": versions(), "mean": [round(float(x), 3) for x in found.mean],
    })  # fmt: skip
    print(task, "seed", seed, "after", made.state.iteration, "iterations: mean return", np.round(found.mean, 2))


def sizes(made: metarl.MetaLearner) -> tuple[float, float, float]:
    """One step size for each inner step of evaluation, as in the paper."""
    first = made.config.inner_lr
    return first, first / 2, first / 2


def report() -> None:
    """Tables and figures from the committed files alone."""
    for task in FAMILIES:
        metas = [read_json(path) for path in sorted(RESULTS.glob(f"{task}-seed*.json"))]
        if not metas:
            continue
        lines = ["| | iterations | million steps | k = 0 | 1 | 2 | 3 |", "|---|---|---|---|---|---|---|"]
        for meta in metas:
            cells = " | ".join(f"{x:.1f}" for x in meta["mean"])
            steps = f"{meta['env_steps'] / 1e6:.1f}"
            lines.append(f"| seed {meta['seed']} | {meta['iterations']} | {steps} | {cells} |")
        for name, values in PAPER[task].items():
            lines.append(f"| {name} | up to 500 | | " + " | ".join(f"{x:.1f}" for x in values) + " |")
        table = f"{FAMILIES[task][0]}\n\n" + "\n".join(lines) + "\n"
        print(table)
        atomic_write(RESULTS / f"{task}-table.md", table.encode())
        draw(task, metas)


def draw(task: str, metas: list[dict[str, Any]]) -> None:
    figure, (left, right) = figures.new_figure(2, width=5.0)
    for meta in metas:
        left.plot(range(4), meta["mean"], "o-", color=f"C{meta['seed']}", label=f"seed {meta['seed']}", markersize=4)
        with (RESULTS / f"{task}-seed{meta['seed']}" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for step, style in ((0, ":"), (1, "-")):
            steps = [float(row["env_steps"]) / 1e6 for row in rows]
            name = f"seed {meta['seed']}, {'after' if step else 'before'} adaptation"
            right.plot(steps, [float(row[f"return/step_{step}"]) for row in rows], style, color=f"C{meta['seed']}",
                       linewidth=1, label=name)  # fmt: skip
    for name, values in PAPER[task].items():
        left.plot(range(4), values, "x--", color="0.4", label=name)
    left.set(xlabel="inner steps", ylabel="mean return", title=f"{FAMILIES[task][0]}: 40 test tasks, best iterate")
    left.set_xticks(range(4))
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="million environment steps", ylabel="mean return", title="meta-training (train tasks)")
    right.legend(frameon=False, fontsize=8)
    figures.save_figure(figure, RESULTS / f"half_cheetah_{task}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--task", choices=tuple(FAMILIES), default="dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--go-on", action="store_true", help="from the checkpoint beside the results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=Path, default=Path("runs/maml_half_cheetah"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.task, args.seed, args.runs, args.iterations, args.hours, args.go_on)
    else:
        report()


if __name__ == "__main__":
    main()
