"""What limits the return after one inner step in 2D navigation: measured on trained policies.

    python experiments/maml_2d_navigation/first_step.py --runs runs/maml_2d_navigation

Three questions, each answered with the best checkpoint of `run.py train`, for every seed that it finds there:

1. What does the adapted policy do? Its mean action leads to a point of rest; how far in direction and in distance from
   the start does that point miss the goal?
2. What does each error cost? The adapted policy is played again with its world rotated so that it heads for the goal,
   scaled so that it comes to rest at the goal's distance, with both, and each of these without noise.
3. What does the inner step know? Ridge regression of the goal's direction and distance on the step (the change of
   all parameters), against the same regression on the mean return of the episodes that the step was computed from.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import RESULTS, TEST, TEST_SEED, point_oracles
from torch import Tensor

import metarl
from metarl.checkpoint import atomic_write, read_json, write_json

METHODS = ("maml", "two_steps")
REST_STEPS = 30  # of 100, over which the place of rest is averaged
REGRESSION_SEED, GOALS = 97_531, {"train": 2000, "validation": 500, "test": 500}
RIDGES = tuple(10.0**e for e in range(-8, 3))


def play(
    policy: Any, params: dict[str, Tensor], goals: Tensor, episodes: int, noise: bool = True,
    angle: Tensor | None = None, scale: Tensor | None = None, ends: bool = True, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns [K, E] and positions [K, T, E, 2] of adapted policies [K, ...], every one's world turned by `angle` [K]
    (radians) and stretched by `scale` [K]: it acts at x as it would at x / scale turned back."""
    K, family = len(goals), (metarl.make("PointNavigation-v0") if ends else point_oracles.EndlessNavigation())
    turn = rotation(torch.zeros(K) if angle is None else angle)
    stretch = (torch.ones(K) if scale is None else scale)[:, None, None]
    env, generator = family.make_vector(K, episodes), torch.Generator().manual_seed(seed)
    env.reset(seed=0, options={"tasks": {"goal": goals.numpy()}})
    position, total, path = torch.zeros(K, episodes, 2), torch.zeros(K, episodes), []
    for _ in range(family.horizon):
        with torch.no_grad():
            dist = policy.distribution(params, position @ turn / stretch)
        action = dist.mean @ turn.mT * stretch
        if noise:
            action = action + dist.log_std.exp() * torch.randn(action.shape, generator=generator)
        moved, reward, _, _, _ = env.step((0.1 * action.clamp(-1, 1)).flatten(0, 1))
        position, total = moved.reshape(K, episodes, 2), total + reward.reshape(K, episodes)
        path.append(position)
    return total, torch.stack(path, 1)


