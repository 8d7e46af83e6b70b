"""One file per algorithm, each a module with the five names `Config`, `State`, `init`, `iteration`, `evaluate`.

Imports `inner`, `outer`, `recurrent` and what is below them.
"""

import importlib
from types import ModuleType

from metarl.suggestions import ALGORITHMS as ALGORITHMS
from metarl.suggestions import algorithm_hint


def get(name: str) -> ModuleType:
    """The algorithm's module. Raises ValueError, with the nearest name, if there is none."""
    if name not in ALGORITHMS:
        raise ValueError(f"no algorithm is called {name!r}{algorithm_hint(name, ALGORITHMS)}")
    return importlib.import_module(f"metarl.algorithms.{name}")
