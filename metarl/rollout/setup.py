"""The constant inputs of an algorithm: its settings, its tasks, its policy's description and a seed."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Setup(Generic[C]):
    """The constant half of a run; what changes from iteration to iteration is the algorithm's state."""

    config: C
    """The algorithm's settings."""
    sampler: Any
    """A `Sampler`, which draws tasks and rolls the policy out in them; in `adapt(env)` an `EnvSampler`, which has a
    single environment and draws no tasks."""
    policy: Any
    """The policy's description, without parameters (see `metarl.policies.base.Policy`)."""
    seed: int
    """The seed of all random numbers of a run or of one evaluation."""
