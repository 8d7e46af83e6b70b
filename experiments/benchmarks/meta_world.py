"""Meta-World: our environment steps per second against the package's own vector environments and bare MuJoCo.

    make .venv/mujoco33/installed
    PYTHONPATH=.venv/mujoco33 python experiments/benchmarks/meta_world.py --out experiments/benchmarks/results

ours      `metarl.vector.backends.make_vector`: K tasks, E episodes each
async     the package's `gym.make_vec("Meta-World/ML1-train", vector_strategy="async")`: one process per environment
sync      the same, one after the other in this process
mujoco    `mj_step` alone, as many substeps on the same models in the same threads: the ceiling

(This file is not called metaworld.py: Python would import it for the package.)

All get random actions of their own count of environments and are timed in turn, A B C D ..., in one process; numbers
are medians over the rounds. Resets are left out. Run it on an idle machine.
"""

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from reporting import machine, show

import metarl
from metarl.vector.backends import make_vector

SEED = 0


def ours(args: argparse.Namespace, task: str) -> tuple[Any, Callable[[], Any]]:
    """Our vector environment and one step of it with random actions."""
    family = metarl.make("MetaWorld-ML1-v0", task=task)
    env = make_vector(family, args.tasks, args.episodes)
    tasks = family.sample(args.tasks, np.random.default_rng(SEED))
    env.reset(options={"tasks": tasks})
    rng, n = np.random.default_rng(SEED), args.tasks * args.episodes

    def step() -> None:
        if (env._elapsed >= family.horizon).all():
            env.reset()
        env.step(rng.uniform(-1, 1, (n, 4)).astype(np.float32))

    return env, step


def theirs(task: str, strategy: str, n: int) -> tuple[Any, Callable[[], Any]]:
    """The package's vector environment of `n` environments, and one step of it; it resets itself every 500 steps."""
    env = gym.make_vec("Meta-World/ML1-train", env_name=task, vector_strategy=strategy, meta_batch_size=n, seed=SEED)
    env.call("sample_tasks")  # without a task its reset fails
    env.reset(seed=SEED)
    rng = np.random.default_rng(SEED)
    return env, lambda: env.step(rng.uniform(-1, 1, (n, 4)).astype(np.float32))


def bare(env: Any, threads: int) -> Callable[[], Any]:
    """One control step of MuJoCo alone for all of our environment's models, from copies of its states."""
    (group,) = env._groups
    jobs = []
    for model, data, frame_skip in group._jobs:
        copy = mujoco.MjData(model)
        spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        state = np.empty(mujoco.mj_stateSize(model, spec))
        mujoco.mj_getState(model, data, state, spec)
        mujoco.mj_setState(model, copy, state, spec)
        jobs.append((model, copy, frame_skip))
    pool, rng = ThreadPoolExecutor(threads), np.random.default_rng(SEED)
    shares = [jobs[i::threads] for i in range(threads)]
    inputs = [(data.mocap_pos[0], data.ctrl) for _, data, _ in jobs]
    low, high = group._limits[1:]

    def run(share: Sequence[tuple[Any, Any, int]]) -> None:
        for model, data, frame_skip in share:
            mujoco.mj_step(model, data, frame_skip)

    def step() -> None:
        for position, control in inputs:
            position[:] = np.clip(position + rng.uniform(-0.01, 0.01, 3), low, high)
            control[:] = rng.uniform(-1, 1, 2)
        list(pool.map(run, shares))

    return step


def rate(step: Callable[[], Any], steps: int, n: int) -> float:
    """Environment steps per second."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * n / (time.perf_counter() - start)


def measure(args: argparse.Namespace, task: str) -> dict[str, Any]:
    """Medians of the rates, and ours over each of the others'."""
    env, ours_step = ours(args, task)
    n, threads = args.tasks * args.episodes, torch.get_num_threads()
    others = {s: theirs(task, s, args.their_envs) for s in args.strategies}
    ways = {"ours": (ours_step, n), **{name: (step, args.their_envs) for name, (_, step) in others.items()},
            "mujoco": (bare(env, threads), n)}  # fmt: skip
    for step, count in ways.values():
        rate(step, 2, count)
    rounds = [{name: rate(step, max(1, args.steps // count), count) for name, (step, count) in ways.items()}
              for _ in range(args.repeats)]  # fmt: skip
    for other, _ in others.values():
        other.close()
    env.close()
    medians = {name: statistics.median(r[name] for r in rounds) for name in ways}
    ratios = {f"ours/{name}": statistics.median(r["ours"] / r[name] for r in rounds) for name in ways if name != "ours"}
    return {"task": task, **medians, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["reach-v3", "push-v3", "pick-place-v3", "door-open-v3"])
    parser.add_argument("--tasks", type=int, default=10, help="K of ours")
    parser.add_argument("--episodes", type=int, default=20, help="E of ours")
    parser.add_argument("--their-envs", type=int, default=10, help="environments of the package's; divides 50")
    parser.add_argument("--strategies", nargs="+", default=["async", "sync"], choices=["async", "sync"])
    parser.add_argument("--steps", type=int, default=4000, help="environment steps of each in every round")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [measure(args, task) for task in args.names]
    show("environment steps per second, medians", rows)
    if args.out is not None:
        header = {"machine": machine("cpu"), "mujoco": mujoco.__version__, "arguments": vars(args) | {"out": None}}
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "metaworld.json").write_text(json.dumps(header | {"rows": rows}, indent=2) + "\n")
        with (args.out / "metaworld.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
