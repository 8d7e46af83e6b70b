"""Families by name: built-in, registered, from entry points, from Gymnasium environments, and from users' files."""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym

from metarl.families import files
from metarl.source_files import Origin
from metarl.splits import SPLITS, splits_of
from metarl.suggestions import ALGORITHMS, did_you_mean
from metarl.tasks import GYMNASIUM, VISIBLE, FamilySpec, TaskFamily, check_is_family, is_family

ENTRY_POINT_GROUP = "metarl.families"

_registry: dict[str, Callable[..., TaskFamily]] = {}


def register(id: str, factory: Callable[..., TaskFamily]) -> None:
    """Register `factory` as `id`, so that `metarl.make(id, **kwargs)` calls it.

    A package registers its families without being imported through entry points of the group `metarl.families`.

    Raises:
        ValueError: another factory is already registered under this id, the id is not a valid name, or the factory
            cannot be called.
    """
    if not isinstance(id, str):
        raise ValueError(f"a family's id is a word like 'PointNavigation-v0', got {id!r}")
    if not callable(factory):
        raise ValueError(f"the factory of {id!r} must be a function or a class that makes the family, got {factory!r}; "
                         f"a family that is made already is registered with lambda: family")  # fmt: skip
    if _registry.get(id, factory) is not factory:
        raise ValueError(f"a family {id!r} is registered already; give this one another name or version")
    _registry[id] = factory


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def is_registered(id: str) -> bool:
    """Whether `register` was called with this id in this process."""
    return id in _registry


def entry_point_module(id: str) -> str | None:
    """The module that the family `id` of an installed package would be imported from, None if no package has it."""
    point = _entry_points().get(id)
    return None if point is None else point.module


def registered() -> dict[str, str]:
    """One line about every known family, by id."""
    out = {}
    for id in sorted({*_registry, *_entry_points()}):
        try:
            doc = (_factory(id).__doc__ or "").strip()
        except Exception as error:  # whatever a plug-in does wrong, the others are still listed
            doc = f"cannot be imported: {type(error).__name__}: {error}"
        out[id] = doc.splitlines()[0] if doc else ""
    return out


def further_splits(id: str) -> tuple[str, ...]:
    """The splits of a known family in addition to the standard ones, as far as its class declares them. For a function
    that creates families they are not known before it is called."""
    try:
        factory = _factory(id)
        return tuple(split for split in splits_of(factory) if split not in SPLITS) if inspect.isclass(factory) else ()
    except Exception:  # `registered` says what is wrong with a plug-in, `check_family` what with a family
        return ()


def _factory(id: str) -> Callable[..., TaskFamily]:
    if id in _registry:
        return _registry[id]
    points = _entry_points()
    if id not in points:
        raise ValueError(f"no task family is called {id!r}{_family_hint(id, sorted({*_registry, *points}))}")
    return points[id].load()


def _family_hint(id: str, known: Iterable[str]) -> str:
    """Suggestions for an unknown family's id, and where to look."""
    if id.lower().replace("-", "_") in ALGORITHMS:
        return f"; it is an algorithm, and the family comes after it: {id} PointNavigation-v0"
    if (hint := files.hint(id)) is not None:
        return hint
    hint = did_you_mean(id, known)
    where = f"{hint}{' ' if hint.endswith('?') else '. '}`metarl list` shows all of them"
    if id in gym.registry or "/" in id:
        return (f"{where}; a Gymnasium environment is a family as 'gym:{id}' with the parameters that vary, in Python "
                f"metarl.from_gymnasium({id!r}, {{...}})")  # fmt: skip
    return where


def _gymnasium_factory(env_id: str) -> Callable[..., TaskFamily]:
    from metarl.families.gymnasium import from_gymnasium  # here: it imports torch, which `metarl list` can do without

    return functools.partial(from_gymnasium, env_id)


def make(id: str = "", /, **kwargs: Any) -> TaskFamily:
    """Create the family registered as `id`.

    `gym:ID` is the family of a Gymnasium environment, with the arguments of `metarl.from_gymnasium` as `kwargs`;
    `visible:ID` is the family `ID` with its tasks visible (see `metarl.visible`); `path/to/file.py:NAME` is a family
    defined in a Python file, or created by a function or class there.

    Raises:
        ValueError: no family has this id (the message suggests the most similar one), or it refuses `kwargs`.
        OSError: there is no such Python file.
        ImportError: importing it fails, or it does not have that name.
    """
    id = id or kwargs.pop("id", "")  # after another id, `id=` is an argument: the name that a family is given
    if not isinstance(id, str):
        raise ValueError(f"a family's id is a word like 'PointNavigation-v0', got {id!r}")
    if (reference := files.reference_in(id)) is not None:
        return make_from_file(files.named(reference), id, kwargs)
    prefix, _, rest = id.partition(":")
    if prefix == VISIBLE and rest:
        from metarl.families.visible import visible  # here for the same reason

        return visible(make(rest, **kwargs))
    gymnasium = prefix == GYMNASIUM and bool(rest)
    family = _called(id, _gymnasium_factory(rest) if gymnasium else _factory(id), kwargs)
    if gymnasium:  # writes its own specification
        return family
    object.__setattr__(family, "spec", FamilySpec(id, kwargs))
    return family


def _called(id: str, factory: Callable[..., TaskFamily], kwargs: dict[str, Any]) -> TaskFamily:
    _check_arguments(id, factory, kwargs)
    try:
        return factory(**kwargs)
    except TypeError as error:
        raise ValueError(f"{id} cannot be made with {kwargs}: {error}") from error


def _check_arguments(id: str, factory: Callable[..., TaskFamily], kwargs: dict[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    if not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                hint = did_you_mean(name, parameters)
                raise ValueError(f"{id} cannot be made with {kwargs}: it has no argument {name!r}{hint}")


def make_from_file(origin: Origin, id: str, kwargs: dict[str, Any]) -> TaskFamily:
    """The family in a user's file. `id` refers to it, possibly with prefixes or with another path.

    Raises as `make`.
    """
    prefix, _, rest = id.partition(":")
    if prefix == VISIBLE:
        from metarl.families.visible import visible

        return visible(make_from_file(origin, rest, kwargs))
    value, shown = files.load(origin), files.shown(id)
    family = _value_called(value, shown, kwargs, origin)
    try:
        check_is_family(family)
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None
    try:
        object.__setattr__(family, "spec", FamilySpec(shown, kwargs, origin))
    except AttributeError:
        raise ValueError(f"{shown}: {type(family).__name__} needs room for an attribute `spec`, which says how it was "
                         "made: add it to __slots__, or remove those") from None  # fmt: skip
    return family


def _value_called(value: Any, shown: str, kwargs: dict[str, Any], origin: Origin) -> Any:
    """The family created by a function or class in a file, or the object defined there."""
    if not callable(value) or is_family(value):
        if kwargs:
            raise ValueError(f"{shown} is an object, no function or class, and takes no arguments, got {kwargs}")
        return value
    if isinstance(value, type) and issubclass(value, gym.Env):
        return value  # the error about it says what makes a family of it
    _check_arguments(shown, value, kwargs)
    try:
        return value(**kwargs)
    except Exception as error:  # of the user's code
        raise ValueError(f"{shown} cannot be made with {kwargs}: {files.described(error, origin)}") from error
