"""Check a user-defined task family: what is wrong with it, where, and how to fix it.

    from metarl import check_family

    check_family(MyFamily())                            # raises FamilyError with all findings
    for finding in check_family(MyFamily(), raise_problems=False):
        log.warning("%s", finding)

It samples tasks from every split, plays random actions for a whole episode in single environments of a few of them,
again with the same seeds, and once more in the vector environment: about a dozen episodes in total. Then it looks for
parameters that have no effect. It cannot tell whether the tasks are worth learning.
"""

import warnings
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np

from metarl.arguments import whole, yes_or_no
from metarl.families.check_environments import TASKS, Finding, check_environments, raised
from metarl.families.check_parameters import Inert, inert_parameters
from metarl.policies.spaces import SUPPORTED
from metarl.splits import SPLITS, TEST, TRAIN, VALIDATION, sample_split, splits_of
from metarl.tasks import Task, TaskFamily, Tasks, task_at, validate_task
from metarl.torch_defaults import torch_defaults

__all__ = ["FamilyError", "Finding", "check_family"]


class FamilyError(ValueError):
    """A family cannot be used; `findings` lists the reasons, and the message describes them."""

    def __init__(self, name: str, findings: Sequence[Finding]):
        self.findings = list(findings)
        super().__init__("\n".join([f"{name} has {len(findings)} problem(s)", *(f"- {f}" for f in findings)]))


@torch_defaults
def check_family(family: TaskFamily, *, n_tasks: int = 50, seed: int = 0, raise_problems: bool = True) -> list[Finding]:
    """Find everything that is wrong with `family`; an exception in an environment is a finding too.

    Args:
        family: the family itself, not its class.
        n_tasks: tasks drawn from each split; three of them are stepped, two episodes each.
        seed: seed of the tasks, episodes and actions.
        raise_problems: raise an error instead of returning the findings.

    Returns:
        The findings. The search ends after a stage whose findings would make later stages meaningless.

    Raises:
        FamilyError: there are findings and `raise_problems` is set. A parameter that seems to have no effect only gives
            a warning if all rewards were equal: it may matter in states that the actions tried do not reach.
        ValueError: `n_tasks` is below 2.
    """
    n_tasks, seed = whole("n_tasks", n_tasks, 2), whole("seed", seed, 0)
    raise_problems = yes_or_no("raise_problems", raise_problems)
    if isinstance(family, str):
        raise ValueError(f"check_family takes a family, not its id: metarl.make({family!r}) makes it")
    findings = list(_check_members(family))
    if not findings:
        drawn: dict[str, Tasks] = {}
        found = {finding.problem: finding for finding in _check_sampling(family, n_tasks, seed, drawn)}
        findings = list(found.values())  # what is wrong with several splits, once
        if "train" in drawn:
            findings += check_environments(family, _distinct(drawn["train"], TASKS), seed)
        if not findings:
            usual = [drawn[split] for split in (TRAIN, TEST) if split in drawn]
            joined = {name: np.concatenate([tasks[name] for tasks in usual]) for name in family.task_space}
            findings = [_about(inert) for inert in inert_parameters(family, joined, seed)]
    if raise_problems and findings and not any(finding.certain for finding in findings):
        for finding in findings:
            warnings.warn(str(finding), UserWarning, stacklevel=2)
    elif findings and raise_problems:
        raise FamilyError(str(getattr(family, "id", family)), findings)
    return findings


def _about(inert: Inert) -> Finding:
    one, other = inert.values
    problem = (f"changes nothing: {inert.steps} steps have the same observations, rewards and ends with {one} and with "
               f"{other}, by the same seeds and actions")  # fmt: skip
    remedy = (
        "see that reset does not overwrite it, that step reads it, and that its name is right: what no code reads "
        "does nothing. If it acts only where none of these actions led, this can be ignored"
    )
    return Finding(problem, f"parameter {inert.name!r}", remedy, inert.certain)


# ---------------------------------------------------------------------------------------------------------------------
# The family and its tasks


def _check_members(family: Any) -> Iterator[Finding]:
    if isinstance(family, type):
        yield Finding("is a class", family.__name__, f"check an instance: check_family({family.__name__}())")
        return
    name = type(family).__name__
    wanted: dict[str, tuple[Any, str]] = {
        "id": (str, "a name with a version, like 'PointNavigation-v0'"),
        "horizon": ((int, np.integer), "the number of steps after which every episode is cut off"),
        "observation_space": (SUPPORTED, "a Box, Discrete, MultiDiscrete or MultiBinary, which is what policies take"),
        "action_space": (SUPPORTED, "a Box, Discrete, MultiDiscrete or MultiBinary, which is what policies take"),
        "task_space": (gym.spaces.Dict, "a gymnasium.spaces.Dict with one entry for each task parameter"),
    }
    for member, (kind, meaning) in wanted.items():
        value = getattr(family, member, None)
        if value is None:
            yield Finding(f"has no {member!r}", name, f"give it {meaning}")
        elif not isinstance(value, kind):
            yield Finding(f"{member!r} is {value!r}", name, f"make it {meaning}")
        elif member in ("observation_space", "action_space") and 0 in (value.shape or ()):
            yield Finding(
                f"{member!r} is {value!r}, which holds no number", name, "make it a Box of shape (1,) at least"
            )
    horizon = getattr(family, "horizon", 1)
    if isinstance(horizon, (int, np.integer)) and horizon < 1:
        yield Finding(f"'horizon' is {horizon}", name, "make it at least 1")
    for member, call in (("sample", "sample(n, rng, split='train')"), ("make", "make(task)")):
        if not callable(getattr(family, member, None)):
            yield Finding(f"has no method {member!r}", name, f"write {call}, see metarl.TaskFamily")


