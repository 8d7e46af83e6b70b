"""The contenders that come with the package, one subject per file; `get` finds one by its name.

Third parties add theirs by the entry point group `metarl.contenders`, or as `FILE.py:NAME` in a suite.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from metarl import algorithms
from metarl.benchmark.contenders import gradient, joint, memory, random, sb3, specialists
from metarl.benchmark.contract import Contender
from metarl.families import files
from metarl.suggestions import did_you_mean

GROUP = "metarl.contenders"

BUILT_IN: dict[str, Callable[..., Contender]] = {
    "random": random.RandomPolicy,
    "random_init": gradient.RandomInitialisation,
    "scratch": gradient.Scratch,
    "scratch_ppo": sb3.ScratchPPO,
    "transfer": joint.Transfer,
    "transfer_head": joint.TransferHead,
    "multi_task": joint.MultiTask,
    "oracle": joint.Oracle,
    "averaged": specialists.Averaged,
    "ensemble": specialists.EnsembleOfSpecialists,
    "distilled": specialists.Distilled,
}


def names() -> list[str]:
    """Every name that `get` knows."""
    return [*BUILT_IN, *algorithms.ALGORITHMS, *(entry.name for entry in entry_points(group=GROUP))]


def get(name: str, options: Mapping[str, Any]) -> Contender:
    """The contender with these options.

    Args:
        name: one that comes with the package, a meta-learning algorithm's, one that a package announces, or
            `FILE.py:NAME`.

    Raises:
        ValueError: an unknown name or option.
    """
    return _made(name, options)


def _made(name: str, options: Mapping[str, Any]) -> Contender:
    make: Callable[..., Contender]
    if files.parsed(name) is not None:
        make = files.imported(name)
    elif name in BUILT_IN:
        make = BUILT_IN[name]
    elif name in algorithms.ALGORITHMS:
        kind = memory.Recurrent if name == "rl2" else gradient.MetaLearned
        return kind(name, dict(options))
    else:
        found = {entry.name: entry for entry in entry_points(group=GROUP)}
        if name not in found:
            raise ValueError(f"no contender {name!r}{did_you_mean(name, names())}; there are {', '.join(names())}")
        make = found[name].load()
    return make(dict(options))
