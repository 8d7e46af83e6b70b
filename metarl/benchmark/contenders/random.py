"""Actions at random: where scores begin."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from metarl.algorithms import maml_trpo
from metarl.benchmark.contract import Policies, Test, Training
from metarl.inner.state import init
from metarl.params import expand
from metarl.policies.spaces import spaces_of
from metarl.rollout.acting import Memoryless
from metarl.tasks import TaskFamily


@dataclass(frozen=True)
class RandomPolicy:
    """Uniform choices; for continuous actions, zero-mean Gaussian noise of half the range, clipped by the bounds."""

    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = "random policy"

    def fits(self, family: TaskFamily) -> str:
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return family

    def train(self, run: Training) -> None:
        """Learns nothing."""

    def adapt(self, learned: None, test: Test) -> Iterator[Policies]:
        config = maml_trpo.Config(hidden=(), output_gain=1e-9)
        policy = config.policy(spaces_of(test.family))
        state = init(config, policy, test.family, test.seed)
        params = {name: torch.zeros_like(value) for name, value in state.params.items()}
        yield Policies(Memoryless(policy, expand(params, test.n_tasks)))
