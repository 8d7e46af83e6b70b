"""The batch equals a loop over tasks: `maml_trpo.iteration` against the benchmark's twin, which is written without it.

The twin (experiments/benchmarks/loop_reference.py) has its own policy, losses, baseline, inner step and trust region,
and differentiates the KL divergence twice. Four conjugate-gradient iterations keep float32 rounding near 1e-6 of the
step; after ten it is percents, whichever way the products are taken.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from probes import Drift

import metarl
from metarl import parallel
from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import Config
from metarl.inner import loop
from metarl.outer import trust_region
from metarl.outer.trust_region import flatten
from metarl.policies.spaces import spaces_of
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup

FOLDER = Path(__file__).parents[2] / "experiments" / "benchmarks"


def load(name: str) -> ModuleType:
    """A script of the benchmarks' folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load("reporting")
loop_reference = load("loop_reference")
benchmark = load("meta_iteration")

SMALL = Config(n_tasks=3, episodes=2, hidden=(8,), cg_iterations=4, output_gain=0.1)
SEED = 7
FAMILIES = {
    "gaussian": metarl.make("PointNavigation-v0", horizon=5),
    "categorical": metarl.make("TabularMDP-v0", horizon=3),
    "early ends": Drift(),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
variants = pytest.mark.parametrize(
    "variant",
    [{"inner_steps": steps, "first_order": first_order, "adapt_std": adapt_std, "inner_gradient": gradient}
     for steps in (1, 2) for first_order in (False, True) for adapt_std in (False, True)
     for gradient in ("policy_gradient", "lvc") if not first_order or gradient == "lvc"],
    ids=lambda v: "-".join(f"{name}={value}" for name, value in v.items()),
)  # fmt: skip


def both(family: Any, config: Config, twins: Config | None = None) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """The relative difference between the steps of the batch and of the loop, and their statistics."""
    policy, sampler = config.policy(spaces_of(family)), Sampler(family)
    start = maml_trpo.init(config, policy, family, 0)
    new, stats = maml_trpo.iteration(Setup(config, sampler, policy, SEED), start)
    tasks = sampler.tasks(config.n_tasks, SEED, 0)
    env = metarl.make_vector(family, 1, config.episodes)
    params, twin_stats = loop_reference.iteration(twins or config, family, env, policy, start, tasks, SEED)
    step, twin = (flatten(p) - flatten(start.params) for p in (new.params, params))
    return float((step - twin).norm() / step.norm().clamp_min(1e-12)), stats | {"env_steps": new.env_steps}, twin_stats


@families
@variants
def test_a_batched_iteration_takes_the_step_of_a_loop_over_tasks(family, variant):
    difference, stats, twin_stats = both(family, replace(SMALL, **variant))
    assert difference < 5e-4
    assert stats["outer/backtracks"] == twin_stats["outer/backtracks"]


@families
@variants
def test_its_statistics_are_those_of_the_loop(family, variant):
    _, stats, twin_stats = both(family, replace(SMALL, **variant))
    common = sorted(twin_stats)
    torch.testing.assert_close([float(stats[name]) for name in common], [float(twin_stats[name]) for name in common],
                               atol=1e-5, rtol=1e-5)  # fmt: skip


@families
@pytest.mark.parametrize("graph_tasks", [None, 0, 2])
def test_it_does_so_in_chunks_too(family, graph_tasks, monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 1)
    difference, _, _ = both(family, replace(SMALL, inner_steps=2, graph_tasks=graph_tasks))
    assert difference < 5e-4


@families
@pytest.mark.parametrize(
    "change", [{"inner_lr": 0.11}, {"first_order": True}, {"max_kl": 0.009}, {"gamma": 0.9}, {"damping": 0.1}], ids=str
)
def test_another_setting_is_another_step(family, change):
    difference, _, _ = both(family, SMALL, replace(SMALL, **change))
    assert difference > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# The measuring


TINY = ["--tasks", "2", "--episodes", "2", "--horizon", "4", "--hidden", "4", "--repeats", "1"]


def problem(**settings: Any) -> Any:
    family = metarl.make("PointNavigation-v0", horizon=4)
    config = replace(SMALL, **settings)
    policy = config.policy(spaces_of(family))
    return benchmark.Problem(config, Sampler(family), policy, maml_trpo.init(config, policy, family, 0))


def test_the_stopwatch_counts_every_part_of_an_iteration():
    p = problem(inner_steps=2, cg_iterations=3)
    with benchmark.stopwatch_in(p.sampler) as watch:
        backtracks = p.iterate()[1]["outer/backtracks"]
    assert watch.calls == {"rollout": 3, "advantages": 3, "inner step": 2, "trpo_step": 1, "conjugate_gradient": 1,
                           "products": 3, "line search": backtracks + 1}  # fmt: skip


def test_the_stopwatch_leaves_the_package_as_it_was():
    before = (loop.detached_step, maml_trpo.trpo_step, trust_region.conjugate_gradient)
    with benchmark.stopwatch_in(problem().sampler):
        assert loop.detached_step is not before[0]
    assert (loop.detached_step, maml_trpo.trpo_step, trust_region.conjugate_gradient) == before


@pytest.mark.parametrize("first_order", [False, True])
def test_all_ways_to_a_fisher_product_agree(first_order):
    p = problem(hidden=(8,), first_order=first_order)
    v = torch.randn(flatten(p.state.params).shape, generator=torch.Generator().manual_seed(0))
    results = {name: product(v) for name, product in benchmark.fisher_products(p).items()}
    for result in results.values():
        torch.testing.assert_close(result, results["twice"], atol=1e-5, rtol=1e-4)


def test_the_linear_fit_of_a_line_and_of_a_point_off_it():
    assert benchmark.linear_fit([1, 2, 3], [5.0, 7.0, 9.0])["slope"] == pytest.approx(2)
    # y = 0, 0, 3 at x = 0, 1, 2: slope 3/2, intercept -1/2, residuals 1/2, -1, 1/2.
    assert benchmark.linear_fit([0, 1, 2], [1.0, 1.0, 4.0])["rms"] == pytest.approx(0.5**0.5)


def test_the_script_writes_what_it_measured(tmp_path, capsys):
    benchmark.main([*TINY, "--only", "fisher", "reference", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "meta_iteration.json").read_text())
    ratios = {row["way"]: row["ratio"] for row in written["reference"]}
    assert ratios["fastest loop / metarl"] == pytest.approx(ratios["loop"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "fisher.csv", "reference.csv", "meta_iteration.json", "meta_iteration.png"}  # fmt: skip


def test_memory_is_that_of_a_fresh_process():
    ballast = torch.ones(64 << 20, dtype=torch.uint8)  # 64 MiB that the child must not inherit
    measured = benchmark.in_fresh_process(benchmark.parser().parse_args(TINY), n_tasks=2, episodes=2)
    assert measured["peak_mib"] < len(ballast) / benchmark.MIB


# ---------------------------------------------------------------------------------------------------------------------
# The other scripts, in a few steps each


def run_script(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    """What a script writes; in a process of its own, as some of them fork."""
    subprocess.run([sys.executable, FOLDER / f"{name}.py", *arguments, "--repeats", "1", "--out", out], check=True,
                   timeout=300, stdout=subprocess.DEVNULL)  # fmt: skip
    return json.loads((out / f"{name}.json").read_text())


def test_the_simulators_script_runs_and_accounts_for_the_whole_iteration(tmp_path):
    pytest.importorskip("mujoco")
    written = run_script("simulators", tmp_path, *TINY, "--threads", "1")
    ways = ["whole rollout", "vector environment", "mujoco.rollout, call by call", "mujoco.rollout"]
    rows = written["rollout"]
    assert [row["what"] for row in rows] == [*ways, "whole rollout, over at a fall", *ways]
    assert all(row["steps_per_second"] > 0 for row in rows)
    assert [row["ratio"] for row in rows if row["what"] == ways[-1]] == [1.0, 1.0]
    *parts, whole, strided = (row["seconds"] for row in written["iteration"])
    assert sum(parts) == pytest.approx(whole) and strided > 0
    names = {"simulators.json", "simulators_rollout.csv", "simulators_iteration.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_the_script_of_strides_compares_with_the_step_of_all_steps(tmp_path):
    small = ["--horizon", "20", "--tasks", "4", "--episodes", "5", "--warm-up", "1", "--threads", "1"]
    written = run_script("fisher_stride", tmp_path, *small)
    gain = {row["stride"]: row["gain"] for row in written["rows"]}
    assert gain["1"] == 1.0 and 0.5 < gain["10"] < 1.01 and gain["10"] < gain["2"] + 0.01
    assert all((row["seconds of an update"] or 0) > 0 for row in written["rows"][:-1])


@pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system")
def test_the_script_of_the_process_backend_runs_every_way(tmp_path):
    pytest.importorskip("stable_baselines3")
    written = run_script("process_backend", tmp_path, "--only", "cheap", "--sizes", "2", "--seconds", "0.001")
    rows = written["rows"]
    assert [row["way"] for row in rows] == ["automatic", "loop", "processes", "sync", "async", "subproc"]
    assert [row["failed"] for row in rows] == [None] * 6
    assert rows[0]["ratio"] == 1.0
    assert all(row["env-steps per second"] == pytest.approx(2000 / row["ms per step"]) for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"process_backend.json", "process_backend.csv"}