def _check_sampling(family: TaskFamily, n: int, seed: int, drawn: dict[str, Tasks]) -> Iterator[Finding]:
    """Also adds the tasks of each split without problems to `drawn`."""
    try:
        splits = splits_of(family)
    except ValueError as error:
        yield Finding(str(error), type(family).__name__, "name them as strings, or leave splits out")
        return
    for split in splits:
        where = f"sample({n}, rng, {split!r})"
        try:
            tasks, again = (sample_split(family, n, np.random.default_rng(seed), split) for _ in range(2))
        except Exception as error:
            yield Finding(raised(error), where, "sample must serve every split and any number of tasks")
            continue
        problem = _task_problem(family, tasks, n, outside=split not in SPLITS)
        if problem:
            allowed = "finite and of the shapes in" if split not in SPLITS else "that lie in"
            yield Finding(problem, where, f"return {{name: array [n, *shape]}} with tasks {allowed} task_space")
            continue
        drawn[split] = tasks
        if _keys(tasks) != _keys(again):
            remedy = "draw from `rng` only, or from metarl.split_rng(rng, split)"
            yield Finding("the same generator state gives different tasks each time", where, remedy)
        if split not in SPLITS:
            yield from _first_steps(family, task_at(tasks, 0), split, seed)
    if len(drawn) == len(splits) and not getattr(family, "shared_splits", False):
        pairs = (_check_apart(drawn, one, other) for one, other in combinations(splits, 2))
        yield from next(filter(None, pairs), [])  # the other pairs would only repeat it


def _check_apart(drawn: dict[str, Tasks], one: str, other: str) -> list[Finding]:
    """Check that splits have no task in common; in a finite set, validation tasks may be training tasks."""
    first, second = _keys(drawn[one]), _keys(drawn[other])
    if first == second:
        remedy = "start sample with rng = metarl.split_rng(rng, split), so that the splits never share a draw"
        return [Finding(f"{one} and {other} tasks are the same for the same generator state", "sample", remedy)]
    if set(first) & set(second) and (one, other) != (TRAIN, VALIDATION):
        example = task_at(drawn[other], next(i for i, key in enumerate(second) if key in set(first)))
        remedy = "keep the sets apart; where the tasks are a few that all need, set shared_splits = True"
        return [Finding(f"the splits {one} and {other} have tasks in common, as {example}", "sample", remedy)]
    return []


def _first_steps(family: TaskFamily, task: Task, split: str, seed: int) -> Iterator[Finding]:
    """Check that a task of an additional split, which may be outside the range of the other checks, can be stepped."""
    where = f"environment of a task of {split!r}"
    try:
        env = family.make(task)
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(min(family.horizon, 10)):
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            if not np.isfinite(float(reward)):
                yield Finding(f"reward {reward!r} is not one finite number", where, "return a finite number")
            if terminated or truncated:
                break
        env.close()
    except Exception as error:
        yield Finding(raised(error), where, f"make, reset and step must work for {task}, or leave it out of the split")


def _task_problem(family: TaskFamily, tasks: Any, n: int, outside: bool) -> str | None:
    names = list(family.task_space.spaces)
    if not isinstance(tasks, dict) or sorted(tasks) != sorted(names):
        return f"returns {sorted(tasks) if isinstance(tasks, dict) else type(tasks)}, task_space has {sorted(names)}"
    for name, value in tasks.items():
        shape = (n, *(family.task_space[name].shape or ()))
        if np.shape(value) != shape:
            return f"{name!r} has shape {np.shape(value)}, not {shape}"
        if not np.isfinite(np.asarray(value, np.float64)).all():
            return f"{name!r} has entries that are not finite"
    for k in range(n):
        try:
            validate_task(family, task_at(tasks, k), outside)
        except ValueError as error:
            return f"task {k} is not in task_space: {error}"
    return None


def _keys(tasks: Tasks) -> list[bytes]:
    """One key per task, equal for equal tasks."""
    values = [np.asarray(tasks[name]) for name in sorted(tasks)]
    return [b"|".join(value[k].tobytes() for value in values) for k in range(len(values[0]))]


def _distinct(tasks: Tasks, count: int) -> list[Task]:
    """Up to `count` distinct tasks."""
    first = {key: k for k, key in reversed(list(enumerate(_keys(tasks))))}
    return [task_at(tasks, k) for k in sorted(first.values())[:count]]
