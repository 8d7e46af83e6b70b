"""MAML with a vanilla policy-gradient outer step: one Adam step per iteration.

Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400, algorithm 3, whose outer step is gradient ascent.

One iteration, top to bottom:
    tasks                     K tasks from the training split
    data_0 .. data_{S-1}      roll out, step each task's parameters on its own data, repeat
    data_S                    roll out the adapted policies
    outer step                one Adam step on the adapted policies' policy gradient, through the S inner steps
"""

import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
    """Settings of MAML with a policy-gradient outer step."""

    def __post_init__(self) -> None:
        GradientSettings.__post_init__(self)
        AdamSettings.__post_init__(self)


def on_policy(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """The policy-gradient loss. The only step is taken at the policy that acted, so no importance ratio is needed."""
    return losses.policy_gradient(log_prob, advantage, mask)


@threads_over_tasks
def iteration(setup: Setup[Config], state: State) -> tuple[State, dict[str, Any]]:
    """One meta-iteration, a function of `setup` and `state` only -> the next state and statistics (docs/logging.md)."""
    config, policy = setup.config, setup.policy
    start, state = time.perf_counter(), surveyed(setup, state)
    found = experience(setup, state)
    parts = objectives(config, policy, found.data, state, Outer(on_policy))
    meta, memory, outer = adam_steps(config, parts, trained(config, state), state.optimizer, state.iteration, steps=1)
    new = advance(config, state, found, meta, memory)
    stats = found.statistics(config) | learned_statistics(new)
    stats |= {f"outer/{name}": value for name, value in outer.items()}
    stats |= {"time/rollout": found.seconds, "time/update": time.perf_counter() - start - found.seconds}
    return new, stats
