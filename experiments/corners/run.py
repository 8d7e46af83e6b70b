"""Four corners, one of them rewarded: who explores before adaptation? (Rothfuss et al. 2019, section 7.)

    python experiments/corners/run.py train --seed 0     # all methods, both forms; resumes where it was interrupted
    python experiments/corners/run.py report             # tables and figure from the committed files alone

ProMP's paper claims that learners whose meta-gradient credits the pre-adaptation episodes (E-MAML, and MAML with the
low-variance curvature estimator) learn to visit all four corners before they adapt, and MAML does not. For every method
this counts which corners the episodes before adaptation find, and what the policy earns after adaptation. Two forms of
the question: in the paper's ("near") an untrained policy's noise alone brings half of its episodes to where some reward
is felt; in the other ("far") the reward is felt from half-way to the corner on and the noise starts at half its size,
so that about one episode in eight feels anything before training.
"""

import argparse
import csv
import itertools
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from metarl_envs.point_navigation import CORNERS

import metarl
from metarl.checkpoint import atomic_write, read_json, write_json
from metarl.report import figures
from metarl.training.train import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FAMILY, HORIZON = "PointNavigationCorners-v0", 50
SETTINGS: dict[str, Any] = {"n_tasks": 20, "episodes": 20, "inner_lr": 0.5, "lr_in_std": True, "min_std": 0.2,
                            "max_kl": 0.02, "cg_iterations": 10}  # fmt: skip
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "near": ({"horizon": HORIZON}, {}),
    "far": ({"horizon": HORIZON, "start_radius": 2.0}, {"init_std": 0.5}),
}
"""Arguments of the family, and settings."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml": ("maml_trpo", {}),
    "lvc": ("maml_trpo", {"inner_gradient": "lvc"}),
    "e_maml": ("e_maml", {"exploration": 0.05}),
    "e_maml_1": ("e_maml", {"exploration": 1.0}),
    "untrained": ("maml_trpo", {}),
}
"""`e_maml` has the default weight of E-MAML's term, `e_maml_1` that of the exact gradient."""
ITERATIONS = 100
TEST = {"episodes": 100, "steps": 3, "seed": 1_357_911}
"""Each of the four corners once; the policy before adaptation is the same in all, so 400 episodes tell of it."""
REACH = 0.5
"""An episode reaches a corner if it comes this near."""
SHOWN, DRAWN = 40, 0
"""Paths in a figure, and whose."""


def reached(paths: np.ndarray, radius: float = REACH) -> np.ndarray:
    """Which corners each path comes within `radius` of. paths [N, T, 2] -> bool [N, 4]."""
    assert paths.ndim == 3 and paths.shape[-1] == 2, f"expected paths [N, T, 2], got {paths.shape}"
    distance = np.linalg.norm(paths[:, :, None] - np.array(CORNERS), axis=-1)
    return (distance <= radius).any(1)


def quadrants(points: np.ndarray) -> np.ndarray:
    """The nearest corner of every point, as shares of all points. points [N, 2] -> [4]."""
    assert points.ndim == 2 and points.shape[-1] == 2, f"expected points [N, 2], got {points.shape}"
    nearest = np.linalg.norm(points[:, None] - np.array(CORNERS), axis=-1).argmin(-1)
    return np.bincount(nearest, minlength=len(CORNERS)) / len(points)


def felt(paths: np.ndarray, start_radius: float) -> np.ndarray:
    """Which corners' rewards each path can feel: whether it is ever nearest to the corner with |x| + |y| at least
    `start_radius`. paths [N, T, 2] -> bool [N, 4]."""
    assert paths.ndim == 3 and paths.shape[-1] == 2, f"expected paths [N, T, 2], got {paths.shape}"
    nearest = np.linalg.norm(paths[:, :, None] - np.array(CORNERS), axis=-1).argmin(-1)  # [N, T]
    outside = np.abs(paths).sum(-1) >= start_radius
    return np.stack([((nearest == corner) & outside).any(1) for corner in range(len(CORNERS))], -1)


def entropy(weights: np.ndarray) -> float:
    """Entropy in bits of non-negative weights [n], normalised to sum 1; 0 where all are zero. 2 is an even share
    of four."""
    total = weights.sum()
    if total == 0:
        return 0.0
    p = weights[weights > 0] / total
    return float(-(p * np.log2(p)).sum()) + 0.0


