"""What one meta-iteration of MAML-TRPO on 2D navigation costs, part by part, and against the alternatives.

    python experiments/benchmarks/meta_iteration.py --out experiments/benchmarks/results

breakdown   where the seconds of one iteration go; its peak memory
fisher      one Fisher product three ways: by hand, by the double-vjp trick, by differentiating the KL twice
reference   the whole iteration against a Python loop over the tasks (loop_reference.py), which must agree with it
growth      time and peak memory against the number of tasks, with all graphs kept and with none (`graph_tasks=0`)

What is compared is timed in turn, A B A B ..., in one process; numbers are medians. Run it on an idle machine: with
other work on the cores PyTorch's own threading, which the alternatives lean on, can become ten times slower.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import loop_reference
import numpy as np
import torch
from reporting import Rows, machine, show, write
from torch import Tensor

import metarl
from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import Config, State
from metarl.inner import loop
from metarl.inner import settings as inner_settings
from metarl.inner.loss import Batch
from metarl.outer import objective as outer
from metarl.outer import trust_region
from metarl.outer.trust_region import flatten
from metarl.parallel import keep_freed_memory, thread_map
from metarl.params import expand
from metarl.policies.mlp import MLPPolicy
from metarl.policies.spaces import spaces_of
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup

PARTS = ("breakdown", "fisher", "reference", "growth")
SEED, MIB, STRIDE = 0, 2**20, 3


@dataclass(frozen=True)
class Problem:
    """One iteration, ready to be repeated."""

    config: Config
    sampler: Sampler
    policy: MLPPolicy
    state: State

    def iterate(self) -> tuple[State, dict[str, Any]]:
        return maml_trpo.iteration(Setup(self.config, self.sampler, self.policy, SEED), self.state)

    def loop(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The same by the Python loop over tasks."""
        tasks = self.sampler.tasks(self.config.n_tasks, SEED, self.state.iteration)
        env = self.sampler.vector_env(1, self.config.episodes)  # kept from call to call, as the batched one is
        return loop_reference.iteration(
            self.config, self.sampler.family, env, self.policy, self.state, tasks, SEED)  # fmt: skip


def make_problem(args: argparse.Namespace, warm_up: int = 2, **settings: Any) -> Problem:
    """The problem after `warm_up` iterations."""
    config = Config(
        **{"n_tasks": args.tasks, "episodes": args.episodes[0], "hidden": tuple(args.hidden), "cg_iterations": 10}
        | settings
    )
    sampler = Sampler(metarl.make("PointNavigation-v0", horizon=args.horizon), args.device)
    policy = config.policy(spaces_of(sampler.family))
    problem = Problem(config, sampler, policy, maml_trpo.init(config, policy, sampler.family, SEED, args.device))
    for _ in range(warm_up):
        problem = replace(problem, state=problem.iterate()[0])
    return problem


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def seconds(function: Callable[[], Any]) -> float:
    """The duration of one call, a GPU's work included."""
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Every way's durations, timed A B A B ... after one call of each."""
    for function in ways.values():
        function()
    rounds = [{name: seconds(function) for name, function in ways.items()} for _ in range(repeats)]
    return {name: [r[name] for r in rounds] for name in ways}


