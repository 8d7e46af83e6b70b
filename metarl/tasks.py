"""The protocol of a task family, and tasks as plain data.

A task is data: a dict of NumPy arrays. It can be printed, compared, stored in a checkpoint and passed to another
process. `Tasks` is the batched form, in which every value has a leading task axis K.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from metarl.arguments import whole
from metarl.source_files import Origin
from metarl.splits import SPLITS as SPLITS
from metarl.splits import split_rng as split_rng
from metarl.suggestions import did_you_mean

Task = dict[str, np.ndarray]
"""The parameters of one environment; each value has the shape of its entry in `task_space`."""

Tasks = dict[str, np.ndarray]
"""Many tasks; each value [K, ...]."""

GYMNASIUM, VISIBLE = "gym", "visible"
"""Prefixes of ids: `gym:Pendulum-v1` is a Gymnasium environment, `visible:ID` a family with its tasks visible."""


OWN_PACKAGES = ("metarl", "metarl_envs", "gymnasium")
"""Importing these runs no code that a header could choose."""


@runtime_checkable
class TaskFamily(Protocol):
    """A distribution over Gymnasium environments that differ in the entries of `task_space`.

    No base class is needed: any object with these members is a family. Optional members, used if present:

    - `make_vector(n_tasks, episodes, device) -> gymnasium.vector.VectorEnv`: runs many of its environments at once,
      faster than one by one (see `metarl.vector`).
    - `hidden_task` (default True): whether the first observation reveals nothing about the task.
    - `splits` (default `("train", "validation", "test")`): the names that `sample` accepts as `split`: `"train"`,
      `"test"` and any others, such as `"ood"`. A family that does not declare it is only asked for `"train"` and
      `"test"`; its validation tasks are further draws from its training split.
    - `shared_splits` (default False): the tasks are a finite set, and all splits draw from the same set. Otherwise
      `check_family` refuses a family whose splits have a task in common. (Validation tasks may be training tasks.)
    - `task_limits` (a Dict like `task_space`): the allowed range of parameters for tasks that a user specifies, which
      may exceed `task_space`. By default numbers may have any finite value.
    - `wrap(env)`: applies the wrappers of the family's own environments to a plain environment (see
      `MetaLearner.adapt`).
    - `draw(axes, task, observations)`: draws some episodes of one task on matplotlib axes. `observations` is a list
      with one float array [T_e, O] per episode, its valid steps only (see `metarl.report.figures`).
    """

    id: str
    """Name and version, like `PointNavigation-v0`."""
    horizon: int
    """Number of steps after which every episode is truncated."""
    observation_space: gym.Space
    action_space: gym.Space
    task_space: gym.spaces.Dict

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        """Draw `n` tasks of a split, `"train"`, `"test"` or another in `splits`: `{name: array [n, ...]}`."""
        ...

    def make(self, task: Task) -> gym.Env:
        """One environment of the family."""
        ...


def is_family(value: Any) -> bool:
    """Whether an object has the required members of a family."""
    return not isinstance(value, type) and not _missing(value)


def _missing(family: Any) -> list[str]:
    return [name for name in (*TaskFamily.__annotations__, "sample", "make") if not hasattr(family, name)]


def check_is_family(family: Any) -> None:
    """Raise ValueError if a required member is missing; `metarl.check_family` checks more thoroughly."""
    if isinstance(family, type):
        if issubclass(family, gym.Env):
            raise ValueError(f"{family.__name__} is a class of environments: metarl.from_gymnasium({family.__name__}, "
                             "{...}) makes a family of it")  # fmt: skip
        raise ValueError(f"{family.__name__} is a class: pass a family made of it, {family.__name__}()")
    if isinstance(family, str):
        raise ValueError(f"{family!r} is a string, not a task family: metarl.make({family!r}) makes one")
    if missing := _missing(family):
        hint = "metarl.from_gymnasium makes one of an environment" if isinstance(family, gym.Env) else (
            "pass a family's id or an object with these members, see metarl.TaskFamily"
        )  # fmt: skip
        raise ValueError(f"{family!r} is not a task family, it has no {', '.join(missing)}: {hint}")
    whole(f"the horizon of {family.id}", family.horizon, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks as data


def num_tasks(tasks: Tasks) -> int:
    """K. Raises ValueError if the entries disagree about it, or there are none."""
    if not isinstance(tasks, Mapping):
        raise ValueError(f"tasks are a dict of arrays with a leading axis K, got {tasks!r}; metarl.tasks.stack_tasks "
                         "makes them from single ones")  # fmt: skip
    lengths = {name: len(value) for name, value in tasks.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"all entries of tasks need the same leading length K, got {lengths or 'no entry at all'}")
    return next(iter(lengths.values()))


def task_at(tasks: Tasks, index: int) -> Task:
    """The one task at `index`."""
    return {name: value[index] for name, value in tasks.items()}


def stack_tasks(tasks: Sequence[Task]) -> Tasks:
    """Many single tasks -> their batched form."""
    return {name: np.stack([np.asarray(task[name]) for task in tasks]) for name in tasks[0]}


def validate_task(family: TaskFamily, task: Mapping[str, Any], outside: bool = False) -> Task:
    """`task` as arrays of the family's types.

    Args:
        outside: also accept finite numbers outside the bounds in `task_space` (the range that tasks are drawn from), as
            long as they lie within the family's `task_limits`, if it has any. Choices must always be valid.

    Raises:
        ValueError: naming the entry, its value and what is allowed.
    """
    spaces = family.task_space.spaces
    if not isinstance(task, Mapping):
        if isinstance(task, type) and issubclass(task, gym.Env):
            raise ValueError(f"{task.__name__} is a class: pass an environment made of it, {task.__name__}(...), or a "
                             f"task of {family.id}")  # fmt: skip
        if isinstance(task, gym.vector.VectorEnv):
            raise ValueError(f"{task!r} is a vector environment: pass a single one, or a task of {family.id}")
        if isinstance(task, str) and task in gym.registry:
            raise ValueError(f"{task!r} is an id: pass the environment, gymnasium.make({task!r}), or a task of "
                             f"{family.id}")  # fmt: skip
        if callable(getattr(task, "step", None)):
            raise ValueError(f"{task!r} is neither a task of {family.id} nor a gymnasium.Env: write a class that "
                             "inherits from gymnasium.Env around it")  # fmt: skip
        raise ValueError(f"a task of {family.id} is a dict with the keys {list(spaces)}, like "
                         f"{{{next(iter(spaces), '')!r}: ...}}, got {task!r}")  # fmt: skip
    for name in task:
        if name not in spaces:
            raise ValueError(f"{family.id} has no task parameter {name!r}{did_you_mean(name, spaces)}")
    missing = [name for name in spaces if name not in task]
    if missing:
        raise ValueError(f"a task of {family.id} also needs {missing}: it has the parameters {list(spaces)}")
    out = {}
    for name, space in spaces.items():
        value = np.asarray(task[name])
        shown = repr(value.tolist() if isinstance(task[name], np.ndarray) else task[name])
        if value.shape != space.shape:
            raise ValueError(f"task parameter {name!r} of {family.id} has shape {space.shape}, got {shown}")
        if not np.can_cast(value.dtype, space.dtype or value.dtype, "same_kind"):
            raise ValueError(f"task parameter {name!r} of {family.id} is {space.dtype}, got {shown}")
        value = value.astype(space.dtype)
        space = _limits(family, name, space) if outside else space
        if outside and not np.isfinite(value).all():
            raise ValueError(f"task parameter {name!r} of {family.id} must be finite, got {shown}")
        if not space.contains(value if value.shape or not isinstance(space, gym.spaces.Discrete) else int(value)):
            raise ValueError(f"task parameter {name!r} of {family.id} lies in {space}, got {shown}")
        out[name] = value
    return out


def _limits(family: TaskFamily, name: str, space: gym.Space) -> gym.Space:
    """The space of all values that a parameter may have, in training or not."""
    limits = getattr(family, "task_limits", None)
    if limits is not None:
        return limits[name]
    if isinstance(space, gym.spaces.Box) and space.dtype is not None and np.issubdtype(space.dtype, np.floating):
        return gym.spaces.Box(-np.inf, np.inf, space.shape, space.dtype.type)
    if isinstance(space, gym.spaces.Box) and space.dtype is not None:
        ends = np.iinfo(space.dtype)
        return gym.spaces.Box(ends.min, ends.max, space.shape, space.dtype.type)
    return space


def requested_task(family: TaskFamily, task: Mapping[str, Any], stacklevel: int = 3) -> Task:
    """A task specified by a user: `validate_task`, plus a UserWarning if it lies outside `task_space`."""
    found = validate_task(family, task, outside=True)
    for name, space in family.task_space.spaces.items():
        if isinstance(space, gym.spaces.Box) and not space.contains(found[name]):
            warnings.warn(
                f"task parameter {name!r} = {found[name].tolist()} lies outside {space}, the range of {family.id}: "
                "policies trained on it have not seen such tasks",
                UserWarning,
                stacklevel=stacklevel,
            )
    return found


def parse_task(family: TaskFamily, text: str | Iterable[str]) -> Task:
    """`"goal=0.3,-0.2"` (several parameters as several strings, or joined by `;`) -> task, which may lie outside
    `task_space` (see `validate_task`).

    Raises:
        ValueError: a word without `=`, a value that is no number, or whatever `validate_task` finds.
    """
    words = text.split(";") if isinstance(text, str) else [w for part in text for w in part.split(";")]
    task: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.strip().partition("=")
        if not equals:
            raise ValueError(f"a task is written like goal=0.3,-0.2, got {word!r}")
        space = family.task_space.spaces.get(name)
        try:
            numbers = np.array([float(x) for x in value.split(",")])
        except ValueError:
            raise ValueError(f"task parameter {name!r} takes numbers separated by commas, got {value!r}") from None
        whole = space is not None and space.dtype is not None and np.issubdtype(space.dtype, np.integer)
        if whole and (numbers == np.round(numbers)).all():  # 2.7 stays 2.7, for validate_task to refuse
            numbers = numbers.astype(np.int64)
        if space is not None and numbers.size == int(np.prod(space.shape or ())):
            numbers = numbers.reshape(space.shape or ())
        task[name] = numbers
    return validate_task(family, task, outside=True)


# ---------------------------------------------------------------------------------------------------------------------
# The registry


@dataclasses.dataclass(frozen=True)
class FamilySpec:
    """How `make` built a family: enough to build it again. Found as `family.spec`."""

    id: str
    kwargs: dict[str, Any]
    origin: Origin | None = None
    """The file of the user's own that it was made from, if its id is `PATH.py:NAME`."""
