"""What an algorithm works with and never changes: its settings, its tasks, its policy's description and a seed."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Setup(Generic[C]):
    """The constant half of a run; what changes from iteration to iteration is the algorithm's state."""

    config: C
    """The algorithm's settings."""
    sampler: Any
    """A `Sampler`, which draws tasks and rolls the policy out in them; in `adapt(env)` an `EnvSampler`, which has one
    environment and draws none."""
    policy: Any
    """The policy's description, without parameters (see `metarl.policies.base.Policy`)."""
    seed: int
    """Of every random number: of a run, or of one evaluation."""
