"""What users pass, as plain Python values: whole numbers, numbers, yes or no. Anything else is refused by its name.

NumPy's numbers become Python's, which JSON can hold. A bool is no number and no number is a bool: what is meant by
`normalize_obs="no"` or `inner_lr=True` can only be guessed.
"""

import math
import numbers
import os
from pathlib import Path
from typing import Any

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
