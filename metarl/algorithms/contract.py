"""The contract of an algorithm module, written down as protocols. It has five names:

    Config      a frozen dataclass of settings, every field with a default
    State       a dataclass of data: what one iteration hands to the next
    init        (config, policy, family, seed, device) -> State
    iteration   (setup, state) -> (State, statistics)
    evaluate    (setup, state, tasks, episodes, step_sizes) -> Result

Nothing else is used. `metarl.check_algorithm` reports what a module lacks; docs/your_own_algorithm.md has examples.
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
"""Keys required in every iteration's statistics; `return/step_k` is the mean return after k units of adaptation."""


class Config(Protocol):
    """Settings. A frozen dataclass whose fields are numbers, strings, booleans, or tuples of these."""

    n_tasks: int
    """K: tasks per meta-iteration."""

    @property
    def episodes(self) -> int:
        """Episodes per task and unit of adaptation: the default of `evaluate` and `adapt`."""
        ...

    @property
    def inner_steps(self) -> int:
        """Units of adaptation during training."""
        ...

    @property
    def unit(self) -> str:
        """The unit of adaptation: "inner step", which has a size, or "episode", which has none."""
        ...

    def policy(self, spaces: Spaces, module: nn.Module | None = None) -> Any:
        """The policy's description (see `metarl.policies.base`), built around the user's own module if there is one."""
        ...

    def training_step_sizes(self, steps: int | None = None) -> tuple[float, ...]:
        """The sizes of the first `steps` inner steps (default: as many as in training). Needed only if `unit` is "inner
        step"."""
        ...

    @property
    def sized_steps(self) -> int:
        """How many steps have their sizes fixed by the settings; those of later steps are chosen on validation
        tasks."""
        ...


class State(Protocol):
    """What one iteration passes to the next. A dataclass whose fields are data: tensors, numbers, strings, None, and
    lists, tuples, dicts and dataclasses of data, nested in any way. It is saved and loaded as it is."""

    params: Params
    """The policy's parameters before adaptation."""
    iteration: int
    """Meta-iterations completed."""
    env_steps: int
    """Environment steps taken in them."""
    obs_stats: ObsStats
    """Statistics used to normalise observations; empty if they are not normalised."""
    WARM_START: ClassVar[tuple[str, ...]]
    """The fields that `MetaLearner.start_from` takes over from another learner; the others are initialised anew."""


class Result(Protocol):
    """An adaptation to K tasks by S units, with E episodes before and after each."""

    @property
    def returns(self) -> Tensor:
        """[K, S + 1, E]: undiscounted returns."""
        ...

    @property
    def success_rates(self) -> Tensor | None:
        """[K, S + 1]: fraction of episodes with a success; None if no environment reports success."""
        ...

    @property
    def rollouts(self) -> list[Any]:
        """The S + 1 rollouts (see `metarl.rollout.rollout.Rollout`)."""
        ...

    @property
    def score(self) -> float:
        """The criterion for the best state of a run; higher is better."""
        ...

    def policy_for(self, task: int) -> AdaptedPolicy | RecurrentPolicy:
        """The policy adapted to one of the tasks, on the CPU."""
        ...


class Algorithm(Protocol):
    """A module."""

    __name__: str
    Config: type[Any]
    State: type[Any]

    def init(self, config: Any, policy: Any, family: TaskFamily, seed: int, device: torch.device | str = "cpu") -> Any:
        """The state before the first iteration, determined by `seed`. Raises ValueError for a policy it cannot
        train."""
        ...

    def iteration(self, setup: Setup[Any], state: Any) -> tuple[Any, dict[str, Any]]:
        """One meta-iteration, a function of `setup` and `state` only -> the next state and statistics
        (docs/logging.md)."""
        ...

    def evaluate(self, setup: Setup[Any], state: Any, tasks: Tasks, episodes: int, step_sizes: Sequence[Any]) -> Result:
        """Adapt to `tasks`, one unit for each entry of `step_sizes` (None if units have no size)."""
        ...
