"""What users pass, as plain Python values: whole numbers, numbers, yes or no. Anything else is refused by its name.

NumPy's numbers become Python's, which JSON can hold. A bool is no number and no number is a bool: what is meant by
`normalize_obs="no"` or `inner_lr=True` can only be guessed.
"""

import inspect
import math
import numbers
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np


def whole(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int; 3.0 is one too.

    Raises:
        ValueError: no whole number, or one below `least`.
    """
    if not _is_number(value) or not math.isfinite(value) or value != int(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(value)


def number(name: str, value: Any) -> float:
    """`value` as a float. Raises ValueError for what is none; NaN and infinities pass."""
    if not _is_number(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def yes_or_no(name: str, value: Any) -> bool:
    """`value` as a bool. Raises ValueError for what is none: no word, no number."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def listed(name: str, value: Any, of: str) -> list[Any]:
    """The entries of a list, a tuple or an array of one axis. Raises ValueError for one value; `of` says of what."""
    if not isinstance(value, list | tuple) and not (isinstance(value, np.ndarray) and value.ndim == 1):
        raise ValueError(f"{name} must be a list of {of}, got {value!r}")
    return list(value)


def positive_sizes(name: str, values: Any) -> tuple[float, ...]:
    """Step sizes as floats. Raises ValueError for no list, or one that holds anything but positive finite numbers."""
    sizes = tuple(number(f"every entry of {name}", size) for size in listed(name, values, "positive numbers"))
    if any(not 0 < size < math.inf for size in sizes):
        raise ValueError(f"{name} must be positive and finite, got {list(sizes)}")
    return sizes


def check_takes_one(name: str, function: Callable[..., Any], what: str) -> None:
    """Raise ValueError for a function that cannot be called with one argument, which is `what`."""
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise ValueError(f"{name} is called with one argument, {what}, which {function!r} cannot be: {error}") from None
    except ValueError:  # a function without a signature
        return


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def file_path(name: str, value: Any) -> Path:
    """`value` as a path. Raises ValueError for what is none: no word, no `pathlib.Path`."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError(f"{name} must be a path, as a word or a pathlib.Path, got {value!r}")
    return Path(value)


def new_file(name: str, value: Any) -> Path:
    """`value` as the path of a file to write. Raises ValueError for what is no path, or a directory."""
    path = file_path(name, value)
    if path.is_dir():
        raise ValueError(f"{name} must be a file, and {str(path)!r} is a directory: name a file in it")
    return path


_PLAIN: dict[Any, Callable[[str, Any], Any]] = {
    bool: yes_or_no,
    int: whole,
    float: number,
    int | None: lambda name, value: None if value is None else whole(name, value),
    float | None: lambda name, value: None if value is None else number(name, value),
    tuple[int, ...]: lambda name, value: tuple(
        whole(f"every entry of {name}", x) for x in listed(name, value, "whole numbers")
    ),
    tuple[float, ...]: lambda name, value: tuple(
        number(f"every entry of {name}", x) for x in listed(name, value, "numbers")
    ),
}
"""What makes a plain value of each type that a field may have; words are checked by what they may be."""


def check_types(config: Any) -> None:
    """Every field as a plain Python value of its type: to be called first in `__post_init__`.

    Raises:
        ValueError: a field of another type.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        if (plain := _PLAIN.get(hints[field.name])) is not None:
            object.__setattr__(config, field.name, plain(field.name, getattr(config, field.name)))


def check_choice(config: Any, **choices: tuple[str, ...]) -> None:
    """Raise ValueError for a field that is none of its choices."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} must be one of {known}, got {getattr(config, name)!r}")


def check_whole(config: Any, **least: int) -> None:
    """Raise ValueError for a field below its least value, or no whole number; None passes."""
    for name, bound in least.items():
        if getattr(config, name) is not None:
            whole(name, getattr(config, name), bound)


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError for a field that is not above zero, or infinite."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    """Raise ValueError for a field below zero, or infinite."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must not be negative, and finite, got {getattr(config, name)}")


def check_fraction(config: Any, *names: str) -> None:
    """Raise ValueError for a field outside [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}")