class Stopwatch:
    """Adds up durations by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            out: list[Any] = []
            self.seconds[name] += seconds(lambda: out.append(function(*args, **kwargs)))
            self.calls[name] += 1
            return out[0]

        return timed


@contextmanager
def stopwatch_in(sampler: Sampler) -> Iterator[Stopwatch]:
    """Within it, the functions that `maml_trpo.iteration` calls are timed."""
    watch = Stopwatch()
    conjugate_gradient = trust_region.conjugate_gradient

    def with_timed_products(product: Callable[[Tensor], Tensor], *args: Any) -> Any:
        return conjugate_gradient(watch.around("products", product), *args)

    timed = watch.around
    with (
        patch.object(sampler, "collect", timed("rollout", sampler.collect)),
        patch.object(inner_settings, "estimate", timed("advantages", inner_settings.estimate)),
        patch.object(loop, "detached_step", timed("inner step", loop.detached_step)),
        patch.object(maml_trpo, "trpo_step", timed("trpo_step", maml_trpo.trpo_step)),
        patch.object(trust_region, "conjugate_gradient", timed("conjugate_gradient", with_timed_products)),
        patch.object(trust_region, "value_and_kl", timed("line search", trust_region.value_and_kl)),
    ):
        yield watch


def memory(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes.

    Linux hands a parent's peak on to its children in getrusage's ru_maxrss, but not here.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition(f"{field}:")[2].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_fresh_process(args: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """Median seconds and peak MiB of an iteration with `settings`, measured by `child` in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(settings), "--device", args.device,
               "--threads", str(torch.get_num_threads()), "--repeats", str(min(args.repeats, 3)),
               "--horizon", str(args.horizon), "--hidden", *map(str, args.hidden)]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(args: argparse.Namespace) -> dict[str, Any]:
    """The other end of `in_fresh_process`."""
    make_problem(args, warm_up=1, n_tasks=1, episodes=1)  # what is loaded on first use is no part of the iteration
    before = memory("VmRSS")
    problem = make_problem(args, warm_up=1, **json.loads(args.child))
    times = [seconds(problem.iterate) for _ in range(args.repeats)]
    on_gpu = args.device != "cpu"
    peak = torch.cuda.max_memory_allocated() if on_gpu else memory("VmHWM") - before
    return {"seconds": statistics.median(times), "peak_mib": peak / MIB}


# ---------------------------------------------------------------------------------------------------------------------
# The four parts: each returns rows


def breakdown(args: argparse.Namespace) -> Rows:
    """Seconds per part of the real iteration. Raises AssertionError where the parts miss a tenth of it."""
    problem = make_problem(args)
    strided = replace(problem, config=replace(problem.config, fisher_stride=STRIDE))
    steps = problem.iterate()[0].env_steps - problem.state.env_steps
    plain, with_stride, rounds, products = [], [], [], []
    for _ in range(args.repeats):
        plain.append(seconds(problem.iterate))
        with_stride.append(seconds(strided.iterate))
        with stopwatch_in(problem.sampler) as watch:
            total = seconds(problem.iterate)
        s = watch.seconds
        update = s["conjugate_gradient"] + s["line search"]
        parts = {name: s[name] for name in ("rollout", "advantages", "inner step")}
        parts |= {"linearisation (forward and gradient)": s["trpo_step"] - update, "Fisher products": s["products"],
                  "conjugate gradient's vectors": s["conjugate_gradient"] - s["products"],
                  "line search": s["line search"]}  # fmt: skip
        assert sum(parts.values()) > 0.9 * total, f"the parts {parts} miss over a tenth of the iteration's {total} s"
        rounds.append(parts | {"rest": total - sum(parts.values())})
        products.append(s["products"] / watch.calls["products"])
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    whole = statistics.median(plain)
    medians["sum of the parts"] = sum(medians.values())
    rows: Rows = [{"part": name, "value": value, "unit": "s", "share": value / whole}
                  for name, value in medians.items()]  # fmt: skip
    rows[0]["goal"] = "share < 10%"
    peaks = {cap: in_fresh_process(args, n_tasks=args.tasks, episodes=args.episodes[0], graph_tasks=cap)["peak_mib"]
             for cap in (None, 0)}  # fmt: skip
    return [
        *rows,
        {"part": "whole iteration, not taken apart", "value": whole, "unit": "s", "goal": "0.9 s"},
        {"part": f"the same, fisher_stride={STRIDE}", "value": statistics.median(with_stride), "unit": "s"},
        {"part": "one Fisher product", "value": statistics.median(products), "unit": "s"},
        {"part": "environment steps in rollouts", "value": steps / medians["rollout"], "unit": "1/s"},
        {"part": "environment steps over all", "value": steps / whole, "unit": "1/s"},
        *({"part": f"peak memory, graph_tasks={cap}", "value": x, "unit": "MiB"} for cap, x in peaks.items()),
    ]


