"""Any Gymnasium environment as a task family, with a choice of which parameters vary and how they are drawn.

from gymnasium.spaces import Box
from metarl import from_gymnasium

family = from_gymnasium("Pendulum-v1", {"g": Box(5.0, 15.0)})
print(family)
"""

import copy
import importlib
import json
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.spaces import Dict, Tuple
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import FlattenObservation, TimeLimit

from metarl.arguments import listed, whole, yes_or_no
from metarl.families import find_parameters
from metarl.families.find_parameters import ATTRIBUTE, CONFIGURE, KEYWORD, OPTION, PLACES
from metarl.families.priors import Choices, Prior, in_common, prior, together
from metarl.families.task_values import as_before, own_copy, same_value
from metarl.families.visible import visible as make_visible
from metarl.policies.spaces import spaces_of
from metarl.splits import SPLITS, TEST, TRAIN, VALIDATION, check_split, split_rng
from metarl.tasks import OWN_PACKAGES, FamilySpec, Task, TaskFamily, Tasks, did_you_mean, validate_task

Parameters = Mapping[str, Any]
Wrapper = Callable[[gym.Env], gym.Env]

SEEDS = 2**31
"""Environments get seeds below this, whatever the episode's seed: old generators refuse larger ones."""


def from_gymnasium(
    env: str | Callable[..., gym.Env],
    parameters: Parameters | None = None,
    *,
    horizon: int | None = None,
    splits: Mapping[str, Parameters] | None = None,
    where: Mapping[str, str] | None = None,
    configure: Callable[[gym.Env, dict[str, Any]], Any] | None = None,
    wrappers: Sequence[Wrapper] = (),
    make_kwargs: Mapping[str, Any] | None = None,
    id: str | None = None,
    fresh: bool = False,
    hidden_task: bool = True,
    visible: bool = False,
) -> TaskFamily:
    """The task family of a Gymnasium environment and a distribution over some of its parameters.

    A parameter is a keyword of the constructor, an option of `reset`, or an attribute of the unwrapped environment,
    searched for in this order. Its values are drawn uniformly from a bounded Box (`Box(5.0, 15.0)` also gives a single
    number), Discrete, MultiDiscrete or MultiBinary space, from a frozen `scipy.stats` distribution, from a list of
    values, or by a function, given as `(function of (rng, n), space)`. Parameters are drawn independently. With a list
    of numbers a task contains the number; with a list of anything else it contains the index.

    An attribute is set after the constructor and again before every reset. Values that the constructor computed from it
    are not updated (a UserWarning names them): set them in `configure`.

    Args:
        env: a registered id (`"Pendulum-v1"`, `"package:Name-v0"`), a class, or any callable that creates environments.
        parameters: name -> distribution.
        horizon: number of steps after which every episode is truncated; by default the id's `max_episode_steps`.
        splits: `{"test": {...}, "ood": {...}}`, distributions that replace those in `parameters` in that split.
            `"train"`, `"validation"` and `"test"` always exist, with separate draws; any other name defines an
            additional split to evaluate on. A split without its own distribution of a parameter uses that of
            `parameters` (the validation split that of training). Boxes of additional splits do not widen `task_space`.
        where: name -> `"keyword"`, `"option"`, `"attribute"` or `"configure"` (set by `configure`), which replaces the
            search.
        configure: called once with every new unwrapped environment and its task's values, before the first reset.
        wrappers: applied to every environment, the first one innermost. Dict and Tuple observations are flattened
            after them.
        make_kwargs: fixed keyword arguments of the constructor.
        id: the family's name; by default `"gym:"` and the environment's name.
        fresh: build a new environment for every reset except the first, for environments whose reset keeps some state
            of the previous episode (as Box2D's BipedalWalker does; `check_family` detects it).
        hidden_task: set this to False if the first observation may identify the task.
        visible: append the task to the observation, see `metarl.visible`.

    Raises:
        ValueError: the environment cannot be created or lacks a parameter, a distribution is invalid, there is no
            horizon, or policies do not support the spaces.
    """
    visible = yes_or_no("visible", visible)
    dicts = {"parameters": parameters, "splits": splits, "where": where, "make_kwargs": make_kwargs}
    for name, value in dicts.items():
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a dict, got {value!r}")
    if id is not None and (not isinstance(id, str) or not id):
        raise ValueError(f"id is the family's name, like 'HeavyPendulum-v0', got {id!r}")
    if not isinstance(env, str) and (isinstance(env, gym.Env | VectorEnv) or not callable(env)):
        raise ValueError(f"env is {env!r}, and a family makes many environments, one for each task and episode: pass "
                         f"{_instead_of(env)}")  # fmt: skip
    for name, functions in (("wrappers", listed("wrappers", wrappers, "functions")), ("configure", [configure])):
        for function in functions:
            if function is not None and not callable(function):
                raise ValueError(f"{name}: {function!r} is no function of an environment")
    family = GymnasiumFamily(Definition(
        env, parameters or {}, horizon, splits or {}, where or {}, configure, tuple(wrappers), make_kwargs or {}, id,
        yes_or_no("fresh", fresh), yes_or_no("hidden_task", hidden_task),
    ))  # fmt: skip
    return make_visible(family) if visible else family


