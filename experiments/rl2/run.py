"""Bandits and tabular Markov decision processes with RL² (Duan et al. 2016, https://arxiv.org/abs/1611.02779).

    python experiments/rl2/run.py train --row bandit-n10-k5 --seed 0     # one row; resumes where it was interrupted
    python experiments/rl2/run.py report                                 # table and figure from all that was trained

Rows of 500 pulls have the same seed's policy for 100 pulls, which has to be trained before, as it is: to train it
further in trials of 500 did not raise what it earns. The row of 25 episodes has that for 10 episodes.

A row `bandit-nN-kA` has trials of N pulls of A arms (Bernoulli, probabilities uniform in [0, 1]); the score is the
total reward. A row `mdp-nN` has trials of N episodes of 10 steps; the score is the total reward over N times what a
policy that knows its task expects of an episode, by value iteration over 10 steps with discount 0.99 (the published
numbers fit that). Training stops after the row's iterations or after --minutes, whichever comes first, and goes on from
there when the command is given again. The last state is tested, on tasks that nothing was trained or chosen on.
"""

import argparse
import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from metarl_envs.bandit_strategies import Seen, bayes_value, gittins, play
from metarl_envs.bandit_values import strategy_value, value_bound
from metarl_envs.tabular_mdp import optimal_return

import metarl
from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.report import figures
from metarl.rollout.sampler import Sampler
from metarl.training.train import RunDirectory, versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
COMMON: dict[str, Any] = {"gamma": 1.0, "outer_lr": 3e-3, "minibatches": 4, "hidden": 64}
SHORT = {**COMMON, "n_tasks": 1000, "gae_lambda": 0.9, "anneal_over": 300}
MANY_ARMS = {**SHORT, "gae_lambda": 0.3, "outer_lr": 6e-3, "anneal_over": 600}
LONG = {**COMMON, "n_tasks": 500, "gae_lambda": 0.95, "epochs": 4, "outer_lr": 0.012, "anneal_over": 800}
LONG_MANY_ARMS = {
    **COMMON, "n_tasks": 500, "gae_lambda": 0.95, "epochs": 1, "minibatches": 8, "outer_lr": 0.01, "anneal_over": 1000,
    "last_obs": True, "products": True, "input_gain": 4.0, "memory_steps": 100.0,
}  # fmt: skip
MDP: dict[str, Any] = {
    "n_tasks": 500, "gamma": 0.0, "gae_lambda": 0.0, "entropy_coef": 0.03, "outer_lr": 3e-3, "anneal_over": 800,
    "epochs": 1, "minibatches": 10, "hidden": 256, "head_hidden": 128, "last_obs": True, "products": True,
    "input_gain": 6.0, "memory_steps": 50.0,
}  # fmt: skip
AS_IT_IS = {"anneal_over": 0}
ROWS: dict[str, dict[str, Any]] = {
    **{f"bandit-n10-k{arms}": {"arms": arms, "n": 10, "settings": SHORT, "tasks": 40_000} for arms in (5, 10)},
    "bandit-n10-k50": {"arms": 50, "n": 10, "settings": MANY_ARMS, "tasks": 40_000},
    **{f"bandit-n100-k{arms}": {"arms": arms, "n": 100, "settings": LONG, "tasks": 4000} for arms in (5, 10)},
    "bandit-n100-k50": {"arms": 50, "n": 100, "settings": LONG_MANY_ARMS, "tasks": 4000},
    "bandit-n500-k5": {"arms": 5, "n": 500, "settings": LONG | AS_IT_IS, "tasks": 1000},
    "bandit-n500-k10": {"arms": 10, "n": 500, "settings": LONG | AS_IT_IS, "tasks": 1000},
    "bandit-n500-k50": {"arms": 50, "n": 500, "settings": LONG_MANY_ARMS | AS_IT_IS, "tasks": 1000},
    "mdp-n10": {"n": 10, "settings": MDP, "tasks": 2000},
    "mdp-n25": {"n": 25, "settings": MDP | AS_IT_IS, "tasks": 2000},
}
STARTS_FROM = {f"bandit-n500-k{arms}": f"bandit-n100-k{arms}" for arms in (5, 10, 50)} | {"mdp-n25": "mdp-n10"}
GITTINS = {10: {5: 0.5, 10: 0.5, 50: 0.5}, 100: {5: 0.98, 10: 0.98, 50: 0.99}, 500: {5: 0.995, 10: 0.995, 50: 0.995}}
"""Pulls: arms: the discount with which Gittins' strategy earns most on training bandits (`experiments/bandits`)."""
TEST_SEED = 97_531
PAPER = {
    "bandit-n10-k5": 6.7, "bandit-n10-k10": 6.7, "bandit-n10-k50": 6.8,
    "bandit-n100-k5": 78.7, "bandit-n100-k10": 83.5, "bandit-n100-k50": 84.9,
    "bandit-n500-k5": 401.6, "bandit-n500-k10": 432.5, "bandit-n500-k50": 438.9, "mdp-n10": 0.752, "mdp-n25": 0.859,
}  # fmt: skip
"""RL²'s results: Duan et al. 2016, table 1; of MDPs Mishra et al. 2018 (https://arxiv.org/abs/1707.03141), table 3."""


