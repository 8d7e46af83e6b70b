"""What a contender is: something that trains on a family and then acts in each of its environments, adapting or not.

    learned = contender.train(run)                   # at most run.meter.left environment steps
    for policies in contender.adapt(learned, test):  # before any adaptation, then after every unit of it
        ...                                          # the protocol evaluates them, on episodes of its own

Both get a family whose environments count their steps (`metarl.benchmark.meter`). All that a contender sees of tasks
it is tested on are the episodes that it collects through `Test.collect` or `Test.play`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metarl import random
from metarl.benchmark.meter import Meter
from metarl.params import Params
from metarl.policies.base import Policy
from metarl.policies.normalize import ObsStats
from metarl.rollout.acting import Actor, Played, play
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import Sampler
from metarl.tasks import TaskFamily, Tasks, num_tasks


@dataclass(frozen=True)
class Adaptation:
    """How adaptation is tested."""

    steps: int = 3
    """Units of adaptation."""
    episodes: int = 20
    """Episodes per task that each unit may be based on."""
    eval_episodes: int = 20
    """Further episodes per task in which the policies after every unit are evaluated; no contender sees them."""


@dataclass(frozen=True)
class Training:
    """What a contender trains with."""

    family: TaskFamily
    meter: Meter
    """Of the family's environments; what is left of it is the budget."""
    seed: int
    directory: Path
    """The contender's own: what is kept there lets an interrupted training go on."""
    adaptation: Adaptation
    validation: Tasks
    """Tasks on which settings are chosen; the episodes count."""


@dataclass(frozen=True)
class Policies:
    """What acts in K tasks at some point of adaptation."""

    actor: Actor
    obs_stats: ObsStats = field(default_factory=dict)
    episodes: int = 0
    """Episodes per task that it is based on so far."""


@dataclass(frozen=True)
class Test:
    """K tasks to adapt to."""

    __test__ = False  # for pytest: no test itself

    family: TaskFamily
    tasks: Tasks
    adaptation: Adaptation
    seed: int
    sampler: Sampler

    @property
    def n_tasks(self) -> int:
        """K."""
        return num_tasks(self.tasks)

    def collect(self, policy: Policy, params: Params, stage: int, obs_stats: ObsStats | None = None) -> Rollout:
        """`adaptation.episodes` episodes of every task with the parameters [K, ...]."""
        return self.sampler.collect(
            self.tasks, self.adaptation.episodes, policy, params, self.seed, 0, stage, obs_stats
        )  # fmt: skip

    def play(self, actor: Actor, stage: int, obs_stats: ObsStats | None = None) -> Played:
        """One episode of every task with the contender's own actor."""
        env = self.sampler.vector_env(self.n_tasks, 1)
        seeds = random.episode_seeds(self.seed, 0, stage, self.n_tasks, 1)
        return play(env, self.tasks, self.family.horizon, actor, seeds[None], obs_stats)


class Contender(Protocol):
    """Something that is compared."""

    @property
    def label(self) -> str:
        """What it is called in tables and figures."""
        ...

    def fits(self, family: TaskFamily) -> str:
        """Why it cannot be run on the family; empty if it can."""
        ...

    def sees(self, family: TaskFamily) -> TaskFamily:
        """The family as it observes it: the family itself, or one that shows more (an oracle's)."""
        ...

    def train(self, run: Training) -> Any:
        """What it learns from the family's training tasks. It may let `BudgetSpent` pass only with nothing learned."""
        ...

    def adapt(self, learned: Any, test: Test) -> Iterator[Policies]:
        """The policies before adaptation, and after every unit of it. One that does not adapt yields once."""
        ...


@dataclass(frozen=True)
class Stage:
    """How the policies did after one unit of adaptation."""

    returns: Tensor  # [K, E] of evaluation episodes
    success: Tensor | None  # [K, E] bool
    episodes: int  # per task, that adaptation has seen
    steps: float  # environment steps per task, likewise


def evaluated(policies: Policies, sampler: Sampler, tasks: Tasks, episodes: int, seed: int, unit: int) -> Stage:
    """`episodes` episodes of every task, by keys that no adaptation uses."""
    env = sampler.vector_env(num_tasks(tasks), episodes)
    seeds = random.episode_seeds(seed, _EVALUATION, unit, num_tasks(tasks), episodes)
    played = play(env, tasks, sampler.family.horizon, policies.actor, seeds[None], policies.obs_stats)
    returns = (played.values["rew"].double() * played.values["mask"]).sum(1)
    success = None if played.success is None else played.success[:, 0]
    return Stage(returns, success, policies.episodes, 0.0)


_EVALUATION = 0xE5A1  # the "iteration" of the keys of evaluation episodes; adaptation's is 0


def settings_text(settings: Mapping[str, Any]) -> str:
    """For messages: `{"inner_lr": 0.1}` -> "inner_lr=0.1"."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items()) or "its defaults"


def stacked(each: list[Params]) -> Params:
    """One task's parameters after the other's -> [K, ...]."""
    return {name: torch.stack([params[name] for params in each]) for name in each[0]}