@dataclass(frozen=True)
class Definition:
    """The definition of a `GymnasiumFamily`: the arguments of `from_gymnasium`, documented there."""

    env: str | Callable[..., gym.Env]
    parameters: Parameters = field(default_factory=dict)
    horizon: int | None = None
    splits: Mapping[str, Parameters] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    configure: Callable[[gym.Env, dict[str, Any]], Any] | None = None
    wrappers: tuple[Wrapper, ...] = ()
    make_kwargs: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    fresh: bool = False
    hidden_task: bool = True


class GymnasiumFamily:
    """The family that `from_gymnasium` returns, which documents its arguments.

    Families with equal arguments are equal. A family can be pickled if its arguments can. If they can also be written
    as JSON (a registered id, no wrappers, no functions), learners saved with it can be loaded without passing the
    family.
    """

    def __init__(self, definition: Definition):
        env, self.configure, self.wrappers = definition.env, definition.configure, definition.wrappers
        self.env = env
        self.make_kwargs = dict(definition.make_kwargs)
        self.fresh, self.hidden_task = definition.fresh, definition.hidden_task
        self._env_id = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
        self.id = definition.id or f"gym:{self._env_id}"
        self._registered = registered = _registered(env) if isinstance(env, str) else None
        self.horizon = self._checked_horizon(definition.horizon, registered)
        self.splits: tuple[str, ...] = tuple(dict.fromkeys((*SPLITS, *definition.splits)))
        self.priors, spaces = _priors(definition.parameters, definition.splits, self.splits)
        self.task_space = Dict(spaces)
        self.shared_splits = any(
            all(in_common(priors[i], priors[j]) for priors in self.priors.values())
            for (i, one), (j, other) in combinations(enumerate(self.splits), 2)
            if (one, other) != (TRAIN, VALIDATION)
        )
        creator: Any = env if registered is None else _creator(registered)
        self.where = self._find(creator, dict(definition.where))
        self._probe()
        spaces_of(self)
        self.spec = self._spec(definition)

    def sample(self, n: int, rng: np.random.Generator, split: str = "train") -> Tasks:
        """Draw `n` tasks. A parameter's values do not depend on which other parameters there are."""
        n = whole("n", n, 0)
        check_split(self, split)
        base = int(split_rng(rng, split, self.splits).integers(2**63))
        out = {}
        for name, priors in self.priors.items():
            own = np.random.default_rng([base, zlib.crc32(name.encode())])
            out[name] = priors[self.splits.index(split)].sample(own, n)
        return out

    def make(self, task: Task, render_mode: str | None = None) -> gym.Env:
        """The environment of one task, with all wrappers, truncated after `horizon` steps."""
        values = self._values(validate_task(self, task, outside=True))
        options = {name: x for name, x in values.items() if self.where[name] == OPTION}

        def build() -> gym.Env:
            return self._built(values, render_mode)

        env = build()
        for what in ("observation_space", "action_space"):
            own, found = getattr(self, what, None), getattr(env, what)
            if own is not None and own != found:
                raise ValueError(
                    f"the {what} of {self.id} depends on the task: it is {own}, but {found} for {values}. Leave that "
                    "parameter out, or give all the same space in a wrapper"
                )
        return TaskEnv(env, self._attributes(env, values), options, build if self.fresh else None)

    def _built(self, values: dict[str, Any], render_mode: str | None) -> gym.Env:
        keywords = {name: own_copy(x) for name, x in values.items() if self.where[name] == KEYWORD}
        env = self._with_wrappers(TimeLimit(self._plain(keywords, render_mode), self.horizon))
        for name, value in self._attributes(env, values).items():
            setattr(env.unwrapped, name, own_copy(value))
        if self.configure is not None:
            self.configure(env.unwrapped, own_copy(values))
        return env

    def _attributes(self, env: gym.Env, values: dict[str, Any]) -> dict[str, Any]:
        own = (name for name in values if self.where[name] == ATTRIBUTE)
        return {name: as_before(env.unwrapped, name, values[name]) for name in own}

    def wrap(self, env: gym.Env) -> gym.Env:
        """A plain environment, as returned by `gymnasium.make`, with this family's wrappers applied."""
        return env if _is_wrapped(env) else TaskEnv(self._with_wrappers(env))

    def _with_wrappers(self, env: gym.Env) -> gym.Env:
        for wrapper in self.wrappers:
            env = wrapper(env)
            if not isinstance(env, gym.Env):
                raise ValueError(f"wrappers: {wrapper!r} returned {_kind(env)}, not a gymnasium.Env")
        if isinstance(env.observation_space, Dict | Tuple):
            if not env.observation_space.spaces:
                raise ValueError(f"{self.id} has the observation space {env.observation_space}, which holds no number, "
                                 "and a policy needs one: observe a constant if need be, in wrappers")  # fmt: skip
            if not _can_be_flattened(env.observation_space):
                raise ValueError(
                    f"{self.id} has the observation space {env.observation_space}, which cannot be flattened; take a "
                    "part of it in wrappers, as gymnasium.wrappers.FilterObservation does"
                )
            env = FlattenObservation(env)
        return env

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GymnasiumFamily) and self._definition() == other._definition()

    def __hash__(self) -> int:
        return hash((self.id, self.horizon, tuple(self.priors)))

    def __repr__(self) -> str:
        words = []
        for name, priors in self.priors.items():
            first, rest = priors[0], list(zip(self.splits, priors, strict=True))[1:]
            others = [f"{other} in {split!r}" for split, other in rest if other != first]
            drawn = ", ".join([str(first), *others])
            words.append(f"{name!r} ({PLACES[self.where[name]]}): {drawn}")
        return f"{self.id}, horizon {self.horizon}, {'; '.join(words)}"

    # -----------------------------------------------------------------------------------------------------------------

    def _definition(self) -> tuple[Any, ...]:
        return (self.id, self.env, self.horizon, self.splits, self.priors, self.where, self.configure, self.wrappers,
                self.make_kwargs, self.fresh, self.hidden_task)  # fmt: skip

    def _checked_horizon(self, horizon: int | None, registered: EnvSpec | None) -> int:
        if "max_episode_steps" in self.make_kwargs:
            raise ValueError("give the time limit as horizon=, not as max_episode_steps in make_kwargs")
        if horizon is None:
            horizon = None if registered is None else registered.max_episode_steps
        if horizon is None:
            raise ValueError(f"{self._env_id} has no max_episode_steps of its own: say horizon=")
        return whole("horizon", horizon, 1)

    def _find(self, creator: Callable[..., Any], given: dict[str, str]) -> dict[str, str]:
        """Where each parameter is set: name -> one of `PLACES`. Raises ValueError for one that cannot be set."""
        for name, place in given.items():
            if name not in self.priors:
                raise ValueError(f"where names {name!r}, which is no parameter{did_you_mean(name, self.priors)}")
            if place not in PLACES:
                raise ValueError(f"where[{name!r}] is one of {list(PLACES)}, got {place!r}")
            if place == CONFIGURE and self.configure is None:
                raise ValueError(f"{name!r} is left to configure, but there is no configure=")
        keywords = find_parameters.keywords(creator)
        twice = [name for name in self.priors if name in self.make_kwargs]
        if twice:
            raise ValueError(f"{twice} are both parameters and in make_kwargs")
        found = {name: KEYWORD for name in self.priors if name in keywords} | given
        self.where = {name: found.get(name, CONFIGURE) for name in self.priors}
        if all(place in (KEYWORD, CONFIGURE) for place in found.values()) and len(found) == len(self.priors):
            return self.where
        env = self._plain({n: x for n, x in self._values(self._example_task()).items() if self.where[n] == KEYWORD})
        options, attributes = find_parameters.options(env), find_parameters.attributes(env)
        for name in self.priors:
            if name not in found and name not in options and name not in attributes:
                hint = did_you_mean(name, [*keywords, *options, *attributes])
                raise ValueError(
                    f"{self._env_id} has no parameter {name!r}{hint if '?' in hint else '.'} Keywords of its "
                    f"constructor: {keywords}; options of reset: {options}; attributes: {attributes}. One that was not "
                    'found can be named in where=, one that none of these is in where={...: "configure"}'
                )
            found.setdefault(name, OPTION if name in options else ATTRIBUTE)
            if found[name] == ATTRIBUTE:
                self._check_attribute(env, name)
        env.close()
        return {name: found[name] for name in self.priors}

    def _check_attribute(self, env: gym.Env, name: str) -> None:
        if not hasattr(env.unwrapped, name):
            known = find_parameters.attributes(env)
            raise ValueError(f"{self._env_id} has no attribute {name!r}{did_you_mean(name, known)}")
        value = as_before(env.unwrapped, name, self._values(self._example_task())[name])
        setattr(env.unwrapped, name, value)
        env.reset(seed=0)
        if not same_value(getattr(env.unwrapped, name), value):
            raise ValueError(
                f"reset of {self._env_id} replaces the attribute {name!r}, so a task cannot set it; vary what reset "
                "computes it from"
            )
        follow = find_parameters.derived(env, name)
        if follow and self.configure is None:
            warnings.warn(
                f"{self._env_id} computes {follow} from {name!r} in its constructor: they keep their old values in "
                "every task. Set them in configure=",
                UserWarning,
                stacklevel=5,
            )

    def _probe(self) -> None:
        """The spaces of a first environment, compared here with those of every choice; `make` compares the others."""
        task = self._example_task()
        env = self.make(task)
        env.close()
        self.observation_space, self.action_space = env.observation_space, env.action_space
        for name, (first, *_) in self.priors.items():
            if isinstance(first, Choices):
                for index in range(len(first.among)):
                    self.make(task | {name: np.asarray(index)}).close()

    def _example_task(self) -> Task:
        return {name: priors[0].sample(np.random.default_rng(0), 1)[0] for name, priors in self.priors.items()}

    def _values(self, task: Task) -> dict[str, Any]:
        """The values passed to the environment: Python numbers, arrays, or the chosen object."""
        out: dict[str, Any] = {}
        for name, value in task.items():
            first = self.priors[name][0]
            if isinstance(first, Choices):
                out[name] = own_copy(first.among[int(value)])
            else:
                out[name] = value.copy() if np.ndim(value) else np.asarray(value).item()
        return out

    def _plain(self, keywords: dict[str, Any], render_mode: str | None = None) -> gym.Env:
        """The environment without this package's wrappers."""
        arguments = {**self.make_kwargs, **keywords, **({} if render_mode is None else {"render_mode": render_mode})}
        try:
            if self._registered is None:
                env = self.env(**arguments)  # type: ignore[operator]  # no id
            else:
                # By its entry, not by its id: a worker process need not have it registered.
                more = {"disable_env_checker": True, **arguments}
                env = gym.make(copy.deepcopy(self._registered), max_episode_steps=-1, **more)
        except Exception as error:
            raise ValueError(f"{self._env_id} cannot be made with {arguments}: {error}") from error
        if not isinstance(env, gym.Env):
            raise ValueError(f"{self._env_id} makes {_kind(env)}, which is no gymnasium.Env: {_adapter_for(env)}")
        return env

    def _spec(self, definition: Definition) -> FamilySpec | None:
        """How `metarl.make` recreates this family; None if it cannot be expressed in JSON."""
        if not isinstance(self.env, str) or self.wrappers or self.configure is not None:
            return None

        def written(values: Parameters) -> dict[str, Any]:
            return {name: prior(name, value).to_json() for name, value in values.items()}

        kwargs: dict[str, Any] = {"parameters": written(definition.parameters)}
        if definition.splits:
            kwargs["splits"] = {split: written(values) for split, values in definition.splits.items()}
        optional = {"horizon": definition.horizon, "where": dict(definition.where), "make_kwargs": self.make_kwargs,
                    "id": definition.id}  # fmt: skip
        kwargs |= {name: value for name, value in optional.items() if value}
        kwargs |= ({"fresh": True} if self.fresh else {}) | ({} if self.hidden_task else {"hidden_task": False})
        distributions = [
            *kwargs["parameters"].values(),
            *(x for v in kwargs.get("splits", {}).values() for x in v.values()),
        ]
        try:
            same = json.loads(json.dumps(kwargs)) == kwargs
        except (TypeError, ValueError):
            same = False
        if not same or None in distributions:
            return None
        env_id = _with_package(self.env, self._registered)
        return FamilySpec(f"gym:{env_id}", kwargs if env_id == self.env else {"id": self.id} | kwargs)