def rotation(angle: Tensor) -> Tensor:
    """Matrices [K, 2, 2] that turn columns by `angle` [K]."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def angles(points: Tensor) -> Tensor:
    return torch.atan2(points[..., 1], points[..., 0])


def counterfactuals(policy: Any, params: dict[str, Tensor], goals: Tensor, episodes: int) -> dict[str, float]:
    """Where the adapted policies come to rest, and what they earn with direction, distance and noise put right."""
    _, path = play(policy, params, goals, 1, noise=False, ends=False)
    rest = path[:, -REST_STEPS:, 0].mean(1)
    reach, distance = rest.norm(dim=-1), goals.norm(dim=-1)
    turn = (angles(goals) - angles(rest) + torch.pi) % (2 * torch.pi) - torch.pi
    found = {
        "direction error, median, degrees": turn.abs().median().rad2deg(),
        "distance of the point of rest, mean": reach.mean(), "its standard deviation": reach.std(),
        "distance of the goal, mean": distance.mean(), "the goal's standard deviation": distance.std(),
        "correlation of the two distances": torch.corrcoef(torch.stack([reach, distance]))[0, 1],
    }  # fmt: skip
    fixes: dict[str, dict[str, Tensor]] = {
        "as it is": {}, "right direction": {"angle": turn}, "right distance": {"scale": distance / reach},
        "both right": {"angle": turn, "scale": distance / reach},
    }  # fmt: skip
    for name, fix in fixes.items():
        for noise in (True, False):
            total, _ = play(policy, params, goals, episodes if noise else 1, noise, **fix)
            found[f"return, {name}" + ("" if noise else ", without noise")] = total.mean()
    return {name: float(value) for name, value in found.items()}


def knowledge(learner: metarl.MetaLearner, size: float) -> dict[str, float]:
    """How well the goal can be read off the first inner step, and off the episodes behind it."""
    found = learner.evaluate(sum(GOALS.values()), episodes=TEST["episodes"], step_sizes=(size,), seed=REGRESSION_SEED,
                             details=True)  # fmt: skip
    before, after = found.details.params
    step = torch.cat([(after[name] - before[name]).flatten(1) for name in before], 1).double().numpy()
    goal = found.tasks["goal"].astype(np.float64)
    distance, returns = np.linalg.norm(goal, axis=1), found.returns[:, :1]
    length, spread = np.linalg.norm(step, axis=1, keepdims=True), np.linalg.svd(step[:500], compute_uv=False) ** 2
    guess, aim = regression(step, goal), goal[-GOALS["test"] :]
    turned = np.angle(np.exp(1j * (np.arctan2(*guess.T[::-1]) - np.arctan2(*aim.T[::-1]))))
    return {
        "share of the step in its two largest directions": float(spread[:2].sum() / spread.sum()),
        "direction from the step, median error, degrees": float(np.degrees(np.median(np.abs(turned)))),
        "distance from the step and its length, R2": explained(np.hstack([step, length, length**2]), distance),
        "distance from the mean return before it, R2": explained(np.hstack([returns, returns**2]), distance),
    }


def regression(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Ridge regression of y [N, D] on x [N, F] (each feature over its deviation, if that is not rounding), its strength
    chosen on the validation goals: predictions for the test goals."""
    a, b = GOALS["train"], GOALS["train"] + GOALS["validation"]
    deviation = x[:a].std(0)
    x = (x - x[:a].mean(0)) / np.where(deviation > 1e-9, deviation, np.inf)
    values, vectors = np.linalg.eigh(x[:a] @ x[:a].T / x.shape[1])
    centre = y[:a].mean(0)
    guesses = []
    for ridge in RIDGES:
        weights = vectors @ ((vectors.T @ (y[:a] - centre)) / (np.maximum(values, 0) + ridge * values.max())[:, None])
        guesses.append(centre + x[a:] @ x[:a].T / x.shape[1] @ weights)
    errors = [((guess[: b - a] - y[a:b]) ** 2).mean() for guess in guesses]
    return guesses[int(np.argmin(errors))][b - a :]


def explained(x: np.ndarray, y: np.ndarray) -> float:
    """The share of y's variance [N] over test goals that a regression on x explains."""
    truth = y[-GOALS["test"] :]
    return float(1 - ((regression(x, y[:, None])[:, 0] - truth) ** 2).mean() / truth.var())


def measure(path: Path, size: float) -> dict[str, float]:
    learner = metarl.MetaLearner.load(path, device="cpu")
    found = learner.evaluate(**TEST, step_sizes=(size,), seed=TEST_SEED, details=True)
    goals = torch.as_tensor(found.tasks["goal"])
    done = counterfactuals(learner.policy, found.details.params[1], goals, TEST["episodes"])
    return {"return, as evaluated": float(found.mean[1])} | done | knowledge(learner, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/maml_2d_navigation"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for method in METHODS:
        for path in sorted(args.runs.glob(f"{method}-seed*/best.safetensors")):
            size = read_json(RESULTS / f"{path.parent.name}.json")["step_sizes"][0]
            results.setdefault(method, {})[path.parent.name.removeprefix(f"{method}-seed")] = measure(path, size)
    if not results:
        parser.error(f"no best.safetensors of {' or '.join(METHODS)} under {args.runs}: train them with run.py first")
    write_json(RESULTS / "first_step.json", results)
    table = "\n".join(rows(results))
    print(table)
    atomic_write(RESULTS / "first_step.md", (table + "\n").encode())


def rows(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The table: means over seeds, in brackets the lowest and the highest."""
    lines = ["| after one inner step | " + " | ".join(f"{m}, {len(x)} seeds" for m, x in results.items()) + " |",
             "|---" * (len(results) + 1) + "|"]  # fmt: skip
    for name in next(iter(next(iter(results.values())).values())):
        cells = []
        for seeds in results.values():
            x = [seed[name] for seed in seeds.values()]
            cells.append(f"{np.mean(x):.2f} ({min(x):.2f} to {max(x):.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
