"""One cell: train one contender on one family with one seed, adapt it to the frozen tasks, write the result."""

import resource
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarl.benchmark.contract import Adaptation, Contender, Policies, Stage, Test, Training, evaluated
from metarl.benchmark.meter import BudgetSpent, Meter, MeteredFamily
from metarl.benchmark.suite import Cell
from metarl.benchmark.tasks import TaskLists
from metarl.checkpoint import write_json
from metarl.rollout.sampler import Sampler
from metarl.splits import VALIDATION
from metarl.tasks import Tasks, num_tasks
from metarl.training.train import versions

RESULT, FAILURE = "result.json", "failure.txt"
SEED_OF_TESTS = 0x7E57
"""Adaptation and evaluation of every contender and seed draw from keys of this and the cell's seed."""


def run(cell: Cell, lists: TaskLists, out: Path) -> Mapping[str, Any]:
    """Run the cell and write its result below `out`; a failure is written there too, and raised."""
    directory = out / cell.path
    directory.mkdir(parents=True, exist_ok=True)
    try:
        result = _run(cell, lists, directory)
    except Exception:
        (directory / FAILURE).write_text(traceback.format_exc())
        raise
    (directory / FAILURE).unlink(missing_ok=True)
    write_json(directory / RESULT, result)
    return result


def _run(cell: Cell, lists: TaskLists, directory: Path) -> dict[str, Any]:
    contender, family = cell.made_contender(), cell.made_family()
    about = {"family": cell.family, "contender": cell.contender, "seed": cell.seed, "tasks_hash": lists.hash,
             "label": cell.suite.contenders[cell.contender].label or contender.label}  # fmt: skip
    if reason := contender.fits(family):
        return {**about, "left_out": reason}
    seen, clock, cpu = contender.sees(family), time.perf_counter(), time.process_time()
    meter = Meter(cell.suite.families[cell.family].budget)
    training = Training(MeteredFamily(seen, meter), meter, cell.seed, directory, cell.adaptation,
                        dict(lists.splits[VALIDATION]))  # fmt: skip
    learned = contender.train(training)
    spent = {"training_steps": meter.spent, "training_exceeded": meter.exceeded,
             "training_seconds": round(time.perf_counter() - clock, 1),
             "training_cpu_seconds": round(time.process_time() - cpu, 1)}  # fmt: skip
    splits = {
        split: _curve(contender, learned, seen, dict(tasks), cell.adaptation, cell.seed)
        for split, tasks in lists.splits.items() if split != VALIDATION
    }  # fmt: skip
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    chosen = getattr(learned, "chosen", "")
    return {**about, "adaptation": vars(cell.adaptation), "horizon": family.horizon, **spent, "peak_memory_mib": memory,
            "chosen": chosen, "versions": versions(), "threads": torch.get_num_threads(), "splits": splits}  # fmt: skip


def _curve(
    contender: Contender, learned: Any, family: Any, tasks: Tasks, adaptation: Adaptation, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Returns [units, K], success rates likewise, and what adaptation had seen at each unit."""
    K = num_tasks(tasks)
    meter = Meter(K * adaptation.steps * adaptation.episodes * family.horizon)
    sampler, judge = Sampler(MeteredFamily(family, meter)), Sampler(family)
    key = SEED_OF_TESTS * 1_000_003 + seed
    test, stages, exceeded = Test(sampler.family, tasks, adaptation, key, sampler), list[Stage](), False
    policies = iter(contender.adapt(learned, test))
    start = time.perf_counter()
    seconds = list[float]()
    while True:
        try:
            now: Policies | None = next(policies, None)
        except BudgetSpent:
            exceeded = True
            break
        if now is None:
            break
        seconds.append(round(time.perf_counter() - start, 2))
        found = evaluated(now, judge, tasks, adaptation.eval_episodes, key, len(stages))
        stages.append(Stage(found.returns, found.success, now.episodes, meter.spent / K))
        start = time.perf_counter()
    sampler.close()
    judge.close()
    success = None
    if any(stage.success is not None for stage in stages):
        success = [[0.0] * K if s.success is None else s.success.float().mean(1).tolist() for s in stages]
    return {
        "returns": [stage.returns.mean(1).tolist() for stage in stages],
        "first_returns": stages[0].returns[:, 0].tolist(),
        "success": success, "episodes": [stage.episodes for stage in stages],
        "steps": [round(stage.steps, 1) for stage in stages], "seconds": seconds, "exceeded": exceeded,
        "tasks": {name: np.asarray(value).tolist() for name, value in tasks.items()},
    }  # fmt: skip
