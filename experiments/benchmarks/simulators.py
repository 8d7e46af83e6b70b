"""MuJoCo families against the bare simulator: whole rollouts, and where a meta-iteration's seconds go.

    python experiments/benchmarks/simulators.py --out experiments/benchmarks/results

rollout     HalfCheetahDir and AntDir: steps per second of `collect` (`metarl.rollout`), of the vector environment alone
            (random actions), and of `mujoco.rollout` (random controls) on as many threads: with one call for all
            steps, and with one for each control step, after which a policy can look at the states. Ants that fall
            go on, as they do in the bare simulator, but in the row "over at a fall"
iteration   one meta-iteration on HalfCheetahDir: seconds in simulator, policy and update, the limit beside each, and
            the share of the cores that was busy meanwhile

What is compared is timed in turn, A B A B ..., in one process; numbers are medians. Run it on an idle machine.
"""

import argparse
import csv
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from reporting import Rows, machine, show

import metarl
from metarl import random
from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import Config
from metarl.parallel import keep_freed_memory
from metarl.params import expand
from metarl.policies.spaces import spaces_of
from metarl.rollout.rollout import collect
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup
from metarl.tasks import Tasks
from metarl.vector.mujoco import MujocoFamily, MujocoVectorEnv, import_mujoco

PARTS = ("rollout", "iteration")
SEED, STRIDE = 0, 3
Clock = tuple[float, float]  # wall seconds, CPU seconds of all threads


class Bare:
    """`mujoco.rollout` alone: N environments from a family's first states, T control steps, random controls."""

    def __init__(self, family: MujocoFamily, env: MujocoVectorEnv, tasks: Tasks):
        self._mujoco = mujoco = import_mujoco()
        from mujoco.rollout import Rollout

        model = family.model
        n, substeps = env.num_envs, family.horizon * family.frame_skip
        env.reset(seed=SEED, options={"tasks": tasks})
        size = mujoco.mj_stateSize(model, int(mujoco.mjtState.mjSTATE_FULLPHYSICS))
        self.state = np.zeros((n, size))
        data = mujoco.MjData(model)
        for i, row in enumerate(env._simulator._state):
            mujoco.mj_setState(model, data, row, env._simulator._spec)
            mujoco.mj_getState(model, data, self.state[i], int(mujoco.mjtState.mjSTATE_FULLPHYSICS))
        low, high = model.actuator_ctrlrange.T
        controls = np.random.default_rng(SEED).uniform(low, high, (n, family.horizon, model.nu))
        self.controls = np.repeat(controls, family.frame_skip, 1)
        self.models, self.data = [model] * n, [mujoco.MjData(model) for _ in range(env.threads)]
        self.out = np.empty((n, substeps, size)), np.empty((n, substeps, model.nsensordata))
        self.pool, self.substeps, self.steps = Rollout(nthread=env.threads), substeps, n * family.horizon

    def __call__(self) -> int:
        state, sensors = self.out
        self.pool.rollout(
            self.models, self.data, self.state, self.controls, nstep=self.substeps, state=state, sensordata=sensors,
            skip_checks=True,
        )  # fmt: skip
        return self.steps


class BareByStep(Bare):
    """The same with a call for every control step, as a policy that looks at each state needs it."""

    def __init__(self, family: MujocoFamily, env: MujocoVectorEnv, tasks: Tasks):
        super().__init__(family, env, tasks)
        self.skip = family.frame_skip
        n, size = self.state.shape
        self.out = np.empty((n, self.skip, size)), np.empty((n, self.skip, self.models[0].nsensordata))

    def __call__(self) -> int:
        now, (state, sensors) = self.state, self.out
        for start in range(0, self.substeps, self.skip):
            controls = np.ascontiguousarray(self.controls[:, start : start + self.skip])
            self.pool.rollout(
                self.models, self.data, now, controls, nstep=self.skip, state=state, sensordata=sensors,
                skip_checks=True,
            )  # fmt: skip
            now = state[:, -1].copy()
        return self.steps


def clocked(function: Callable[[], Any]) -> tuple[Clock, Any]:
    """A call's wall and CPU seconds, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = function()
    return (time.perf_counter() - wall, time.process_time() - cpu), out


def rollout(args: argparse.Namespace) -> Rows:
    """Steps per second, and each as a ratio to the bare simulator's."""
    rows: Rows = []
    for id, goal in (("HalfCheetahDir-v0", 0.85), ("AntDir-v0", 0.9)):
        ways = ways_to_step(id, args)
        for function in ways.values():
            function()
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, function in ways.items():
                (wall, cpu), steps = clocked(function)
                found[name].append((steps / wall, 1e6 * cpu / steps))
        speed = {name: statistics.median(x for x, _ in values) for name, values in found.items()}
        for name, values in found.items():
            rows.append({
                "family": id, "what": name, "steps_per_second": speed[name],
                "ratio": speed[name] / speed["mujoco.rollout"], "goal": goal if name == "whole rollout" else None,
                "cpu_microseconds_per_step": statistics.median(x for _, x in values),
            })  # fmt: skip
    return rows


