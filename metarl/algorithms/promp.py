"""ProMP: MAML-PPO with the low-variance curvature estimator and a KL penalty on the pre-adaptation policies.

Proximal meta-policy search, Rothfuss et al. 2019, https://arxiv.org/abs/1810.06784, section 6, eq. 12-15.

One iteration, top to bottom:
    tasks                     K tasks from the training split
    data_0 .. data_{S-1}      roll out, step each task's parameters on its own data, repeat
    data_S                    roll out the adapted policies
    outer step                several Adam steps on the clipped surrogate of the adapted policies plus a penalty on
                              the KL divergence of the policies before each inner step from those that acted; the
                              inner step is differentiated by the low-variance curvature estimator
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from metarl.arguments import check_not_negative, check_positive, check_whole
from metarl.formulas import losses
from metarl.inner.loop import advance, evaluate, experience, surveyed
from metarl.inner.settings import AdamSettings, GradientSettings
from metarl.inner.state import State, learned_statistics
from metarl.outer.adam import adam_init, adam_steps
from metarl.outer.objective import Outer, objectives, trained
from metarl.parallel import threads_over_tasks
from metarl.rollout.setup import Setup

__all__ = ["Config", "State", "evaluate", "init", "iteration"]

init = adam_init


@dataclass(frozen=True)
class Config(AdamSettings, GradientSettings):
    """Settings of ProMP."""

    inner_gradient: Literal["policy_gradient", "lvc", "dice", "loaded_dice"] = "lvc"
    """The inner gradient estimator, which determines what the outer loop differentiates (see `metarl train maml_trpo
    --help`): "lvc", in ProMP."""
    epochs: int = 5
    """Adam steps per meta-iteration, each on all of its data."""
    clip: float = 0.3
    """Clip range of the surrogate: an adapted policy's probability ratios further than this from 1 bring no further
    gain."""
    inner_kl: float = 5e-4
    """Weight of the KL divergence between the policies that acted before each inner step and those of the updated
    meta-parameters. It keeps the inner steps' data nearly on-policy over the epochs."""

    def __post_init__(self) -> None:
        GradientSettings.__post_init__(self)
        AdamSettings.__post_init__(self)
        check_whole(self, epochs=1)
        check_positive(self, "clip")
        check_not_negative(self, "inner_kl")


@threads_over_tasks
def iteration(setup: Setup[Config], state: State) -> tuple[State, dict[str, Any]]:
    """One meta-iteration, a function of `setup` and `state` only -> the next state and statistics (docs/logging.md)."""
    config, policy = setup.config, setup.policy
    start, state = time.perf_counter(), surveyed(setup, state)
    found = experience(setup, state)
    parts = objectives(
        config, policy, found.data, state, Outer(partial(losses.clipped_surrogate, clip=config.clip), config.inner_kl)
    )
    meta, memory, outer = adam_steps(
        config, parts, trained(config, state), state.optimizer, state.iteration, config.epochs
    )
    new = advance(config, state, found, meta, memory)
    stats = found.statistics(config) | learned_statistics(new)
    stats |= {f"outer/{name}": value for name, value in outer.items()}
    stats |= {"time/rollout": found.seconds, "time/update": time.perf_counter() - start - found.seconds}
    return new, stats
