"""The part of `metarl.families.check` that steps environments: singly, repeatedly, and all as one vector
environment."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from metarl.policies.spaces import without_huge_bounds
from metarl.tasks import Task, TaskFamily, stack_tasks
from metarl.vector.backends import make_vector
from metarl.vector.transition import check_five, check_info, check_pair, hint

TASKS, EPISODES = 3, 2  # environments that are stepped
LARGEST_SEED = 2**62 - 1  # see random.episode_seeds
_TOLERANCE = 1e-4  # a batched function may round otherwise than a single one


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem of a family."""

    problem: str
    where: str
    remedy: str
    certain: bool = True
    """False if there may be no problem after all; findings that are all uncertain do not raise."""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}\n    To fix it: {self.remedy}"


@dataclasses.dataclass
class _Episode:
    """The data returned by a plain environment: one more observation than rewards."""

    observations: list[Any]
    rewards: list[Any]
    flags: list[tuple[Any, Any]]  # terminated, truncated


def check_environments(family: TaskFamily, tasks: list[Task], seed: int) -> list[Finding]:
    """Check single environments on their own, then against each other, then against the vector environment."""
    space = without_huge_bounds(family.action_space)
    space.seed(seed)
    n = len(tasks) * EPISODES
    actions = [[space.sample() for _ in range(n)] for _ in range(family.horizon + 1)]
    episodes: list[_Episode] = []
    for k, task in enumerate(tasks):
        findings: list[Finding] = []
        try:
            for finding in _check_environment(family, task, seed, k, actions, episodes):
                findings.append(finding)  # one by one, to keep those before an exception
        except Exception as error:
            remedy = f"make, reset and step must work for {task}"
            findings.append(Finding(raised(error), f"environment of task {k}", remedy))
        if findings:  # the other tasks would only repeat them
            return findings
    first = [np.asarray(episode.observations[0]) for episode in episodes[::EPISODES]]
    findings = []
    if getattr(family, "hidden_task", True) and any(not np.array_equal(first[0], other) for other in first[1:]):
        problem = f"the first observation tells tasks apart: {_shorten(first)} for the same seed"
        remedy = "leave the task out of the observation, or set hidden_task = False if it is meant to be seen"
        findings.append(Finding(problem, "reset", remedy))
    return [*findings, *_check_vector(family, tasks, seed, actions, episodes)]


def _check_environment(
    family: TaskFamily, task: Task, seed: int, k: int, actions: list[list[Any]], episodes: list[_Episode]
) -> Iterator[Finding]:
    """Check one task's environment; appends its episodes to `episodes`."""
    where = f"environment of task {k}"
    env = family.make(task)
    if not isinstance(env, gym.Env):
        yield Finding(f"make returns {type(env)}", where, "return a gymnasium.Env")
        return
    for member in ("observation_space", "action_space"):
        if getattr(env, member) != getattr(family, member):
            problem = f"its {member} is {getattr(env, member)}, the family's is {getattr(family, member)}"
            yield Finding(problem, where, "all environments of a family have the spaces that the family names")
            return
    columns = [[step[k * EPISODES + e] for step in actions[:-1]] for e in range(EPISODES)]
    played = [_play(env, seed + e, column) for e, column in enumerate(columns)]
    wrong = (list(_check_values(family, episode, f"task {k}, episode {e}")) for e, episode in enumerate(played))
    yield from next(filter(None, wrong), [])  # the other episodes would only repeat them
    again = _play(env, seed, columns[0])  # after other episodes, so that leftovers of them show
    fresh_env = family.make(task)
    fresh = _play(fresh_env, seed, columns[0])
    step = _first_difference(played[0], again)
    if step == 0:
        remedy = "begin reset with super().reset(seed=seed) and draw from self.np_random only"
        yield Finding("the same seed gives another first observation", f"reset of task {k}", remedy)
    elif step is not None:
        remedy = "draw from self.np_random only, seeded by reset, and let reset undo whatever step changed"
        problem = "the same seed and actions give another observation, reward or end"
        yield Finding(problem, f"step {step} of task {k}", remedy)
    elif (step := _first_difference(played[0], fresh)) is not None:
        remedy = "let the task alone decide what make builds; what else varies belongs into task_space"
        yield Finding(f"a second environment of the same task differs at step {step}", f"make of task {k}", remedy)
    try:
        env.reset(seed=LARGEST_SEED)
    except Exception as error:
        remedy = "episodes have seeds below 2**62; where a generator takes smaller ones only, use seed % 2**31"
        yield Finding(raised(error), f"reset of task {k} with seed {LARGEST_SEED}", remedy)
    if fresh_env is env:
        yield Finding("make returns the same object twice", where, "build a new environment in every call of make")
    fresh_env.close()
    env.close()
    episodes.extend(played)


def _play(env: gym.Env, seed: int, actions: list[Any]) -> _Episode:
    name = type(env.unwrapped).__name__
    returned: Any = env.reset(seed=seed)
    check_pair(name, returned)
    episode = _Episode([copy.deepcopy(returned[0])], [], [])
    for action in actions:
        returned = env.step(action)
        check_five(name, returned)
        obs, reward, terminated, truncated, info = returned
        check_info(name, info)
        episode.observations.append(copy.deepcopy(obs))
        episode.rewards.append(reward)
        episode.flags.append((terminated, truncated))
        if np.any(terminated) or np.any(truncated):  # what is no flag is found afterwards
            break
    return episode


