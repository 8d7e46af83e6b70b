"""The part of `metarl.families.check` that tests whether each task parameter has an effect.

Two tasks that differ in only one parameter, as far apart as the draws allow, are played with the same seeds and the
same actions: random ones, ones that are held for a while, and ones that are held for a whole episode. The first number
that differs shows an effect.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from metarl.policies.spaces import without_huge_bounds
from metarl.tasks import Task, TaskFamily, Tasks, task_at, validate_task
from metarl.vector.success import of_step

STEPS = 20_000
"""Maximum number of environment steps spent on a parameter without an effect."""
_SEQUENCES, _HELD = 24, 10  # action sequences; steps for which one of two keeps its action


@dataclasses.dataclass(frozen=True)
class Inert:
    """A parameter that had no effect in the episodes played."""

    name: str
    values: tuple[Any, Any]  # that were compared
    steps: int  # that were played with each
    rewards: int  # how many different rewards there were

    @property
    def certain(self) -> bool:
        """Whether rewards differed at all; if not, the parameter may matter in states that no action reached."""
        return self.rewards > 1


def inert_parameters(family: TaskFamily, tasks: Tasks, seed: int) -> Iterator[Inert]:
    """The parameters that affect no observation, reward, end or success. `tasks` are draws from all splits."""
    family = getattr(family, "family", family) if type(family).__name__ == "VisibleFamily" else family
    base = task_at(tasks, 0)
    for name in family.task_space.spaces:
        ends = _ends(np.asarray(tasks[name]))
        if ends is not None:
            found = _compare(family, [base | {name: value} for value in ends], name, seed)
            if found is not None:
                yield found


def _ends(values: np.ndarray) -> tuple[Any, Any] | None:
    """The two of `values` [n, ...] that are (nearly) farthest from each other; None if all are equal."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    first = int(((flat - flat.mean(0)) ** 2).sum(1).argmax())
    apart = ((flat - flat[first]) ** 2).sum(1)
    return None if not apart.any() else (values[first], values[int(apart.argmax())])


def _compare(family: TaskFamily, pair: list[Task], name: str, seed: int) -> Inert | None:
    try:
        envs = [family.make(validate_task(family, task)) for task in pair]
    except Exception:  # the other parameters do not go with it
        return None
    steps, rewards = 0, set[float]()
    try:
        for number, actions in enumerate(_actions(family, seed)):
            one, other = (_play(env, seed + number, actions) for env in envs)
            if not _equal(one, other):
                return None
            steps += len(one) - 1
            rewards |= {float(step[1]) for step in one[1:]}
            if steps >= STEPS:
                break
    except Exception:  # environments that raise are reported elsewhere
        return None
    finally:
        for env in envs:
            env.close()
    values = tuple(np.asarray(task[name]).tolist() for task in pair)
    return Inert(name, (values[0], values[1]), steps, len(rewards))


def _actions(family: TaskFamily, seed: int) -> Iterator[list[Any]]:
    """Action sequences for a whole episode: every extreme of a Box and every choice held constant, and random ones."""
    space = without_huge_bounds(family.action_space)
    space.seed(seed)
    yield [space.sample() for _ in range(family.horizon)]
    if isinstance(space, gym.spaces.Box) and space.is_bounded():
        yield from ([end] * family.horizon for end in (space.low, space.high))
    if isinstance(space, gym.spaces.Discrete):
        yield from ([space.start + i] * family.horizon for i in range(min(int(space.n), _SEQUENCES)))
    for number in range(_SEQUENCES):
        held = family.horizon if number % 2 else min(_HELD, family.horizon)
        one = [space.sample() for _ in range(-(-family.horizon // held))]
        yield [action for action in one for _ in range(held)][: family.horizon]


def _play(env: gym.Env, seed: int, actions: list[Any]) -> list[tuple[Any, ...]]:
    out: list[tuple[Any, ...]] = [(np.array(env.reset(seed=seed)[0]), 0.0)]
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        out.append((np.array(obs), float(reward), bool(terminated), bool(truncated), of_step(info)))
        if terminated or truncated:
            break
    return out


def _equal(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(one, other, strict=True)
    )