def ways_to_step(id: str, args: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """Functions that take T steps in K*E environments and return how many steps that were."""
    family: Any = metarl.make(id, horizon=args.horizon)
    env = MujocoVectorEnv(family, args.tasks, args.episodes)
    tasks = family.sample(args.tasks, np.random.default_rng(SEED))
    policy = Config(hidden=tuple(args.hidden)).policy(spaces_of(family))
    params = expand(policy.init(torch.Generator().manual_seed(SEED)), args.tasks)
    seeds = random.episode_seeds(SEED, 0, 0, args.tasks, args.episodes)
    bare = Bare(family, env, tasks)
    moves = bare.controls[:, :: family.frame_skip].transpose(1, 0, 2).astype(np.float32)

    def whole() -> int:
        return collect(env, tasks, args.horizon, policy, params, seeds).steps

    def environment() -> int:
        env.reset(seed=SEED, options={"tasks": tasks})
        for action in moves:
            env.step(action)
        return args.horizon * env.num_envs

    def over_at_a_fall() -> int:
        family.falls = True
        try:
            return whole()
        finally:
            family.falls = False

    ways = {"whole rollout": whole, "vector environment": environment,
            "mujoco.rollout, call by call": BareByStep(family, env, tasks), "mujoco.rollout": bare}  # fmt: skip
    if not hasattr(family, "falls"):
        return ways
    family.falls = False  # the bare simulator does not stop at a fall either
    return {"whole rollout, over at a fall": over_at_a_fall, **ways}


def iteration(args: argparse.Namespace) -> Rows:
    """Wall seconds of one meta-iteration by part, its limit, and the busy share of the cores."""
    sampler = Sampler(metarl.make("HalfCheetahDir-v0", horizon=args.horizon))
    config = Config(n_tasks=args.tasks, episodes=args.episodes, hidden=tuple(args.hidden), cg_iterations=10)
    policy = config.policy(spaces_of(sampler.family))
    state = maml_trpo.init(config, policy, sampler.family, SEED, "cpu")
    state, _ = maml_trpo.iteration(Setup(config, sampler, policy, SEED), state)
    env = sampler.vector_env(args.tasks, args.episodes)
    assert isinstance(env, MujocoVectorEnv)
    bare = Bare(env.family, env, env.family.sample(args.tasks, np.random.default_rng(SEED)))
    rollouts = config.inner_steps + 1
    totals: dict[str, list[Clock]] = {name: [] for name in ("whole", "strided", "collect", "simulator", "limit")}
    strided = replace(config, fisher_stride=STRIDE)
    for _ in range(args.repeats):
        totals["strided"].append(clocked(lambda: maml_trpo.iteration(Setup(strided, sampler, policy, SEED), state))[0])
        parts: dict[str, Clock] = {"collect": (0.0, 0.0), "simulator": (0.0, 0.0)}
        with (
            patch.object(sampler, "collect", adding(parts, "collect", sampler.collect)),
            patch.object(env._simulator, "advance", adding(parts, "simulator", env._simulator.advance)),
        ):
            whole, _ = clocked(lambda: maml_trpo.iteration(Setup(config, sampler, policy, SEED), state))
        limit, _ = clocked(bare)
        for name, clock in (parts | {"whole": whole, "limit": (rollouts * limit[0], rollouts * limit[1])}).items():
            totals[name].append(clock)
    medians = {name: [statistics.median(clock[i] for clock in clocks) for i in (0, 1)]
               for name, clocks in totals.items()}  # fmt: skip
    difference = {
        "simulator": medians["simulator"],
        "rest of the rollout": [a - b for a, b in zip(medians["collect"], medians["simulator"], strict=True)],
        "update": [a - b for a, b in zip(medians["whole"], medians["collect"], strict=True)],
        "whole iteration": medians["whole"],
        f"the same, fisher_stride={STRIDE}": medians["strided"],
    }  # fmt: skip
    limits = {"simulator": medians["limit"][0], "whole iteration": medians["limit"][0]}
    return [
        {"part": name, "seconds": wall, "limit": limits.get(name),
         "busy share of the cores": cpu / wall / torch.get_num_threads()}
        for name, (wall, cpu) in difference.items()
    ]  # fmt: skip


def adding(parts: dict[str, Clock], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its durations added to `parts[name]`."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        (wall, cpu), out = clocked(lambda: function(*args, **kwargs))
        parts[name] = (parts[name][0] + wall, parts[name][1] + cpu)
        return out

    return timed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory for simulators.json and the CSVs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads (PyTorch's own choice)")
    parser.add_argument("--tasks", type=int, default=40, help="K")
    parser.add_argument("--episodes", type=int, default=20, help="E")
    parser.add_argument("--horizon", type=int, default=100, help="T")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    size = {"K": args.tasks, "E": args.episodes, "T": args.horizon, "hidden": args.hidden, "repeats": args.repeats}
    header: dict[str, Any] = {"machine": machine("cpu"), "mujoco": import_mujoco().__version__, "size": size}
    print(json.dumps(header, indent=2))
    results: dict[str, Rows] = {}
    for name in args.only:
        results[name] = {"rollout": rollout, "iteration": iteration}[name](args)
        show(name, results[name])
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "simulators.json").write_text(json.dumps(header | results, indent=2) + "\n")
        for name, rows in results.items():
            with (args.out / f"simulators_{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
