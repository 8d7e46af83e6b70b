"""Bernoulli bandits as in RL2 (Duan et al. 2016, table 1): MAML beside the classical strategies on the same arms.

    python experiments/bandits/run.py strategies               # Gittins, UCB1, ...: tuned on training instances
    python experiments/bandits/run.py train --seed 0           # MAML, all rows that are missing
    python experiments/bandits/run.py report                   # table and figure from the committed CSV files

A row is a number of arms and of pulls n. MAML's n pulls are divided evenly over S + 1 stages; after each there is an
inner step. "All pulls counted" is what it earns in the S + 1 stages; "post-adaptation only" is what n pulls with the
policy after S + 1 steps, on all n pulls, earn on average. The test instances are the same for all.
"""

import argparse
import csv
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from metarl_envs import bandit_strategies as strategies
from metarl_envs import bandit_values

import metarl
from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.report import figures
from metarl.training.train import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ARMS, PULLS = (5, 10, 50), (10, 100, 500, 1000)
TEST_SEED, TUNING_SEED = 1_357_911, 24_680

PAPER = {  # n: strategy: 5, 10, 50 arms; RL2's table 1 (arXiv 1611.02779), MAML from SNAIL's table 3 (arXiv 1707.03141)
    10: {"random": (5.0, 5.0, 5.1), "gittins": (6.6, 6.6, 6.5), "thompson": (5.7, 5.5, 5.2), "ucb1": (6.7, 6.7, 6.6),
         "eps_greedy": (6.6, 6.6, 6.5), "rl2": (6.7, 6.7, 6.8), "maml": (6.5, 6.6, 6.6)},
    100: {"random": (49.9, 49.9, 49.8), "gittins": (78.3, 82.8, 85.2), "thompson": (74.7, 76.7, 64.5),
          "ucb1": (78.0, 82.4, 84.3), "eps_greedy": (75.4, 77.4, 78.3), "rl2": (78.7, 83.5, 84.9),
          "maml": (67.1, 70.1, 70.3)},
    500: {"random": (249.8, 249.0, 249.6), "gittins": (405.8, 437.8, 463.7), "thompson": (402.0, 429.5, 427.2),
          "ucb1": (405.8, 437.1, 457.6), "eps_greedy": (388.2, 408.0, 413.6), "rl2": (401.6, 432.5, 438.9)},
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How one method learns and adapts at one number of pulls."""

    pulls: int
    stages: int  # S + 1, of the n pulls that are counted
    train_steps: int  # inner steps in training, on batches of pulls / (train_steps + 1)
    iterations: int
    settings: dict
    growth: float = 1.0  # of the inner step size, evenly from the first step to the last

    def factors(self, steps: int) -> tuple[float, ...]:
        """On the inner step size, for an adaptation of so many steps."""
        return tuple(float(x) for x in np.linspace(1, self.growth, steps))

    def training(self) -> dict:
        """The learner's settings."""
        return {"inner_steps": self.train_steps, "episodes": self.pulls // (self.train_steps + 1), "hidden": (),
                "lr_schedule": self.factors(self.train_steps), "cg_iterations": 10, **self.settings}  # fmt: skip

    def testing(self) -> tuple[float, ...]:
        """The sizes of the S + 1 inner steps of an adaptation to all n pulls."""
        return tuple(self.settings["inner_lr"] * factor for factor in self.factors(self.stages))


SINGLE = {"n_tasks": 200, "reward_baseline": 0.73}
"""Batches of one pull say nothing beside a baseline that is fitted to them."""
NATURAL = {"inner_optimizer": "natural", "multi_step_until": 10**9, "reward_baseline": 0.8}
METHODS = {
    "one_step": {
        10: Setting(10, 2, 1, 60, {"inner_lr": 16.0, "n_tasks": 100}),
        100: Setting(100, 2, 1, 60, {"inner_lr": 16.0}),
    },
    "gradient": {
        10: Setting(10, 10, 9, 20, {"inner_lr": 6.0, **SINGLE}, 5.0),
        100: Setting(100, 20, 9, 20, {"inner_lr": 4.0, "reward_baseline": 0.7}),
        500: Setting(500, 50, 9, 20, {"inner_lr": 4.0, "reward_baseline": 0.7}),
        1000: Setting(1000, 50, 9, 20, {"inner_lr": 4.0, "reward_baseline": 0.7}),
    },
    "natural": {
        10: Setting(10, 10, 9, 15, {"inner_lr": 3.5, "natural_damping": 0.01, **NATURAL, "n_tasks": 100}, 4.0),
        100: Setting(100, 50, 9, 10, {"inner_lr": 2.0, "natural_damping": 0.1, **NATURAL}, 1.5),
        500: Setting(500, 50, 9, 10, {"inner_lr": 2.5, "natural_damping": 0.1, **NATURAL}, 2.0),
        1000: Setting(1000, 50, 9, 10, {"inner_lr": 2.5, "natural_damping": 0.1, **NATURAL}, 2.0),
    },
}  # fmt: skip
MANY_ARMS = {
    ("natural", 10): Setting(
        10, 10, 9, 15,
        {"inner_lr": 1.3, "natural_damping": 0.02, **NATURAL, "reward_baseline": 0.85, "n_tasks": 100}, 3.0,
    ),
}  # fmt: skip
"""Where 50 arms have a setting of their own: what a win moves a logit by goes with one over the arm's probability."""
LABELS = {"one_step": "MAML, one inner step", "gradient": "MAML, several inner steps",
          "natural": "MAML, natural inner steps"}  # fmt: skip


def setting_of(method: str, pulls: int, arms: int) -> Setting:
    own = MANY_ARMS.get((method, pulls)) if arms == 50 else None
    return own or METHODS[method][pulls]


def test_tasks(arms: int, pulls: int) -> int:
    """How many test instances a row has; fewer ones are the first of more."""
    return {10: 4000, 100: 2000}.get(pulls, 1000) if arms < 50 or pulls == 10 else 1000


def instances(arms: int, n: int, seed: int, split: str) -> np.ndarray:
    """p [n, arms], as a learner's `evaluate` with this seed has them."""
    return metarl.make("BernoulliBandit-v0", arms=arms).sample(n, np.random.default_rng([seed, 0]), split)["p"]


# ---------------------------------------------------------------------------------------------------------------------
# The strategies


def candidates(name: str, arms: int, pulls: int) -> dict[str, Callable[[], strategies.Strategy]]:
    """What a strategy's constant is chosen from: a name for it -> the strategy, made anew."""
    if name == "random":
        return {"": lambda: strategies.uniform}
    if name == "thompson":
        return {"": lambda: strategies.thompson}
    if name == "gittins":
        discounts = (0.5, 0.8, 0.9) if pulls == 10 else (0.95, 0.98, 0.99, 0.995, 0.999)
        return {f"discount {d}": (lambda d=d: strategies.gittins(d, pulls)) for d in discounts}
    if name == "ucb1":
        return {f"c {c}": (lambda c=c: strategies.ucb1(c)) for c in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)}
    if name == "eps_greedy":
        return {f"epsilon {e}": (lambda e=e: strategies.epsilon_greedy(e)) for e in (0.0, 0.01, 0.02, 0.05, 0.1)}
    used = [a for a in (2, 3, 5, 7, 10, 15, 20, 30, 50) if a <= arms]
    rounds = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)
    return {f"{r} rounds of {a} arms": (lambda a=a, r=r: strategies.explore_then_commit(a * r, a))
            for a in used for r in rounds if a * r < 0.7 * pulls}  # fmt: skip


