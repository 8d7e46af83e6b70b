"""Contenders that adapt by remembering: RL² and policies with a memory of its kind."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from metarl.benchmark.contenders.gradient import trained
from metarl.benchmark.contract import Policies, Test, Training
from metarl.learner import make_config
from metarl.policies.gru import Memory
from metarl.recurrent.trials import Remembering
from metarl.tasks import TaskFamily


@dataclass(frozen=True)
class From(Remembering):
    """A recurrent policy that starts from a memory [K, 1, ...], in any number of episodes side by side."""

    memory: Memory | None = None

    def start(self, n_tasks: int, episodes: int) -> Memory:
        if self.memory is None:
            return super().start(n_tasks, episodes)
        return Memory(*(x.expand(n_tasks, episodes, *x.shape[2:]).contiguous() for x in self.memory))


@dataclass(frozen=True)
class Recurrent:
    """RL²: an episode of a trial is a unit of adaptation, as many as a trial of training has."""

    algorithm: str = "rl2"
    settings: dict[str, Any] = field(default_factory=dict)
    label: str = "RL²"

    def __post_init__(self) -> None:
        make_config(self.algorithm, self.settings)

    def fits(self, family: TaskFamily) -> str:
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return family

    def train(self, run: Training) -> Any:
        return trained(run, self.algorithm, self.settings)

    def adapt(self, learned: Any, test: Test) -> Iterator[Policies]:
        state, memory = learned.state, None
        params = {name: value.cpu() for name, value in state.params.items()}
        for k in range(learned.config.trial_episodes):
            actor = From(learned.policy, params, memory=memory)
            yield Policies(actor, state.obs_stats, k)
            if k + 1 < learned.config.trial_episodes:
                memory = test.play(actor, k, state.obs_stats).memory