def fisher(args: argparse.Namespace) -> Rows:
    """Seconds per Fisher product. Raises AssertionError where the ways disagree."""
    problem = make_problem(args)
    products = fisher_products(problem)
    x = flatten(problem.state.params)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED)).to(x.device)
    ways: dict[str, Callable[[], Any]] = {name: partial(product, v) for name, product in products.items()}
    results = {name: way() for name, way in ways.items()}
    truth = results["twice"]
    errors = {name: float((x - truth).norm() / truth.norm()) for name, x in results.items()}
    assert max(errors.values()) < 1e-3, f"the ways to take a Fisher product disagree: relative errors {errors}"
    medians = {name: statistics.median(t) for name, t in in_turn(ways, 5 * args.repeats).items()}
    goals = {"by hand": "ratio <= 0.55"}
    return [{"way": name, "seconds": value, "ratio": value / medians["twice"], "relative error": errors[name],
             "goal": goals.get(name, "")} for name, value in medians.items()]  # fmt: skip


def fisher_products(problem: Problem) -> dict[str, Callable[[Tensor], Tensor]]:
    """name -> (v -> F v), on one iteration's data.

    by hand, double vjp: as `trpo_step` runs them, chunk by chunk in threads. twice: grad(grad(KL) @ v), all tasks in
    one batch. twice in chunks: that in the same chunks, which tells the gain of the formula from that of the chunks.
    """
    config, policy, state = problem.config, problem.policy, problem.state
    tasks = problem.sampler.tasks(config.n_tasks, SEED, state.iteration)
    params, data = expand(state.params, config.n_tasks), []
    for step in range(config.inner_steps + 1):
        rollout = problem.sampler.collect(tasks, config.episodes, policy, params, SEED, state.iteration, step)
        data.append(Batch.of(config, rollout))
        if step < config.inner_steps:
            params = loop.detached_step(config, policy, params, loop.InnerStep(data[-1], config.inner_lr))[0]

    def objective(chunk: slice, by_hand: bool) -> trust_region.Objective:
        return outer.objective(
            config, policy, [batch[chunk] for batch in data], config.n_tasks, outer.Outer(by_hand=by_hand)
        )

    def linearised(chunk: slice, by_hand: bool) -> Callable[[Tensor], Tensor]:
        return trust_region._linearise(objective(chunk, by_hand), state.params).product

    def twice(chunk: slice) -> Callable[[Tensor], Tensor]:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in state.params.items()}
        tensors = list(leaves.values())
        kl = objective(chunk, False)(leaves, True).kl
        gradient = loop_reference.flat(torch.autograd.grad(kl, tensors, create_graph=True))
        return lambda v: loop_reference.flat(torch.autograd.grad(gradient @ v, tensors, retain_graph=True))

    def summed(products: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
        return lambda v: torch.stack(thread_map(lambda product: product(v), products)).sum(0)

    chunks, everything = loop.chunks(data[-1]), slice(0, config.n_tasks)
    return {
        "by hand": summed([linearised(chunk, True) for chunk in chunks]),
        "double vjp": summed([linearised(chunk, False) for chunk in chunks]),
        "twice": twice(everything),
        "twice in chunks": summed([twice(chunk) for chunk in chunks]),
    }


def reference(args: argparse.Namespace) -> Rows:
    """Seconds per iteration against the loop over tasks, for every number of episodes.

    Raises:
        AssertionError: the two disagree.
    """
    rows: Rows = []
    for episodes in args.episodes:
        problem = make_problem(args, episodes=episodes)
        full = compare(problem)
        assert full["step"] < 1e-2, f"the loop over tasks takes another step: {full}"
        ways: dict[str, Callable[[], Any]] = {"metarl": problem.iterate, "loop": problem.loop}
        if torch.get_num_threads() > 1:  # the loop's small operations may be faster without threads; it gets the best
            ways["loop, one thread"] = partial(with_one_thread, problem.loop)
        medians = {name: statistics.median(times) for name, times in in_turn(ways, args.repeats).items()}
        best = min(value for name, value in medians.items() if name != "metarl")
        goal = {(20, 20): "loop / metarl >= 3", (20, 5): "loop / metarl >= 6"}.get((args.tasks, episodes), "")
        for name, value in medians.items():
            rows.append({"K": args.tasks, "E": episodes, "way": name, "seconds": value,
                         "ratio": value / medians["metarl"],
                         "backtracks": full["metarl" if name == "metarl" else "loop"]})  # fmt: skip
        rows.append({"K": args.tasks, "E": episodes, "way": "fastest loop / metarl", "ratio": best / medians["metarl"],
                     "parameters differ by": full["parameters"], "steps differ by": full["step"],
                     "goal": goal})  # fmt: skip
    return rows


def with_one_thread(function: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function()
    finally:
        torch.set_num_threads(before)


def compare(problem: Problem) -> dict[str, Any]:
    """Relative difference between both ways' new parameters and steps; candidates that their line searches refused.

    Raises:
        AssertionError: their returns differ.
    """
    (state, ours), (params, theirs) = problem.iterate(), problem.loop()
    for name in (name for name in theirs if name.startswith("return/")):
        assert abs(ours[name] - theirs[name]) <= 1e-3 * abs(ours[name]), (name, ours[name], theirs[name])
    a, b, start = flatten(state.params), flatten(params), flatten(problem.state.params)
    return {"parameters": float((a - b).norm() / a.norm()), "step": float((a - b).norm() / (a - start).norm()),
            "metarl": ours["outer/backtracks"], "loop": theirs["outer/backtracks"]}  # fmt: skip


def growth(args: argparse.Namespace) -> Rows:
    """Seconds and peak MiB per iteration against K, each in a process of its own."""
    rows: Rows = []
    for cap in (None, 0):
        own: Rows = []
        for n in args.sizes:
            measured = in_fresh_process(args, n_tasks=n, episodes=args.episodes[0], graph_tasks=cap)
            own.append({"graph_tasks": "all" if cap is None else cap, "K": n, **measured,
                        "ms_per_task": 1000 * measured["seconds"] / n})  # fmt: skip
        fit = linear_fit([row["K"] for row in own], [row["peak_mib"] for row in own])
        rows += [row | {"fit_mib": f} for row, f in zip(own, fit["fitted"], strict=True)]
        print(f"graph_tasks={cap}: peak memory = {fit['intercept']:.1f} + {fit['slope']:.3f} K MiB, "
              f"rms residual {fit['rms']:.1f} MiB, largest {fit['largest']:.1%} of the value")  # fmt: skip
    return rows


def linear_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Least squares: intercept, slope, fitted values, root mean square residual, largest |residual| / value."""
    slope, intercept = np.polyfit(x, y, 1) if len(x) > 1 else (0.0, y[0])
    fitted = intercept + slope * np.asarray(x, dtype=float)
    residual = np.asarray(y) - fitted
    return {"intercept": float(intercept), "slope": float(slope), "fitted": fitted.tolist(),
            "rms": float(np.sqrt((residual**2).mean())),
            "largest": float((np.abs(residual) / np.asarray(y)).max())}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory for meta_iteration.json, the CSVs and the figure")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="PyTorch's threads (its own choice)")
    parser.add_argument("--tasks", type=int, default=20, help="K")
    parser.add_argument("--episodes", type=int, nargs="+", default=[20, 5], help="E; the first for all but `reference`")
    parser.add_argument("--horizon", type=int, default=100, help="T")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20, 40, 80, 160, 320], help="the K of `growth`")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every training run does; the alternatives profit too
    if args.child is not None:
        print(json.dumps(child(args)))
        return
    size = {"K": args.tasks, "E": args.episodes, "T": args.horizon, "hidden": args.hidden, "repeats": args.repeats}
    header = {"machine": machine(args.device), "size": size}
    print(json.dumps(header, indent=2))
    measures = {"breakdown": breakdown, "fisher": fisher, "reference": reference, "growth": growth}
    results: dict[str, Rows] = {}
    for name in args.only:
        results[name] = measures[name](args)
        show(name, results[name])
    if args.out is not None:
        write(results, header, args.out)


if __name__ == "__main__":
    main()