class TaskEnv(gym.Wrapper):
    """An environment that keeps its task's attributes and options across resets, outside all wrappers.

    If `rebuild` is given, every reset except the first uses it to create the same environment anew.
    """

    def __init__(
        self,
        env: gym.Env,
        attributes: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        rebuild: Callable[[], gym.Env] | None = None,
    ):
        super().__init__(env)
        self._attributes, self._options = dict(attributes or {}), dict(options or {})
        self._rebuild, self._used = rebuild, False

    @property
    def spec(self) -> None:  # type: ignore[override]  # nobody sets it
        """None: Gymnasium's would make an environment without the task's attributes."""
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self._rebuild is not None and self._used:
            seed = int(self.unwrapped.np_random.integers(SEEDS)) if seed is None else seed  # as if it went on
            self.env.close()
            self.env = self._rebuild()
        self._used = True
        for name, value in self._attributes.items():
            setattr(self.unwrapped, name, own_copy(value))
        options = {**own_copy(self._options), **(options or {})} if self._options else options
        return self.env.reset(seed=None if seed is None else seed % SEEDS, options=options)


def _is_wrapped(env: gym.Env) -> bool:
    while not isinstance(env, TaskEnv) and isinstance(env, gym.Wrapper):
        env = env.env
    return isinstance(env, TaskEnv)