def family_of(row: str) -> Any:
    arms = ROWS[row].get("arms")
    return metarl.make("TabularMDP-v0") if arms is None else metarl.make("BernoulliBandit-v0", arms=arms)


def train(row: str, seed: int, runs: Path, minutes: float) -> None:
    directory, settings = runs / f"{row}-seed{seed}", ROWS[row]["settings"]
    if (directory / "latest.safetensors").exists():
        made = metarl.MetaLearner.load(directory, device="cpu")
    else:
        made = metarl.MetaLearner(
            "rl2", family_of(row), seed=seed, device="cpu", trial_episodes=ROWS[row]["n"], **settings
        )
        if row in STARTS_FROM:
            made.start_from(runs / f"{STARTS_FROM[row]}-seed{seed}")
    stop, iterations = time.monotonic() + 60 * minutes, settings["anneal_over"]
    made.learn(
        max(0, iterations - made.state.iteration), run_dir=directory, eval_every=0,
        callback=lambda _: time.monotonic() < stop,
    )  # fmt: skip
    bandit = "arms" in ROWS[row]
    found = made.evaluate(ROWS[row]["tasks"], episodes=1, seed=TEST_SEED, details=bandit)
    tried = num_distinct(found.details.trials.act[..., 0].numpy()) if bandit else None
    save(row, seed, made, found.returns, scale(row, found.tasks), tried)
    if iterations:
        atomic_write(RESULTS / f"{row}-seed{seed}-training.csv", (directory / "metrics.csv").read_bytes())


def num_distinct(actions: np.ndarray) -> float:
    """How many different numbers a row [N, T] has, on average."""
    ordered = np.sort(actions, 1)
    return float(1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1).mean())


def scale(row: str, tasks: Mapping[str, np.ndarray]) -> float:
    """What the total reward is divided by."""
    if "arms" in ROWS[row]:
        return 1.0
    return ROWS[row]["n"] * float(optimal_return(dict(tasks), 10, 0.99).mean())


