"""Whether a step was a success, as environments report it.

Gymnasium does not define a name for it. Meta-World uses `info["success"]`; Fetch, panda-gym and stable-baselines3 use
`info["is_success"]`. Some report it in every step, some only at the end, some only when it happens. Both names are
accepted, and a step without a report is not a success.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

NAMES = ("success", "is_success")
_LAST = ("final_info", "_final_info")  # where Gymnasium keeps the info of an episode's last step, and for whom


def of_step(info: Mapping[str, Any]) -> bool | None:
    """Whether the `info` of one environment's step reports a success; None if it reports nothing.

    Raises:
        ValueError: the report is not a single boolean.
    """
    found: bool | None = None
    for name in NAMES:
        if name in info and (flag := _flag(name, info[name])) is not None:
            found = flag or bool(found)
    if _LAST[0] in info and isinstance(last := info[_LAST[0]], Mapping) and (flag := of_step(last)) is not None:
        found = flag or bool(found)
    return found


def of_steps(infos: Mapping[str, Any], n: int) -> Any:
    """The reports of `n` environments' steps, [n]; None if none of them reports anything.

    `infos` are those of a Gymnasium vector environment: an array [n] per key, where `infos["_KEY"]` may say which
    entries are valid; `infos["final_info"]` is such a dict again, or a list of `n` dicts and Nones. Invalid entries are
    False. A single report under one name is returned unchanged, so that a tensor stays on its device.

    Raises:
        ValueError: the report is not one boolean per environment.
    """
    parts = [_masked(infos, name, n) for name in NAMES if infos.get(name) is not None]
    last = infos.get(_LAST[0])
    if isinstance(last, Mapping):
        if (flags := of_steps(last, n)) is not None:
            parts.append(flags if _LAST[1] not in infos else _array(flags) & _array(infos[_LAST[1]]).astype(bool))
    elif last is not None:
        each = [None if one is None else of_step(one) for one in last]
        if any(flag is not None for flag in each):
            parts.append(np.array([bool(flag) for flag in each]))
    if len(parts) <= 1:
        return parts[0] if parts else None
    return np.logical_or.reduce([_array(part).astype(bool) for part in parts])


def _flag(name: str, value: Any) -> bool | None:
    if isinstance(value, bool) or value is None:
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise ValueError(f"info[{name!r}] is {value!r}: report one yes or no in each step, True or False")
    if array.dtype.kind == "f" and array.item() not in (0.0, 1.0):  # NaN and shares would count as a success
        raise ValueError(f"info[{name!r}] is {value!r}: report one yes or no in each step, True or False")
    return bool(array.item())


def _masked(infos: Mapping[str, Any], name: str, n: int) -> Any:
    value, mask = infos[name], infos.get(f"_{name}")
    shape = tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
    if shape[:1] != (n,) or int(np.prod(shape)) != n:
        raise ValueError(f"infos[{name!r}] of a vector environment has shape {shape}: report one yes or no for each of "
                         f"its {n} environments")  # fmt: skip
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
        value = np.array([bool(_flag(name, one)) for one in value])
    if _is_float(value):
        undecided = _array((value != 0) & (value != 1)).reshape(n)
        undecided = undecided if mask is None else undecided & _array(mask).reshape(n).astype(bool)
        if undecided.any():
            one = _array(value).reshape(n)[undecided][0]
            raise ValueError(f"infos[{name!r}] of a vector environment has {one}: report one yes or no for each")
    return value if mask is None else _array(value).reshape(n).astype(bool) & _array(mask).reshape(n).astype(bool)


def _is_float(value: Any) -> bool:
    tensor = getattr(value, "is_floating_point", None)
    return bool(tensor()) if tensor is not None else np.asarray(value).dtype.kind == "f"


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)
