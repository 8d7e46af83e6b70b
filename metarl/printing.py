"""How results, learners and families are printed: the information of interest, without arrays."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
from rich.table import Table
from torch import Tensor

_WIDTH = 120
_ENTRIES = 6


class TextTable(Table):
    """A rich table that plain `print` can also show."""

    def __str__(self) -> str:
        return as_text(self)


def as_text(table: Table) -> str:
    """A table as plain text, without colours."""
    file = io.StringIO()
    rich.console.Console(file=file, width=_WIDTH, color_system=None, legacy_windows=False).print(table)
    return file.getvalue().rstrip("\n")


def family_text(family: Any) -> str:
    """`PointNavigation-v0(horizon=100, tasks: goal)`; for a family that lacks these members, its type."""
    if not all(hasattr(family, name) for name in ("id", "horizon", "task_space")):
        return f"<{type(family).__name__}>"
    names = ", ".join(getattr(family.task_space, "spaces", ()))
    return f"{family.id}(horizon={family.horizon}, tasks: {names})"


def curve_text(values: Any) -> str:
    """`-38.4, -14.5, -5.6`, with the middle of long curves omitted; empty if there is no curve."""
    numbers = [] if values is None else [f"{value:.4g}" for value in values]
    return ", ".join(numbers if len(numbers) <= _ENTRIES else [*numbers[:3], "...", numbers[-1]])


def fields_text(instance: Any) -> str:
    """A dataclass's repr, with the shapes of arrays and tensors in place of their values."""
    fields = [f for f in dataclasses.fields(instance) if f.repr]
    shown = ", ".join(f"{field.name}={_short(getattr(instance, field.name))}" for field in fields)
    return f"{type(instance).__name__}({shown})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {_short(x)}" for name, x in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = [_short(x) for x in value[:_ENTRIES]] + ["..."] * (len(value) > _ENTRIES)
        return "(" + ", ".join(parts) + ")"
    return repr(value)
