"""Kinds of policies by name, so that policies from outside this package can be saved and loaded.

A file stores a policy's kind and the result of `describe()`. It is recreated by `from_description` of that kind: one of
this package's own, one registered by `register_policy` in this process, or one that a package registers as an entry
point of the group `metarl.policies`. A package that has not been imported yet is imported only if the user allows it.
"""

import importlib.metadata
import sys
from collections.abc import Mapping
from typing import Any

from metarl.policies.base import Policy
from metarl.policies.cnn import CNNPolicy
from metarl.policies.gru import GRUPolicy
from metarl.policies.mlp import MLPPolicy
from metarl.policies.spaces import Spaces
from metarl.suggestions import did_you_mean

ENTRY_POINT_GROUP = "metarl.policies"

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (MLPPolicy, CNNPolicy, GRUPolicy)}


def register_policy(kind: type) -> type:
    """Register a policy class by its name, so that files saved with it can be loaded. Can be used as a decorator.

    Raises:
        ValueError: it has no `describe` or `from_description`, or another class has the same name.
    """
    for name in ("describe", "from_description", "init"):
        if not callable(getattr(kind, name, None)):
            raise ValueError(f"{kind.__name__} has no {name}(), which is needed to recreate it from a file")
    known = _KINDS.get(kind.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"a kind of policies {kind.__name__!r} is registered already, of {known.__module__}: "
                         "give this one another name")  # fmt: skip
    _KINDS[kind.__name__] = kind
    return kind


def descriptions() -> dict[str, str]:
    """One line about every known kind, by name. Kinds registered by installed packages are imported."""
    out: dict[str, str] = {}
    points = _announced()
    for name in (*_KINDS, *sorted(points.keys() - _KINDS.keys())):
        try:
            doc = ((_KINDS[name] if name in _KINDS else points[name].load()).__doc__ or "").strip()
        except Exception as error:  # whatever a plug-in does wrong, the others are still listed
            doc = f"cannot be imported: {type(error).__name__}: {error}"
        out[name] = doc.splitlines()[0] if doc else ""
    return out


def _announced() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def described_policy(kind: str, spaces: Spaces, described: Mapping[str, Any], trust: bool = False) -> Policy:
    """The policy described in a file.

    Args:
        trust: import the package that registers the kind.

    Raises:
        ValueError: the kind is unknown, or its package is neither imported nor trusted.
    """
    if kind not in _KINDS:
        points = _announced()
        if kind not in points:
            raise ValueError(f"no kind of policies is called {kind!r}{did_you_mean(kind, [*_KINDS, *points])}; of "
                             "your own code, import it and call metarl.register_policy first")  # fmt: skip
        package = points[kind].module.partition(".")[0]
        if not trust and package not in sys.modules:
            raise ValueError(f"it has a {kind} of the package {package!r}, which is not imported: import it first, or "
                             "pass trust=True (--trust)")  # fmt: skip
        register_policy(points[kind].load())
    return _KINDS[kind].from_description(spaces, described)