def _check_values(family: TaskFamily, episode: _Episode, where: str) -> Iterator[Finding]:
    space = family.observation_space
    for t, obs in enumerate(episode.observations):
        if problem := _observation_problem(space, obs):
            remedy = f"return observations that lie in observation_space, {space}"
            yield Finding(f"observation {problem}", f"{where}, {f'step {t}' if t else 'reset'}", remedy)
            break
    for t, (reward, flags) in enumerate(zip(episode.rewards, episode.flags, strict=True), 1):
        if not isinstance(reward, (int, float, np.integer, np.floating)) or not np.isfinite(reward):
            remedy = "return a finite number, float(reward)"
            yield Finding(f"reward {reward!r} is not one finite number", f"{where}, step {t}", remedy)
            break
        if not all(isinstance(flag, (bool, np.bool_)) for flag in flags):
            remedy = "return two bools"
            yield Finding(f"terminated, truncated are {flags!r}", f"{where}, step {t}", remedy)
            break


def _observation_problem(space: gym.Space, obs: Any) -> str | None:
    if isinstance(space, gym.spaces.Discrete):
        return None if space.contains(obs) else f"{obs!r} is not in {space}"
    if not isinstance(obs, np.ndarray):
        return f"is {type(obs)}, not an array"
    if obs.shape != space.shape:
        return f"has shape {obs.shape}, not {space.shape}"
    if obs.dtype != space.dtype:
        return f"has dtype {obs.dtype}, not {space.dtype}"
    if not np.isfinite(obs).all():
        return f"{_shorten(obs)} is not finite"
    return None if space.contains(obs) else f"{_shorten(obs)} is out of bounds"


def _first_difference(a: _Episode, b: _Episode) -> int | None:
    """The first step, 0 for the reset, at which two episodes are not bitwise equal."""
    for t in range(max(len(a.observations), len(b.observations))):
        if t >= min(len(a.observations), len(b.observations)):
            return t
        if not _same(a.observations[t], b.observations[t]):
            return t
        if t and not (_same(a.rewards[t - 1], b.rewards[t - 1]) and all(map(_same, a.flags[t - 1], b.flags[t - 1]))):
            return t
    return None


def _same(a: Any, b: Any) -> bool:
    x, y = np.asarray(a), np.asarray(b)
    return np.array_equal(x, y, equal_nan=bool(np.issubdtype(x.dtype, np.floating)))


def _check_vector(
    family: TaskFamily, tasks: list[Task], seed: int, actions: list[list[Any]], episodes: list[_Episode]
) -> Iterator[Finding]:
    """Compare its results with those of single environments, until one step beyond the horizon."""
    where = f"vector environment of {len(tasks)} tasks, {EPISODES} episodes"
    try:
        env: Any = make_vector(family, len(tasks), EPISODES)
        if env.num_envs != len(episodes):
            yield Finding(f"num_envs is {env.num_envs}", where, f"make it K * E = {len(episodes)}")
            return
        seeds = [seed + e for _ in tasks for e in range(EPISODES)]
        # Other tasks first: one that keeps the tasks of its first reset, or their states, is found out.
        env.reset(seed=seeds[::-1], options={"tasks": stack_tasks(tasks[::-1])})
        env.step(_batch(actions[0]))
        obs, _ = env.reset(seed=seeds, options={"tasks": stack_tasks(tasks)})
        yield from _differences(env, obs, actions, episodes, where)
        env.close()
    except Exception as error:
        yield Finding(raised(error), where, "see metarl.vector.loop.LoopVectorEnv for what reset and step must accept")


def _differences(
    env: Any, obs: Any, actions: list[list[Any]], episodes: list[_Episode], where: str
) -> Iterator[Finding]:
    """The first number that differs from the single environments' episodes."""
    horizon, n = len(actions) - 1, len(episodes)
    got: dict[str, Any] = {"observation": obs}
    for t in range(horizon + 2):
        if t:
            obs, reward, terminated, truncated, _ = env.step(_batch(actions[t - 1]))
            ended = torch.as_tensor(terminated) | torch.as_tensor(truncated)
            got = {"observation": obs, "reward": reward, "terminated": terminated, "ended": ended}
        wanted = [_expected(episode, t, horizon) for episode in episodes]
        for name, value in got.items():
            value = torch.as_tensor(value).cpu().numpy()
            want = np.stack([np.asarray(one[name]) for one in wanted])
            if value.shape != want.shape:
                remedy = f"return {n} of them, task-major"
                yield Finding(f"{name} has shape {value.shape}, not {want.shape}", f"{where}, step {t}", remedy)
                return
            close = np.isclose(value.astype(np.float64), want.astype(np.float64), _TOLERANCE, _TOLERANCE / 10)
            wrong = np.flatnonzero(~close.reshape(n, -1).all(1))
            if len(wrong):
                i = int(wrong[0])
                over = t > len(episodes[i].rewards)
                problem = f"{name} of environment {i} is {_shorten(value[i])}, a single one has {_shorten(want[i])}"
                remedy = (
                    "an episode that ended stays ended: it repeats its last observation and earns nothing"
                    if over
                    else "compare its reset and step with make(task)'s, same seed and actions, at that step"
                )
                yield Finding(problem, f"{where}, step {t}", remedy)
                return


def _expected(episode: _Episode, t: int, horizon: int) -> dict[str, Any]:
    """What a vector environment should return at step `t`, given the `episode` of a single environment."""
    length = len(episode.rewards)
    return {
        "observation": episode.observations[min(t, length)],
        "reward": episode.rewards[t - 1] if 0 < t <= length else 0.0,
        "terminated": t >= length and bool(episode.flags[-1][0]),
        "ended": t >= length,
    }


def _batch(actions: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(action) for action in actions])


def raised(error: Exception) -> str:
    """An exception as the problem text of a finding."""
    return f"raises {type(error).__name__}: {error}{hint(error)}"


def _shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."
