"""Parameter values as passed to an environment: its own copies, in the form that an attribute had before."""

from typing import Any

import numpy as np


def own_copy(value: Any) -> Any:
    """`value` with its arrays, lists, tuples and dicts copied, at any depth, since an environment may modify them in
    place.

    Other objects are not copied. They may not support it, or may be intended to be shared.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: own_copy(x) for key, x in value.items()}
    if type(value) in (list, tuple):
        return type(value)(own_copy(x) for x in value)
    return value


def as_before(env: Any, name: str, value: Any) -> Any:
    """`value` in the form that the attribute `name` has now: array, tuple or list.

    An array keeps its type unless that would truncate fractions: `np.array([0, 0])` is often an initial value that was
    simply written without decimal points.
    """
    now = getattr(env, name)
    if isinstance(now, np.ndarray):
        given = np.asarray(value)
        cut_off = given.dtype.kind == "f" and now.dtype.kind in "biu"
        given = given if cut_off else given.astype(now.dtype)
        return given.reshape(now.shape if given.size == now.size else given.shape)
    if isinstance(now, tuple | list) and isinstance(value, np.ndarray):
        make = getattr(type(now), "_make", type(now))  # a namedtuple takes its fields one by one
        return make(value.tolist())
    return value


def same_value(found: Any, value: Any) -> bool:
    """Whether an attribute still has its value; `reset` may have converted its type, for example float64 to float32."""
    try:
        return np.shape(found) == np.shape(value) and np.allclose(found, value, rtol=1e-6, atol=0)
    except (TypeError, ValueError):  # not numbers
        return bool(np.array_equal(found, value))