def _can_be_flattened(space: gym.Space) -> bool:
    try:
        return bool(space.is_np_flattenable)
    except NotImplementedError:  # a package's own kind of space
        return False


def _instead_of(env: Any) -> str:
    """What to pass instead of an environment object or of something else."""
    spec = getattr(env, "spec", None)
    plain = getattr(env, "unwrapped", env)
    if isinstance(env, VectorEnv):
        return "the id, the class or a function that makes the single environment (metarl runs many by itself)"
    if isinstance(env, EnvSpec):
        return f"its id, {env.id!r}"
    if isinstance(env, gym.Env):
        known = "" if spec is None else f"its id, {spec.id!r}, "
        return f"{known}its class, {type(plain).__name__}, or a function that makes one"
    return "an id, a class or a function that makes environments"


def _kind(made: Any) -> str:
    return "None" if made is None else f"a {type(made).__module__}.{type(made).__qualname__}"


def _adapter_for(made: Any) -> str:
    """How to turn the created object into a single Gymnasium environment."""
    if isinstance(made, VectorEnv):
        return "give the single environment, metarl runs many of them by itself"
    if hasattr(made, "possible_agents") or hasattr(made, "agents"):
        return "show it as one agent's environment, in a gymnasium.Env of your own or with SuperSuit"
    if type(made).__module__.split(".")[0] == "gym" or hasattr(made, "seed"):
        return "it is of the old gym: shimmy.GymV26CompatibilityV0(env=...) makes a Gymnasium environment of it"
    if hasattr(made, "observation_spec"):
        return "it is a dm_env: shimmy.DmControlCompatibilityV0(...) makes a Gymnasium environment of it"
    return "write a class that inherits from gymnasium.Env around it"


