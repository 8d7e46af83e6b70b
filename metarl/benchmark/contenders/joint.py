"""One policy for all training tasks: as it is, with the task shown to it, or as the start of fine-tuning."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from metarl.benchmark.contenders.gradient import Learned, adapted, best_size, trained
from metarl.benchmark.contract import Policies, Test, Training
from metarl.families.visible import visible
from metarl.learner import make_config
from metarl.params import expand
from metarl.rollout.acting import Memoryless
from metarl.tasks import TaskFamily


def joint(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of training without an inner loop."""
    return {**options, "inner_steps": 0}


@dataclass(frozen=True)
class MultiTask:
    """One model trained on all tasks together; it does not adapt."""

    options: dict[str, Any] = field(default_factory=dict)
    label: str = "multi-task, one shared model"

    def __post_init__(self) -> None:
        make_config("maml_trpo", joint(self.options))

    def fits(self, family: TaskFamily) -> str:
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return family

    def train(self, run: Training) -> Any:
        return trained(run, "maml_trpo", joint(self.options))

    def adapt(self, learned: Any, test: Test) -> Iterator[Policies]:
        params = expand(learned.state.params, test.n_tasks)
        yield Policies(Memoryless(learned.policy, params), learned.state.obs_stats)


@dataclass(frozen=True)
class Oracle(MultiTask):
    """The same model with the task in its observations: what knowing the task is worth."""

    label: str = "oracle that sees the task"

    def fits(self, family: TaskFamily) -> str:
        try:
            self.sees(family)
        except ValueError as error:
            return str(error)
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return visible(family)


@dataclass(frozen=True)
class Transfer:
    """One model trained on all tasks together, then fine-tuned in each by policy-gradient steps."""

    options: dict[str, Any] = field(default_factory=dict)
    label: str = "transfer, all weights fine-tuned"
    adapts: str = "all"

    def __post_init__(self) -> None:
        make_config("maml_trpo", joint(self.options))

    def fits(self, family: TaskFamily) -> str:
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return family

    def train(self, run: Training) -> Learned:
        learner = trained(run, "maml_trpo", joint(self.options))
        learner.config = replace(learner.config, adapts=self.adapts)
        return best_size(run, learner)

    def adapt(self, learned: Learned, test: Test) -> Iterator[Policies]:
        return adapted(learned, test)


@dataclass(frozen=True)
class TransferHead(Transfer):
    """The same with only the last layer fine-tuned."""

    label: str = "transfer, head fine-tuned"
    adapts: str = "head"
