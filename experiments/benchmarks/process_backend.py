"""Stepping many Gymnasium environments at once: metarl's backends against those of Gymnasium and stable-baselines3.

    python experiments/benchmarks/process_backend.py --out experiments/benchmarks/results

For a cheap environment (CartPole-v1) and a dear one (Ant-v5, which needs mujoco), and for 8, 64 and 512 of them:

automatic   what `metarl.make_vector` chooses by itself
loop        metarl, `workers=0`: one by one
processes   metarl, `workers=` as many as there are cores
sync        gymnasium.vector.SyncVectorEnv: one by one
async       gymnasium.vector.AsyncVectorEnv: a process for each environment, shared memory
subproc     stable_baselines3 SubprocVecEnv: a process for each environment, pipes (forked, its faster way to start)

All get the same environments, which begin anew by themselves when an episode ends, and the same random actions. They
are timed in turn, A B A B ..., in one run; numbers are medians, ratios are to `automatic`. A way that the machine
cannot do (too many processes or files) is reported as such. Run it on an idle machine.
"""

import argparse
import csv
import importlib.util
import json
import os
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from reporting import Rows, machine, show

import metarl

ENVIRONMENTS = {"cheap": "CartPole-v1", "dear": "Ant-v5"}
METARL = {"automatic": None, "loop": 0, "processes": len(os.sched_getaffinity(0))}
GOAL = {("cheap", 512): "async and subproc >= 5"}


class Endless(gym.Wrapper):
    """Begins anew when an episode ends and reports no end, so that every way does the same work."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            obs, info = self.env.reset()
        return obs, float(reward), False, False, info


class OneTask:
    """A registered environment as a family of one task."""

    horizon = 2**62
    task_space = gym.spaces.Dict({"none": gym.spaces.Box(0, 1, ())})

    def __init__(self, id: str):
        env = gym.make(id)
        self.id, self.observation_space, self.action_space = id, env.observation_space, env.action_space
        env.close()

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> dict[str, np.ndarray]:
        return {"none": np.zeros(n, np.float32)}

    def make(self, task: Any = None) -> gym.Env:
        return Endless(gym.make(self.id))


def start(way: str, family: OneTask, n: int, actions: Sequence[np.ndarray]) -> Any:
    """The environments of one way, reset."""
    if way == "subproc":
        from stable_baselines3.common.vec_env import SubprocVecEnv

        env: Any = SubprocVecEnv([family.make] * n, start_method="fork")
        env.seed(0)
        env.reset()
        return env
    if way in ("sync", "async"):
        kind = gym.vector.SyncVectorEnv if way == "sync" else gym.vector.AsyncVectorEnv
        env = kind([family.make] * n)
        env.reset(seed=0)
        return env
    env = metarl.make_vector(family, 1, n, workers=METARL[way])
    tasks = {"tasks": family.sample(1, np.random.default_rng(0))}
    env.reset(seed=0, options=tasks)
    if way == "automatic":  # it chooses after a rollout
        run(env, actions, 100)
        env.reset(seed=0, options=tasks)
    return env


def run(env: Any, actions: Sequence[np.ndarray], steps: int) -> float:
    """Seconds per step of all environments."""
    begin = time.perf_counter()
    for t in range(steps):
        env.step(actions[t % len(actions)])
    return (time.perf_counter() - begin) / steps


def measure(what: str, n: int, ways: Sequence[str], repeats: int, seconds: float) -> Rows:
    """One row per way."""
    family = OneTask(ENVIRONMENTS[what])
    family.action_space.seed(0)
    actions = [np.array([family.action_space.sample() for _ in range(n)]) for _ in range(16)]
    envs, failed = {}, {}
    for way in ways:
        try:
            envs[way] = start(way, family, n, actions)
        except Exception as error:  # whatever the machine refuses
            failed[way] = f"{type(error).__name__}: {error}"[:120]
    try:
        steps = {way: max(4, int(seconds / run(env, actions, 4))) for way, env in envs.items()}
        rounds = [{way: run(env, actions, steps[way]) for way, env in envs.items()} for _ in range(repeats)]
    finally:
        for env in envs.values():
            env.close()
    medians = {way: statistics.median(r[way] for r in rounds) for way in envs}
    rows: Rows = []
    for way in ways:
        row: dict[str, Any] = {"environment": family.id, "N": n, "way": way}
        if way in medians:
            row |= {"ms per step": 1000 * medians[way], "env-steps per second": n / medians[way],
                    "ratio": medians[way] / medians[ways[0]]}  # fmt: skip
        rows.append(row | {"failed": failed.get(way), "goal": GOAL.get((what, n)) if way == ways[0] else None})
    return rows


def available(what: str) -> bool:
    return what == "cheap" or importlib.util.find_spec("mujoco") is not None


def more_files() -> None:
    """A process for each environment takes some open files for each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory for process_backend.json and process_backend.csv")
    parser.add_argument("--only", nargs="+", choices=tuple(ENVIRONMENTS), default=tuple(ENVIRONMENTS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--ways", nargs="+", default=[*METARL, "sync", "async", "subproc"],
                        help="the first is what ratios are to")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each timing")
    return parser


def write(rows: Rows, header: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "process_backend.json").write_text(json.dumps(header | {"rows": rows}, indent=2) + "\n")
    with (out / "process_backend.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    more_files()
    header = {"machine": machine("cpu"), "repeats": args.repeats, "seconds": args.seconds}
    print(json.dumps(header, indent=2))
    rows: Rows = []
    for what in args.only:
        if not available(what):
            print(f"\n{ENVIRONMENTS[what]} needs mujoco, which is not installed: left out")
            continue
        for n in args.sizes:
            own = measure(what, n, args.ways, args.repeats, args.seconds)
            show(f"{n} x {ENVIRONMENTS[what]}", own)
            rows += own
    if args.out is not None:
        write(rows, header, args.out)


if __name__ == "__main__":
    main()
