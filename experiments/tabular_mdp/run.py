"""Random tabular MDPs as in RL2 (Duan et al. 2016, table 2): MAML on n episodes of 10 steps.

    python experiments/tabular_mdp/run.py train --seed 0           # all rows that are missing
    python experiments/tabular_mdp/run.py report                   # table from the committed results

The n episodes are divided evenly over S + 1 stages; after each there is an inner step. "All episodes counted" is the
average over the S + 1 stages; "post-adaptation only" is the policy after S + 1 steps, on all n episodes. Returns are
divided by what 10 steps of value iteration with discount 0.99 give on the same MDPs, which fits the published numbers.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from metarl_envs.tabular_mdp import optimal_return, uniform_return

import metarl
from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.training.train import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
EPISODES = (10, 25, 50, 75, 100)
TEST_TASKS, TEST_SEED = 1000, 1_357_911
PAPER = {10: ("0.563", "0.752"), 25: ("0.591", "0.859"), 50: ("not trained", ""), 75: ("not trained", ""),
         100: ("not trained", "")}  # fmt: skip
"""Normalised: MAML, RL2 (arXiv 1707.03141, table 4)."""


@dataclass(frozen=True)
class Setting:
    """How the learner adapts at one number of episodes."""

    stages: int  # S + 1
    train_steps: int  # inner steps in training
    train_episodes: int  # in each of the stages there
    inner_lr: float


SETTINGS = {
    10: Setting(10, 9, 1, 1.0),
    25: Setting(25, 9, 2, 0.8),
    50: Setting(25, 9, 5, 1.0),
    75: Setting(25, 9, 8, 1.0),
    100: Setting(25, 9, 10, 1.0),
}
COMMON = {"hidden": (), "inner_optimizer": "natural", "natural_damping": 0.003, "reward_baseline": 1.5,
          "gae_lambda": 0.0, "multi_step_until": 10**9, "n_tasks": 20, "cg_iterations": 10}  # fmt: skip
"""A reward is credited to the action that it followed at once: nearly everything that can be known of these MDPs."""
ITERATIONS = 10


def train(seed: int, runs: Path, episodes: tuple[int, ...]) -> None:
    """Train and test what has no result yet; goes on with what was interrupted."""
    for n in episodes:
        out = RESULTS / f"natural-n{n}-seed{seed}.json"
        if not out.exists():
            one(n, SETTINGS[n], seed, runs / out.stem, out)


def one(n: int, setting: Setting, seed: int, directory: Path, out: Path) -> None:
    """Train one row with one seed, and test it."""
    began = time.perf_counter()
    if (directory / "latest.safetensors").exists():
        made = metarl.MetaLearner.load(directory, device="cpu")
    else:
        made = metarl.MetaLearner(
            "maml_trpo", "TabularMDP-v0", seed=seed, device="cpu", inner_steps=setting.train_steps,
            episodes=setting.train_episodes, inner_lr=setting.inner_lr, **COMMON,
        )  # fmt: skip
    if made.state.iteration < ITERATIONS:
        made.learn(ITERATIONS - made.state.iteration, run_dir=directory, eval_every=10**6)
    trained = time.perf_counter()
    sizes = (setting.inner_lr,) * setting.stages
    found = made.evaluate(TEST_TASKS, episodes=n // setting.stages, step_sizes=sizes, seed=TEST_SEED)
    optimal = optimal_return(found.tasks, 10, 0.99)
    counted, after = found.returns[:, :-1].mean(1), found.returns[:, -1]
    rows = ["task,all_episodes,post_only,optimal"]
    rows += [f"{i},{counted[i]:.4f},{after[i]:.4f},{optimal[i]:.4f}" for i in range(len(counted))]
    atomic_write(out.with_suffix(".csv"), ("\n".join(rows) + "\n").encode())
    write_json(out, {
        "episodes": n, "seed": seed, "setting": asdict(setting), "common": COMMON, "iteration": made.state.iteration,
        "env_steps": made.state.env_steps, "tasks": TEST_TASKS, "test_seed": TEST_SEED,
        "all_episodes": float(counted.mean()), "post_only": float(after.mean()), "optimal": float(optimal.mean()),
        "random": float(uniform_return(found.tasks, 10).mean()),
        "curve": [round(float(x), 4) for x in found.returns.mean(0)],
        "seconds": {"train": round(trained - began, 1), "test": round(time.perf_counter() - trained, 1)},
        "threads": torch.get_num_threads(), "versions": versions(),
    })  # fmt: skip
    print(f"n={n} seed={seed}: all {counted.mean() / optimal.mean():.3f}, post {after.mean() / optimal.mean():.3f}, "
          f"{trained - began:.0f} + {time.perf_counter() - trained:.0f} s", flush=True)  # fmt: skip


def report() -> None:
    """The table, in Markdown."""
    found = [read_json(path) for path in sorted(RESULTS.glob("*-seed*.json"))]
    lines = [
        "| n | total, random | total, ours | random | all episodes counted | post-adaptation only | MAML (published) | "
        "RL2 (published) | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for n in EPISODES:
        runs = [x for x in found if x["episodes"] == n]
        if runs:
            each = [[x[name] / x["optimal"] for x in runs] for name in ("random", "all_episodes", "post_only")]
            total = [n * float(np.mean([x[name] for x in runs])) for name in ("random", "all_episodes")]
            cells = [f"{total[0]:.1f}", f"{total[1]:.1f}", f"{np.mean(each[0]):.3f}", f"**{spread(each[1])}**",
                     spread(each[2]), *PAPER[n], str(len(runs))]  # fmt: skip
            lines.append(f"| {n} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())


def spread(values: list[float]) -> str:
    """Mean over seeds, with the lowest and the highest."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", nargs="+", type=int, choices=EPISODES, default=EPISODES)
    parser.add_argument("--runs", type=Path, default=Path("runs/tabular_mdp"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    if args.command == "train":
        train(args.seed, args.runs, tuple(args.episodes))
    else:
        report()


if __name__ == "__main__":
    main()
