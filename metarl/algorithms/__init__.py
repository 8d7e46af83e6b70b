"""The algorithms, one file each, with the five names of `contract`; others are found through entry points.

Imports `inner`, `outer`, `recurrent` and the rooms below them.
"""

import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import Any

from metarl.families.files import hint as hint_at_file
from metarl.suggestions import ALGORITHMS as ALGORITHMS
from metarl.suggestions import algorithm_hint

ENTRY_POINT_GROUP = "metarl.algorithms"


def announced() -> dict[str, importlib.metadata.EntryPoint]:
    """Algorithms registered by installed packages, by name. Nothing is imported."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def get(name: str, trust: bool = True) -> ModuleType:
    """The algorithm's module.

    Args:
        trust: import the package that registers it if it has not been imported yet. Pass False for a name read from a
            file.

    Raises:
        ValueError: no algorithm has that name (the message suggests the nearest one), or its package is neither
            imported nor trusted.
    """
    if name in ALGORITHMS:
        return importlib.import_module(f"metarl.algorithms.{name}")
    points = announced()
    if not isinstance(name, str) or name not in points:
        hint = hint_at_file(name) if isinstance(name, str) else None
        raise ValueError(f"no algorithm is called {name!r}{hint or algorithm_hint(name, (*ALGORITHMS, *points))}")
    package = points[name].module.partition(".")[0]
    if not trust and package not in sys.modules:
        raise ValueError(f"the algorithm {name!r} is in the package {package!r}, which is not imported: import it "
                         "first, or pass trust=True (--trust)")  # fmt: skip
    return points[name].load()


def descriptions() -> dict[str, str]:
    """One line about every known algorithm, by name."""
    out = {}
    for name in (*ALGORITHMS, *sorted(announced())):
        try:
            doc = (get(name).__doc__ or "").strip()
        except Exception as error:  # whatever a plug-in does wrong, the others are still listed
            doc = f"cannot be imported: {type(error).__name__}: {error}"
        out[name] = doc.splitlines()[0] if doc else ""
    return out


def name_of(module: Any) -> str:
    """The name under which an algorithm is logged and saved: the last part of its module's name."""
    return str(module.__name__).rpartition(".")[2]