def train(seed: int, runs: Path, forms: Sequence[str], methods: Sequence[str], iterations: int) -> None:
    for form, method in itertools.product(forms, methods):
        name = f"{form}-{method}-seed{seed}"
        if (RESULTS / f"{name}.json").exists():
            continue
        directory, (arguments, of_form) = runs / name, FORMS[form]
        fresh, cpu = not (directory / "latest.safetensors").exists(), time.process_time()
        if fresh:
            shutil.rmtree(directory, ignore_errors=True)  # what broke off before its first checkpoint
            algorithm, own = METHODS[method]
            family = metarl.make(FAMILY, **arguments)
            made = metarl.MetaLearner(algorithm, family, seed=seed, device="cpu", **SETTINGS | of_form | own)
        else:
            made = metarl.MetaLearner.load(directory, device="cpu")
        left = 0 if method == "untrained" else iterations - made.state.iteration
        if left > 0:
            made.learn(left, run_dir=directory, eval_every=0, checkpoint_every=5)
        save(made, form, method, seed, directory, time.process_time() - cpu if fresh else None)


def save(made: metarl.MetaLearner, form: str, method: str, seed: int, directory: Path, cpu: float | None) -> None:
    """Evaluate, and write JSON, the paths that the figure shows, and the training curve."""
    found = made.evaluate(**TEST, tasks={"corner": np.arange(len(CORNERS))}, details=True)
    paths = found.details.rollouts[0].raw_obs.movedim(2, 1).flatten(0, 1).numpy()  # [K * E, T, 2]
    finds, name = felt(paths, made.family.start_radius), f"{form}-{method}-seed{seed}"
    RESULTS.mkdir(exist_ok=True)
    if seed == DRAWN:
        rows = [{"episode": n, "step": t, "x": round(float(x), 3), "y": round(float(y), 3)}
                for n, path in enumerate(paths[:: len(paths) // SHOWN]) for t, (x, y) in enumerate(path)]  # fmt: skip
        with (RESULTS / f"{name}-paths.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if (directory / "metrics.csv").exists():
        atomic_write(RESULTS / f"{name}-training.csv", (directory / "metrics.csv").read_bytes())
    write_json(RESULTS / f"{name}.json", {
        "form": form, "method": method, "seed": seed, "iteration": made.state.iteration,
        "env_steps": made.state.env_steps, "felt": rounded(finds.mean(0)),
        "felt_by_an_episode": round(float(finds.sum(1).mean()), 4), "reached": rounded(reached(paths).mean(0)),
        "last_quadrant": rounded(quadrants(paths[:, -1])), "return_by_corner": np.round(found.returns, 4).tolist(),
        "mean": rounded(found.mean), "std": float(made.state.params["log_std"].exp().mean()), "protocol": TEST,
        "settings": made.describe(), "cpu_seconds": None if cpu is None else round(cpu, 1),
        "threads": torch.get_num_threads(), "machine": platform.machine(), "versions": versions(),
    })  # fmt: skip
    print(form, method, "seed", seed, "felt", np.round(finds.mean(0), 2), "mean return", np.round(found.mean, 2),
          flush=True)  # fmt: skip


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in values]


def report() -> None:
    """Tables and figure, from the committed files alone."""
    metas = [read_json(path) for path in sorted(RESULTS.glob("*-seed*.json"))]
    groups = [(form, method, [m for m in metas if (m["form"], m["method"]) == (form, method)])
              for form, method in itertools.product(FORMS, METHODS)]  # fmt: skip
    groups = [group for group in groups if group[2]]
    table = "\n".join([*means(groups), "", *known_corner(), "", *single_runs(groups)])
    print(table)
    atomic_write(RESULTS / "table.md", (table + "\n").encode())
    draw(groups)


Groups = list[tuple[str, str, list[dict[str, Any]]]]


def means(groups: Groups) -> list[str]:
    """A table of means over the seeds, with the lowest and the highest."""
    names = ("form", "method", "least felt corner", "corners felt by an episode", "quadrants (bits)", "return k = 0",
             "1", "2", "3", "seeds")  # fmt: skip
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for form, method, own in groups:
        columns = [[min(m["felt"]) for m in own], [m["felt_by_an_episode"] for m in own],
                   [entropy(np.array(m["last_quadrant"])) for m in own],
                   *([m["mean"][k] for m in own] for k in range(TEST["steps"] + 1))]  # fmt: skip
        cells = " | ".join(spread(column) for column in columns)
        lines.append(f"| {form} | `{method}` | {cells} | {', '.join(str(m['seed']) for m in own)} |")
    return lines


def known_corner(episodes: int = 1000) -> list[str]:
    """A table of what two policies earn that know the corner and act without noise."""
    lines = ["| form | walks straight to the corner | walks to and fro across the edge of where the reward is felt |",
             "|---|---|---|"]  # fmt: skip
    for form, (arguments, _) in FORMS.items():
        family = metarl.make(FAMILY, **arguments)
        earned = [known_return(family, episodes, to_and_fro) for to_and_fro in (False, True)]
        lines.append(f"| {form} | " + " | ".join(f"{x:.2f}" for x in earned) + " |")
    return lines


def known_return(family: Any, episodes: int, to_and_fro: bool) -> float:
    """The mean return of a policy that walks to its corner, or back and forth across the edge of the region of reward.
    A step that ends outside of it costs nothing, so the way in is paid again and again."""
    tasks, corners = {"corner": np.arange(len(CORNERS))}, torch.tensor(CORNERS)[:, None]
    env, total, edge = family.make_vector(len(CORNERS), episodes), torch.zeros(()), family.start_radius / 2
    obs, _ = env.reset(seed=0, options={"tasks": tasks})
    for _ in range(family.horizon):
        ahead = obs.reshape(len(CORNERS), episodes, 2) * corners.sign()  # as if every corner were (2, 2)
        inside = (ahead.sum(-1, keepdim=True) >= 2 * edge) & (ahead > 0).all(-1, keepdim=True)
        aim = torch.where(inside, edge - 0.09, edge + 0.09) if to_and_fro else 2.0
        action = ((aim - ahead) * corners.sign()).clamp(-family.max_step, family.max_step)
        obs, reward, _, _, _ = env.step(action.reshape(-1, 2))
        total = total + reward.mean()
    return float(total)


def spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def single_runs(groups: Groups) -> list[str]:
    names = ("form", "method", "seed", "share of pre-adaptation episodes that feel corner 0, 1, 2, 3",
             "share that reaches it", "quadrant of the last position", "standard deviation")  # fmt: skip
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for form, method, own in groups:
        for m in own:
            shares = (", ".join(f"{x:.2f}" for x in m[name]) for name in ("felt", "reached", "last_quadrant"))
            lines.append(f"| {form} | `{method}` | {m['seed']} | {' | '.join(shares)} | {m['std']:.2f} |")
    return lines


def draw(groups: Groups) -> None:
    """Paths before adaptation of every method, a figure for each form."""
    for form in FORMS:
        shown = [method for of, method, own in groups if of == form and any(m["seed"] == DRAWN for m in own)]
        if not shown:
            continue
        figure, axes = figures.new_figure(len(shown), width=2.6, height=3.0)
        for ax, method in zip(axes, shown, strict=True):
            for path in read_paths(RESULTS / f"{form}-{method}-seed{DRAWN}-paths.csv"):
                ax.plot(path[:, 0], path[:, 1], linewidth=0.6, alpha=0.7)
            ax.scatter(*np.array(CORNERS).T, marker="*", color="black", zorder=3)
            ax.set(title=method, xlim=(-4, 4), ylim=(-4, 4))
            ax.set_aspect("equal")
        figures.save_figure(figure, RESULTS / f"{form}.png")


def read_paths(path: Path) -> list[np.ndarray]:
    """One [T, 2] for every episode in the file."""
    with path.open(newline="") as file:
        rows = [(int(row["episode"]), float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    return [np.array([row[1:] for row in rows if row[0] == n]) for n in dict.fromkeys(row[0] for row in rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=tuple(FORMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--runs", type=Path, default=Path("runs/corners"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.seed, args.runs, args.forms, args.methods, args.iterations)
    else:
        report()


if __name__ == "__main__":
    main()