STRATEGIES = ("random", "gittins", "thompson", "ucb1", "eps_greedy", "explore_then_commit")


def run_strategies() -> None:
    """Every strategy's constant chosen on training instances, then its rewards on the test instances."""
    path = RESULTS / "strategies.csv"
    rows = read_rows(path)
    for pulls in PULLS:
        for arms in ARMS:
            for name in STRATEGIES:
                if any((r["strategy"], r["arms"], r["pulls"]) == (name, str(arms), str(pulls)) for r in rows):
                    continue
                start = time.perf_counter()
                options = candidates(name, arms, pulls)
                tuning = instances(arms, 2000 if pulls <= 100 else 500, TUNING_SEED, "train")
                scores = {key: earned(make(), tuning, pulls, 1).mean() for key, make in options.items()
                          if len(options) > 1}  # fmt: skip
                best = max(scores, key=scores.__getitem__) if scores else ""
                total = earned(options[best](), instances(arms, test_tasks(arms, pulls), TEST_SEED, "test"), pulls, 2)
                rows.append({"strategy": name, "arms": str(arms), "pulls": str(pulls), "constant": best,
                             "mean": f"{total.mean():.3f}", "error": f"{total.std() / len(total) ** 0.5:.3f}",
                             "tasks": str(len(total))})  # fmt: skip
                write_rows(path, rows)
                print(
                    pulls, arms, name, best, f"{total.mean():.2f}", f"{time.perf_counter() - start:.0f} s", flush=True
                )


