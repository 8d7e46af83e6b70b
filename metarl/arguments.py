"""Users' arguments as plain Python values: integers, numbers, booleans. Invalid ones are refused, naming the argument.

NumPy numbers become Python numbers, which JSON can represent. Booleans are not accepted as numbers, nor numbers as
booleans: the intent of `normalize_obs="no"` or `inner_lr=True` could only be guessed.
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

MOST = 2**31 - 1
"""No setting that counts something can be larger: no machine holds that many, and Python's own limits are not far."""


def whole(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int; 3.0 is accepted.

    Raises:
        ValueError: not a whole number, or below `least`.
    """
    if not _is_number(value) or not math.isfinite(value) or value != int(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(value)


def number(name: str, value: Any) -> float:
    """`value` as a float. Raises ValueError if it is not a number; NaN and infinities are accepted."""
    if not _is_number(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def yes_or_no(name: str, value: Any) -> bool:
    """`value` as a bool. Raises ValueError for anything else, including strings and numbers."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def listed(name: str, value: Any, of: str) -> list[Any]:
    """The entries of a list, tuple or one-dimensional array. Raises ValueError for a single value; `of` describes
    them."""
    if not isinstance(value, list | tuple) and not (isinstance(value, np.ndarray) and value.ndim == 1):
        raise ValueError(f"{name} must be a list of {of}, got {value!r}")
    return list(value)


def positive_sizes(name: str, values: Any) -> tuple[float, ...]:
    """Step sizes as floats. Raises ValueError unless they are a list of positive finite numbers."""
    sizes = tuple(number(f"every entry of {name}", size) for size in listed(name, values, "positive numbers"))
    if any(not 0 < size < math.inf for size in sizes):
        raise ValueError(f"{name} must be positive and finite, got {list(sizes)}")
    return sizes


def check_takes_one(name: str, function: Callable[..., Any], what: str) -> None:
    """Raise ValueError if a function cannot be called with one argument, described by `what`."""
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise ValueError(f"{name} is called with one argument, {what}, which {function!r} cannot be: {error}") from None
    except ValueError:  # a function without a signature
        return


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def file_path(name: str, value: Any) -> Path:
    """`value` as a path. Raises ValueError unless it is a string or a `pathlib.Path`."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError(f"{name} must be a path, as a string or a pathlib.Path, got {value!r}")
    return Path(value)


def new_file(name: str, value: Any) -> Path:
    """`value` as the path of a file to write. Raises ValueError if it is not a path, or is a directory."""
    path = file_path(name, value)
    if path.is_dir():
        raise ValueError(f"{name} must be a file, but {str(path)!r} is a directory: name a file in it")
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
"""Functions that convert to a plain value, by type of field; strings are checked against their choices."""


def check_types(config: Any) -> None:
    """Convert every field to a plain Python value of its type; call this first in `__post_init__`.

    Raises:
        ValueError: a field has the wrong type.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        if (plain := _PLAIN.get(hints[field.name])) is not None:
            object.__setattr__(config, field.name, plain(field.name, getattr(config, field.name)))


def check_choice(config: Any, **choices: tuple[str, ...]) -> None:
    """Raise ValueError if a field is not one of its choices."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} must be one of {known}, got {getattr(config, name)!r}")


def check_whole(config: Any, **least: int) -> None:
    """Raise ValueError if a field is not a whole number, is below its minimum or above `MOST`; None is accepted."""
    for name, bound in least.items():
        if getattr(config, name) is not None and whole(name, getattr(config, name), bound) > MOST:
            raise ValueError(f"{name} must be at most {MOST}, got {getattr(config, name)!r}")


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError if a field is not positive and finite."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    """Raise ValueError if a field is negative or infinite."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must not be negative, and finite, got {getattr(config, name)}")


def check_fraction(config: Any, *names: str) -> None:
    """Raise ValueError if a field is outside [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}")