def save(
    row: str, seed: int, made: metarl.MetaLearner, returns: np.ndarray, unit: float, arms_tried: float | None
) -> None:
    RESULTS.mkdir(exist_ok=True)
    n_tasks = len(returns)
    with (RESULTS / f"{row}-seed{seed}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["episode", "mean_return", "standard_error"])
        for k, x in enumerate(returns.T):
            writer.writerow([k, round(float(x.mean()), 5), round(float(x.std() / n_tasks**0.5), 5)])
    total = returns.sum(1) / unit
    rows = logged(made)
    write_json(RESULTS / f"{row}-seed{seed}.json", {
        "row": row, "seed": seed, "score": float(total.mean()), "standard_error": float(total.std() / n_tasks**0.5),
        "total_reward": float(returns.sum(1).mean()), "unit": unit, "arms_tried": arms_tried,
        "test_tasks": n_tasks, "test_seed": TEST_SEED, "iterations": made.state.iteration,
        "env_steps": made.state.env_steps,
        "training_seconds": round(sum(r["time/rollout"] + r["time/update"] for r in rows)),
        "settings": made.describe(), "threads": torch.get_num_threads(), "versions": versions(),
    })  # fmt: skip
    print(row, "seed", seed, f"score {total.mean():.3f} +- {total.std() / n_tasks**0.5:.3f}")


def logged(made: metarl.MetaLearner) -> list[dict[str, Any]]:
    """The rows that the learner's run has logged."""
    assert made._run_dir is not None
    return RunDirectory(made._run_dir).metrics()


def classical(row: str) -> tuple[str, str, float]:
    """What Gittins' strategy (it knows how arms are distributed) earns on the very test tasks, with its standard error
    and, of 10 pulls, its exact expectation; the expectation of the best strategy there is, exactly or from above; and
    how many arms Gittins' strategy tries."""
    arms, n = ROWS[row]["arms"], ROWS[row]["n"]
    p = Sampler(family_of(row)).tasks(ROWS[row]["tasks"], TEST_SEED, 0, "test")["p"]
    strategy, taken = gittins(GITTINS[n][arms], pulls=n), []

    def noted(seen: Seen, rng: np.random.Generator) -> np.ndarray:
        taken.append(strategy(seen, rng))
        return taken[-1]

    earned = play(noted, p, n, np.random.default_rng(0)).sum(1)
    index = with_error(row, float(earned.mean()), float(earned.std() / len(earned) ** 0.5))
    if n == 10:
        index += f"; {strategy_value(strategy, arms, n):.3f}"
    best = f"{bayes_value(arms, n):.3f}" if n == 10 else f"at most {value_bound(arms, n):.1f}"
    return index, best, num_distinct(np.stack(taken, 1))


def with_error(row: str, value: float, standard_error: float) -> str:
    digits = 3 if row.startswith("mdp") or ROWS[row]["n"] == 10 else 1
    return f"{value:.{digits}f} ± {standard_error:.{digits}f}"


def posterior_strategy(
    tasks: Mapping[str, np.ndarray], episodes: int, horizon: int, looks: bool, bonus: float = 1.0, seed: int = 0
) -> np.ndarray:
    """What a strategy earns in all of its episodes, [K], that takes the action with the highest mean plus `bonus` times
    the standard deviation of its reward's posterior: in the state where it is (`looks`), or as if there were no
    states, as a policy does that remembers which actions were good but not where. `tasks`: those of a `TabularMDP`."""
    transitions, rewards = np.asarray(tasks["transitions"], np.float64), np.asarray(tasks["rewards"], np.float64)
    (K, S, A), rng = rewards.shape, np.random.default_rng(seed)
    # Mean rewards have mean 1 and variance 1 and are seen with noise of variance 1; an action's mean over the S states
    # has variance 1 / S, and the rest is noise to whom does not look.
    prior, noise = (1.0, 1.0) if looks else (1 / S, 2 - 1 / S)
    every, earned = np.arange(K), np.zeros(K)
    total, count = np.zeros((K, S, A)), np.zeros((K, S, A))
    for _ in range(episodes):
        state = np.zeros(K, np.int64)
        for _ in range(horizon):
            seen = state if looks else np.zeros_like(state)
            precision = 1 / prior + count[every, seen] / noise
            mean = (1 / prior + total[every, seen] / noise) / precision
            action = (mean + bonus * precision**-0.5).argmax(-1)
            reward = rewards[every, state, action] + rng.standard_normal(K)
            earned += reward
            total[every, seen, action] += reward
            count[every, seen, action] += 1
            rows = transitions[every, state, action].cumsum(-1)[:, :-1]
            state = (rows <= rng.random((K, 1))).sum(-1)
    return earned


def strategies_in_mdps() -> list[str]:
    """A table: what three strategies that know how tasks are distributed earn on the test tasks."""
    names = ("row", "bandit strategy in every state", "without exploration", "blind to the state", "RL² (paper)")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in (row for row in ROWS if row.startswith("mdp")):
        tasks, n = Sampler(family_of(row)).tasks(ROWS[row]["tasks"], TEST_SEED, 0, "test"), ROWS[row]["n"]
        kinds = ((True, 1.0), (True, 0.0), (False, 1.0))
        scores = [posterior_strategy(tasks, n, 10, *kind).mean() / scale(row, tasks) for kind in kinds]
        lines.append(f"| {row} | {' | '.join(f'{x:.3f}' for x in scores)} | {PAPER[row]} |")
    return lines


def report() -> None:
    """Table and figure, from the committed files alone."""
    metas = [read_json(path) for path in sorted(RESULTS.glob("*-seed*.json"))]
    names = ("row", "ours", "seeds", "RL² (paper)", "Gittins, same tasks; exact", "best possible",
             "arms tried, ours and Gittins", "iterations", "steps", "training, minutes")  # fmt: skip
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in ROWS:
        own = [m for m in metas if m["row"] == row]
        if not own:
            continue
        scores = np.array([m["score"] for m in own])
        digits = 3 if row.startswith("mdp") or ROWS[row]["n"] == 10 else 1
        seeds = "" if len(own) == 1 else f" ({scores.min():.{digits}f} to {scores.max():.{digits}f})"
        known = ("", "", "")
        if "arms" in ROWS[row]:
            index, best, arms = classical(row)
            tried = [m["arms_tried"] for m in own if "arms_tried" in m]  # earlier results do not have it
            known = (index, best, f"{np.mean(tried):.1f}, {arms:.1f}" if tried else "")
        # All seeds have the same test tasks: a mean over seeds has no smaller error than each of them, at worst.
        error = float(np.mean([m["standard_error"] for m in own]))
        cells = [
            row, f"{with_error(row, scores.mean(), error)}{seeds}", listed(own, "seed"), PAPER[row],
            *known, listed(own, "iterations"),
            f"{np.mean([m['env_steps'] for m in own]) / 1e6:.1f} million",
            f"{np.mean([m['training_seconds'] for m in own]) / 60:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    table = "\n".join([*lines, "", *strategies_in_mdps()])
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    draw(metas)


def listed(metas: list[dict[str, Any]], name: str) -> str:
    return ", ".join(str(m[name]) for m in metas)


def draw(metas: list[dict[str, Any]]) -> None:
    """Training as a share of the published result, and what is earned within a trial."""
    figure, (left, right) = figures.new_figure(2, width=5.0)
    shown = [row for row in ROWS if any(m["row"] == row for m in metas)]
    for i, row in enumerate(shown):
        line: dict[str, Any] = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else ":", "linewidth": 1}
        for j, meta in enumerate(m for m in metas if m["row"] == row):
            label = None if j else row
            if (path := RESULTS / f"{row}-seed{meta['seed']}-training.csv").exists():
                with path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
                steps = np.array([float(r["env_steps"]) for r in rows]) / 1e6
                share = smooth(np.array([float(r["return/trial"]) for r in rows])) / meta["unit"] / PAPER[row]
                left.plot(steps[len(steps) - len(share) :], share, **line)
            within = np.genfromtxt(RESULTS / f"{row}-seed{meta['seed']}.csv", delimiter=",", names=True)
            earned = within["mean_return"] / (meta["unit"] / ROWS[row]["n"] if row.startswith("mdp") else 1)
            right.plot(within["episode"] + 1, earned, label=label, **line)
    left.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    left.set(xlabel="million environment steps", ylabel="share of the published result", title="training tasks",
             xscale="log", ylim=(0.55, 1.05))  # fmt: skip
    right.set(xlabel="episode of the trial", ylabel="mean return (MDPs: normalised)", title="test tasks", xscale="log")
    right.legend(frameon=False, fontsize=7)
    figures.save_figure(figure, RESULTS / "rl2.png")


def smooth(x: np.ndarray, width: int = 5) -> np.ndarray:
    """The mean of the last `width` numbers."""
    width = min(width, len(x))
    return np.convolve(x, np.ones(width) / width, "valid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--row", choices=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--runs", type=Path, default=Path("runs/rl2"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "report":
        report()
    elif args.row is None:
        parser.error("train needs --row")
    else:
        train(args.row, args.seed, args.runs, args.minutes)


if __name__ == "__main__":
    main()