def earned(strategy: strategies.Strategy, p: np.ndarray, pulls: int, seed: int) -> np.ndarray:
    """Total rewards [N]."""
    return strategies.play(strategy, p, pulls, np.random.default_rng(seed)).sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# MAML


def train(seed: int, runs: Path, methods: tuple[str, ...], pulls: tuple[int, ...], arms: tuple[int, ...]) -> None:
    """Train and test what has no result yet; goes on with what was interrupted."""
    for n in pulls:
        for method in methods:
            for k in arms:
                out = RESULTS / f"{method}-n{n}-k{k}-seed{seed}.json"
                if n in METHODS[method] and not out.exists():
                    one(method, setting_of(method, n, k), k, seed, runs / out.stem, out)


def one(method: str, setting: Setting, arms: int, seed: int, directory: Path, out: Path) -> None:
    """Train one row with one seed, and test it."""
    began, n = time.perf_counter(), setting.pulls
    if (directory / "latest.safetensors").exists():
        made = metarl.MetaLearner.load(directory, device="cpu")
    else:
        family = metarl.make("BernoulliBandit-v0", arms=arms)
        made = metarl.MetaLearner("maml_trpo", family, seed=seed, device="cpu", **setting.training())
    if made.state.iteration < setting.iterations:
        made.learn(setting.iterations - made.state.iteration, run_dir=directory, eval_every=10**6)
    trained = time.perf_counter()
    found = made.evaluate(
        test_tasks(arms, n), episodes=n // setting.stages, step_sizes=setting.testing(), seed=TEST_SEED
    )
    rate = found.returns  # [tasks, S + 2]: mean reward per pull before every step and after the last
    counted, after = rate[:, :-1].sum(1) * (n // setting.stages), rate[:, -1] * n
    write_rows(out.with_suffix(".csv"), [
        {"task": str(i), "all_pulls": f"{counted[i]:g}", "post_only": f"{after[i]:g}",
         "best_arm": f"{found.tasks['p'][i].max():.4f}"} for i in range(len(rate))
    ])  # fmt: skip
    write_json(out, {
        "method": method, "arms": arms, "pulls": n, "seed": seed, "setting": asdict(setting),
        "iteration": made.state.iteration, "env_steps": made.state.env_steps, "tasks": len(rate),
        "test_seed": TEST_SEED, "all_pulls": round(float(counted.mean()), 4),
        "post_only": round(float(after.mean()), 4),
        "all_pulls_error": round(float(counted.std() / len(counted) ** 0.5), 4),
        "curve": [round(float(x), 5) for x in rate.mean(0)],
        "seconds": {"train": round(trained - began, 1), "test": round(time.perf_counter() - trained, 1)},
        "threads": torch.get_num_threads(), "versions": versions(),
    })  # fmt: skip
    print(f"{method} n={n} arms={arms} seed={seed}: all pulls {counted.mean():.2f}, post {after.mean():.2f}, "
          f"{trained - began:.0f} + {time.perf_counter() - trained:.0f} s", flush=True)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report() -> None:
    """The tables (Markdown) and the figure."""
    found = [read_json(path) for path in sorted(RESULTS.glob("*-seed*.json"))]
    known = {(r["strategy"], int(r["pulls"]), int(r["arms"])): r for r in read_rows(RESULTS / "strategies.csv")}
    names = [name.replace("_", " ") for name in STRATEGIES] + ["best possible"]
    lines = ["Ours (published). ± is the standard error of a simulation; numbers without one are exact.", "",
             "| n, arms | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]  # fmt: skip
    for n in PULLS:
        for j, arms in enumerate(ARMS):
            cells = []
            for name in STRATEGIES:
                row, paper = known.get((name, n, arms)), PAPER.get(n, {}).get(name)
                cells.append((strategy_cell(row) if row else "") + (f" ({paper[j]})" if paper else ""))
            lines.append(f"| {n}, {arms} | " + " | ".join((*cells, best_possible(n, arms))) + " |")
    lines += ["", "± is the standard error over test instances of the mean over seeds, brackets have the lowest and "
              "the highest seed."]  # fmt: skip
    for key, title in (("all_pulls", "all pulls counted"), ("post_only", "post-adaptation only")):
        last = ("seeds", "MAML, published", "RL², published", "best possible")
        lines += ["", f"| {title}: n, arms | " + " | ".join((*LABELS.values(), *last)) + " |",
                  "|---" * (len(LABELS) + 5) + "|"]  # fmt: skip
        for n in PULLS:
            for j, arms in enumerate(ARMS):
                own = {m: [x for x in found if (x["method"], x["pulls"], x["arms"]) == (m, n, arms)] for m in LABELS}
                cells = [spread(n, [x[key] for x in own[m]], error(own[m], key)) if own[m] else "" for m in LABELS]
                papers = [str(PAPER[n][p][j]) if p in PAPER.get(n, {}) else "" for p in ("maml", "rl2")]
                seeds = ", ".join(str(len(own[m])) for m in LABELS)
                best = best_possible(n, arms) if key == "all_pulls" else best_afterwards(n, arms)
                lines.append(f"| {n}, {arms} | " + " | ".join((*cells, seeds, *papers, best)) + " |")
    table = "\n".join(lines)
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    draw(found, known)


def number(n: int, x: str | float) -> str:
    return f"{float(x):.3f}" if n <= 10 else f"{float(x):.1f}"


def spread(n: int, values: list[float], standard_error: float) -> str:
    """Mean over seeds and its standard error, with the lowest and the highest seed."""
    mean = f"{number(n, float(np.mean(values)))} {plus_minus(n, standard_error)}"
    return mean if len(values) < 2 else f"{mean} ({number(n, min(values))} to {number(n, max(values))})"


def plus_minus(n: int, standard_error: float) -> str:
    return f"± {standard_error:.{3 if n <= 10 else 2 if n <= 100 else 1}f}"


def error(runs: list[dict], key: str) -> float:
    """The standard error over test instances, which all seeds share, of the mean over seeds."""
    rewards = [[float(row[key]) for row in read_rows(RESULTS / f"{named(run)}.csv")] for run in runs]
    mean = np.mean(rewards, 0)
    return float(mean.std() / len(mean) ** 0.5)


def named(run: dict) -> str:
    return f"{run['method']}-n{run['pulls']}-k{run['arms']}-seed{run['seed']}"


def strategy_cell(row: dict[str, str]) -> str:
    """What a strategy earns: its expectation where that is known, else the simulation's mean and standard error."""
    n, value = int(row["pulls"]), exact(row)
    return f"{number(n, row['mean'])} {plus_minus(n, float(row['error']))}" if value is None else number(n, value)


def exact(row: dict[str, str]) -> float | None:
    """The expected total of a strategy with the constant that was chosen for it; None where it is not known."""
    name, arms, n, constant = row["strategy"], int(row["arms"]), int(row["pulls"]), row["constant"]
    if name == "random":
        return n / 2
    if name == "explore_then_commit":
        rounds, used = (int(x) for x in re.findall(r"\d+", constant))
        return bandit_values.commit_value(arms, used, rounds, n)
    if n > 10 or (name == "eps_greedy" and constant != "epsilon 0.0"):
        return None
    if name == "thompson":
        return bandit_values.thompson_value(arms, n)
    return bandit_values.strategy_value(candidates(name, arms, n)[constant](), arms, n)


def best_possible(n: int, arms: int) -> str:
    """The expectation of the best strategy there is, exactly or from above."""
    if n == 10:
        return number(n, strategies.bayes_value(arms, n))
    return f"at most {number(n, bandit_values.value_bound(arms, n))}"


def best_afterwards(n: int, arms: int) -> str:
    """The same of n pulls after n others that serve nothing but exploring."""
    if n == 10:
        return number(n, bandit_values.exploration_value(arms, n))
    return f"at most {number(n, n * arms / (arms + 1))}"


def draw(found: list[dict], known: dict) -> None:
    """Reward per pull as a share of Gittins', one panel for each number of arms."""
    figure, axes = figures.new_figure(len(ARMS), width=4.0)
    for axis, arms in zip(axes, ARMS, strict=True):
        there = [n for n in PULLS if ("gittins", n, arms) in known]

        def share(n: int, value: float, arms: int = arms) -> float:
            return 100 * value / float(known["gittins", n, arms]["mean"])

        for i, name in enumerate(("random", "thompson", "ucb1", "eps_greedy", "explore_then_commit")):
            points = [(n, share(n, float(known[name, n, arms]["mean"]))) for n in there if (name, n, arms) in known]
            axis.plot(*zip(*points, strict=True), "--", color=f"C{i}", linewidth=1, label=name.replace("_", " "))
        for i, (method, label) in enumerate(LABELS.items()):
            runs = [x for x in found if (x["method"], x["arms"]) == (method, arms)]
            each = sorted({x["pulls"] for x in runs} & set(there))
            means = [share(n, float(np.mean([x["all_pulls"] for x in runs if x["pulls"] == n]))) for n in each]
            axis.plot(each, means, "o-", color=f"C{5 + i}", label=label, markersize=4)
        papers = [(n, share(n, PAPER[n]["maml"][ARMS.index(arms)])) for n in (10, 100)]
        axis.plot(*zip(*papers, strict=True), "kx", label="MAML (published)")
        axis.set(xscale="log", xlabel="pulls n", title=f"{arms} arms", ylim=(50, 104))
    axes[0].set_ylabel("total reward, % of Gittins'")
    axes[-1].legend(frameon=False, fontsize=7, loc="lower right")
    figures.save_figure(figure, RESULTS / "bandits.png")


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("strategies", "train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=tuple(LABELS), default=tuple(LABELS))
    parser.add_argument("--pulls", nargs="+", type=int, choices=PULLS, default=PULLS)
    parser.add_argument("--arms", nargs="+", type=int, choices=ARMS, default=ARMS)
    parser.add_argument("--runs", type=Path, default=Path("runs/bandits"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    if args.command == "strategies":
        run_strategies()
    elif args.command == "train":
        train(args.seed, args.runs, tuple(args.methods), tuple(args.pulls), tuple(args.arms))
    else:
        report()


if __name__ == "__main__":
    main()
