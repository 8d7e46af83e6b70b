"""What policies that know something about the goal earn in 2D navigation, played in the environment itself.

The family ends an episode within 0.01 of the goal. A policy that knows only the goal's direction therefore need not
know its distance: it can sweep the ray in steps shorter than 0.02 until the episode ends. Every number here is the
return of a rollout; constants are chosen on goals of their own, drawn uniformly from the square.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from metarl_envs.point_navigation import PointNavigation
from torch import Tensor

Walk = Callable[[int, Tensor, Tensor], Tensor]
"""(step, positions [K, 2], goals [K, 2]) -> displacements [K, 2], of which each coordinate is clipped to 0.1."""
RADII = tuple(round(0.2 + 0.01 * i, 2) for i in range(31))
SPEEDS = (0.005, 0.0075, 0.01, 0.015, 0.0175, 0.019, 0.0199, 0.021, 0.025, 0.03)
FIRST_STEPS = (0.03, 0.05, 0.07, 0.1)
SHARES = (0.7, 0.8, 0.9, 1.0)
TUNING = 4000
"""Goals on which constants are chosen."""
NOISE = (0.04, 0.005)
"""Standard deviations per coordinate; the experiments' policies have at least 0.04 (0.4 in policy units) before the
inner step, and plain MAML's after it too."""


class EndlessNavigation(PointNavigation):
    """`PointNavigation` whose episodes last for the whole horizon, however close the point is to the goal."""

    goal_radius = 0.0


def play(family: PointNavigation, goals: np.ndarray, walk: Walk) -> np.ndarray:
    """Returns [K] of one episode for each of the goals [K, 2]."""
    env, aims = family.make_vector(len(goals), 1), torch.as_tensor(goals, dtype=torch.float32)
    env.reset(seed=0, options={"tasks": {"goal": aims.numpy()}})
    position, total = torch.zeros_like(aims), torch.zeros(len(goals))
    for t in range(family.horizon):
        position, reward, _, _, _ = env.step(walk(t, position, aims))  # an episode that has ended pays 0
        total += reward
    return total.double().numpy()


def still(t: int, position: Tensor, goal: Tensor) -> Tensor:
    """Stay at the start."""
    return torch.zeros_like(goal)


def direct(t: int, position: Tensor, goal: Tensor) -> Tensor:
    """Move as close to the goal as the environment's clipping lets it, which no policy can better: every step brings
    both coordinates as far as they can go."""
    return goal - position


def direction(goal: Tensor) -> Tensor:
    """Unit vectors [K, 2]."""
    return goal / goal.norm(dim=-1, keepdim=True)


def stop(radius: float) -> Walk:
    """Walk in the goal's direction and stay `radius` from the start."""
    return lambda t, position, goal: direction(goal) * (radius - position.norm(dim=-1, keepdim=True)).clamp(-0.1, 0.1)


def noisy(speed: float, radius: float, std: float) -> Walk:
    """Walk in the goal's direction by `speed` a step until `radius` from the start, with noise, and pulled back to the
    ray and to `radius` all the time."""

    def walk(t: int, position: Tensor, goal: Tensor) -> Tensor:
        along = (position * direction(goal)).sum(-1, keepdim=True)
        aim = direction(goal) * (along + (radius - along).clamp(-0.1, speed))
        noise = torch.randn(goal.shape, generator=torch.Generator().manual_seed(t))
        return aim - position + std * noise

    return walk


def sweep(speed: float, first: float | None = None) -> Walk:
    """Walk in the goal's direction by `speed` a step, the first step by `first`; no memory is needed."""
    return lambda t, position, goal: direction(goal) * (first if t == 0 and first is not None else speed)


def sweep_back(share: float, speed: float) -> Walk:
    """Walk out in the goal's direction to `share` of the way to the square's edge by the longest steps, then sweep
    back. The way out needs to be told from the way back, so this is not a function of the position alone."""
    steps = math.ceil(share * PointNavigation.extent / PointNavigation.max_step - 1e-6)

    def walk(t: int, position: Tensor, goal: Tensor) -> Tensor:
        if t >= steps:
            return -speed * direction(goal)
        return goal / goal.abs().amax(-1, keepdim=True) * (share * PointNavigation.extent / steps)

    return walk


def oracles(goals: np.ndarray, horizon: int) -> dict[str, tuple[str, np.ndarray]]:
    """What a policy knows and does -> (its constants, its returns [K] on `goals` [K, 2])."""
    family, endless = PointNavigation(horizon), EndlessNavigation(horizon)
    kinds: dict[str, tuple[PointNavigation, Mapping[str, Walk]]] = {
        "nothing: stays at the start": (family, {"": still}),
        "the direction: walks as far as is best on average, episodes never end": (
            endless, {f"radius {r}": stop(r) for r in RADII}),
        "the direction: walks as far as is best on average": (family, {f"radius {r}": stop(r) for r in RADII}),
        "the direction: sweeps the ray": (family, {f"speed {s}": sweep(s) for s in SPEEDS}),
        "the direction: one longer step, then sweeps the ray": (
            family, {f"first {f}, speed {s}": sweep(s, f) for f in FIRST_STEPS for s in SPEEDS}),
        "the direction, and counts steps: out to the edge, sweeps back": (
            family, {f"to {x} of the edge, speed {s}": sweep_back(x, s) for x in SHARES for s in SPEEDS}),
        **{f"the direction, noise {std}: walks as far as is best on average": (
            family, {f"radius {r}": noisy(0.1, r, std) for r in RADII}) for std in NOISE},
        **{f"the direction, noise {std}: sweeps the ray": (
            family, {f"speed {s}": noisy(s, math.inf, std) for s in SPEEDS}) for std in NOISE},
        "direction and distance: goes there directly": (family, {"": direct}),
    }  # fmt: skip
    tuning = np.random.default_rng(0).uniform(-family.extent, family.extent, (TUNING, 2))
    found = {}
    for name, (where, walks) in kinds.items():
        best = max(walks, key=lambda key: float(play(where, tuning, walks[key]).mean()))
        found[name] = (best, play(where, goals, walks[best]))
    return found


def table(goals: np.ndarray, horizon: int) -> list[str]:
    """`oracles` as a Markdown table: mean return on `goals` and its standard error over goals."""
    names = ("what a policy knows of the goal, and what it does", "constants", "mean return", "error")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for name, (constants, returns) in oracles(goals, horizon).items():
        lines.append(f"| {name} | {constants} | {returns.mean():.2f} | {returns.std() / len(returns) ** 0.5:.2f} |")
    return lines