def _registered(env_id: str) -> EnvSpec:
    """Gymnasium's entry of an id; `package:Name-v0` imports the package first, as `gymnasium.make` does."""
    package, colon, name = env_id.rpartition(":")
    try:
        if colon:
            importlib.import_module(package)
        return gym.spec(name)
    except ImportError as error:
        raise ValueError(f"{env_id} needs the package {package!r}: {error}") from None
    except gym.error.Error as error:
        remedy = (
            f'import the package that registers it first, or name both, "package:{env_id}"'
            if not colon
            else f"{package} is imported and does not register it"
        )
        raise ValueError(f"{env_id} is no registered Gymnasium environment: {error} {remedy} (on the command line "
                         f"gym:package:{name}; package stands for the module's name)") from None  # fmt: skip


def _with_package(env_id: str, registered: EnvSpec | None) -> str:
    """`env_id` prefixed by the third-party package of its entry point, so that another process can find it."""
    entry = None if registered is None else registered.entry_point
    module = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")
    package = module.partition(".")[0]
    imported = getattr(sys.modules.get(package), "__file__", None) is not None
    if ":" in env_id or package == "__main__" or package in OWN_PACKAGES or not imported:
        return env_id
    return f"{package}:{env_id}"


def _creator(registered: EnvSpec) -> Callable[..., Any]:
    entry = registered.entry_point
    try:
        return load_env_creator(entry) if isinstance(entry, str) else entry  # type: ignore[return-value]  # never None
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ValueError(f"{registered.id} cannot be made: {error}") from None


