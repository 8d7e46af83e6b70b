"""Meta-reinforcement learning: policies that learn to adapt.

Names are imported on first use, which keeps `import metarl` fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "MetaLearner": "metarl.learner",
    "AdaptedPolicy": "metarl.adapted.gradient_policy",
    "RecurrentPolicy": "metarl.adapted.recurrent_policy",
    "TaskFamily": "metarl.tasks",
    "Task": "metarl.tasks",
    "Tasks": "metarl.tasks",
    "make": "metarl.families.registry",
    "register": "metarl.families.registry",
    "registered": "metarl.families.registry",
    "split_rng": "metarl.splits",
    "TensorFamily": "metarl.vector.tensor",
    "make_vector": "metarl.vector.backends",
    "check_algorithm": "metarl.algorithms.check",
    "check_family": "metarl.families.check",
    "register_policy": "metarl.policies.kinds",
    "from_gymnasium": "metarl.families.gymnasium",
    "visible": "metarl.families.visible",
}

__all__ = [*sorted(_EXPORTS), "__version__"]

if TYPE_CHECKING:
    from metarl.adapted.gradient_policy import AdaptedPolicy as AdaptedPolicy
    from metarl.adapted.recurrent_policy import RecurrentPolicy as RecurrentPolicy
    from metarl.algorithms.check import check_algorithm as check_algorithm
    from metarl.families.check import check_family as check_family
    from metarl.families.gymnasium import from_gymnasium as from_gymnasium
    from metarl.families.registry import make as make
    from metarl.families.registry import register as register
    from metarl.families.registry import registered as registered
    from metarl.families.visible import visible as visible
    from metarl.learner import MetaLearner as MetaLearner
    from metarl.policies.kinds import register_policy as register_policy
    from metarl.splits import split_rng as split_rng
    from metarl.tasks import Task as Task
    from metarl.tasks import TaskFamily as TaskFamily
    from metarl.tasks import Tasks as Tasks
    from metarl.vector.backends import make_vector as make_vector
    from metarl.vector.tensor import TensorFamily as TensorFamily


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'metarl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
