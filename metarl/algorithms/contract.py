"""What a module has to have to be an algorithm: five names, written down as protocols.

    Config      a frozen dataclass of settings, every field with a default
    State       a dataclass of data: what one iteration hands to the next
    init        (config, policy, family, seed, device) -> State
    iteration   (setup, state) -> (State, statistics)
    evaluate    (setup, state, tasks, episodes, step_sizes) -> Result

Nothing else is looked at. `metarl.check_algorithm` says what a module lacks; docs/your_own_algorithm.md has examples.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.adapted.recurrent_policy import RecurrentPolicy
from metarl.params import Params
from metarl.policies.normalize import ObsStats
from metarl.policies.spaces import Spaces
from metarl.rollout.setup import Setup
from metarl.tasks import TaskFamily, Tasks

INNER_STEP, EPISODE = "inner step", "episode"
STATISTICS = ("return/step_0", "time/rollout", "time/update")
"""Keys that every iteration's statistics have; `return/step_k` is the mean return after k units of adaptation."""


class Config(Protocol):
    """Settings. A frozen dataclass: fields are numbers, words, yes or no, and tuples of these."""

    n_tasks: int
    """K: tasks per meta-iteration."""

    @property
    def episodes(self) -> int:
        """Episodes per task and unit of adaptation: the default of `evaluate` and `adapt`."""
        ...

    @property
    def inner_steps(self) -> int:
        """Units of adaptation in training."""
        ...

    @property
    def unit(self) -> str:
        """What one unit of adaptation is: "inner step", which has a size, or "episode", which has none."""
        ...

    def policy(self, spaces: Spaces, module: nn.Module | None = None) -> Any:
        """The policy's description (see `metarl.policies.base`); around the user's own module, where there is one."""
        ...

    def training_step_sizes(self, steps: int | None = None) -> tuple[float, ...]:
        """The sizes of the first `steps` inner steps (by default of all in training). Only of "inner step"."""
        ...

    @property
    def sized_steps(self) -> int:
        """How many steps have sizes that the settings fix; those of later ones are chosen on validation tasks."""
        ...


class State(Protocol):
    """What one iteration hands to the next. A dataclass whose fields are data: tensors, numbers, words, None, and
    lists, tuples, dicts and dataclasses of data, in any nesting. It saves and loads as it is."""

    params: Params
    """The policy's parameters, where adaptation starts."""
    iteration: int
    """Meta-iterations done."""
    env_steps: int
    """Environment steps taken in them."""
    obs_stats: ObsStats
    """Statistics by which observations are normalised; empty where they are not."""
    WARM_START: ClassVar[tuple[str, ...]]
    """The fields that `MetaLearner.start_from` takes over from another learner; the others start anew."""


class Result(Protocol):
    """An adaptation to K tasks by S units, with E episodes before and after each."""

    @property
    def returns(self) -> Tensor:
        """[K, S + 1, E]: undiscounted returns."""
        ...

    @property
    def success_rates(self) -> Tensor | None:
        """[K, S + 1]: share of episodes with a success; None where no environment reports it."""
        ...

    @property
    def rollouts(self) -> list[Any]:
        """The S + 1 rollouts (see `metarl.rollout.rollout.Rollout`)."""
        ...

    @property
    def score(self) -> float:
        """By which the best state of a run is chosen; higher is better."""
        ...

    def policy_for(self, task: int) -> AdaptedPolicy | RecurrentPolicy:
        """What came of the adaptation to one of the tasks, on the CPU."""
        ...


class Algorithm(Protocol):
    """A module."""

    __name__: str
    Config: type[Any]
    State: type[Any]

    def init(self, config: Any, policy: Any, family: TaskFamily, seed: int, device: torch.device | str = "cpu") -> Any:
        """The state before the first iteration, from `seed` alone. Raises ValueError for a policy it cannot train."""
        ...

    def iteration(self, setup: Setup[Any], state: Any) -> tuple[Any, dict[str, Any]]:
        """One meta-iteration, from `setup` and `state` alone -> the next state, and statistics (docs/logging.md)."""
        ...

    def evaluate(self, setup: Setup[Any], state: Any, tasks: Tasks, episodes: int, step_sizes: Sequence[Any]) -> Result:
        """Adapt to `tasks`, by one unit for each of `step_sizes` (None where units have no size)."""
        ...