def _priors(
    parameters: Parameters, splits: Mapping[str, Parameters], names_of_splits: Sequence[str]
) -> tuple[dict[str, list[Prior]], dict[str, gym.Space]]:
    """For every parameter, sorted by name: its prior in each split, and the space of its values in the standard
    splits."""
    for split, values in splits.items():
        if not isinstance(split, str) or not split.isidentifier():
            raise ValueError(f"the keys of splits are names like 'test' or 'ood', got {split!r}")
        usual = next((name for name in SPLITS if name.startswith(split.lower())), None)
        if usual is not None and split != usual:  # a split of its own would silently stand beside it
            raise ValueError(f"splits has the key {split!r}: call that split {usual!r}, or give it another name")
        if not isinstance(values, Mapping):
            raise ValueError(f"splits[{split!r}] must be a dict of distributions, got {values!r}")
    trained = {**parameters, **splits.get(TRAIN, {})}
    given = [{**(parameters if split == TEST else trained), **splits.get(split, {})} for split in names_of_splits]
    names = sorted({name for values in given for name in values})
    if not names:
        raise ValueError(
            'name at least one parameter that varies, as {"g": Box(5.0, 15.0)}; on the command line as '
            """--family-kwargs 'parameters={"g": {"box": [5, 15]}}'"""
        )
    priors: dict[str, list[Prior]] = {}
    spaces: dict[str, gym.Space] = {}
    for name in names:
        for split, values in zip(names_of_splits, given, strict=True):
            if name not in values:
                raise ValueError(f"parameter {name!r} has no distribution for the split {split!r}")
        found = [prior(name, values[name]) for values in given]
        priors[name], spaces[name] = together(name, found, len(SPLITS))
    return priors, spaces
