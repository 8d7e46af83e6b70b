"""Reptile: the initialisation moves towards where several inner steps end; no meta-gradient.

Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999, algorithms 1 and 2.

One iteration, top to bottom:
    tasks                     K tasks from the training split
    data_0 .. data_{S-1}      roll out, step each task's parameters on its own data, repeat
    outer step                move the initialisation towards where the inner loop ended: the mean over the tasks
                              (batched), or after one task after the other (serial)

What does not adapt stays as it started: a Gaussian policy's standard deviation too, unless `adapt_std`.
Nothing is differentiated but the inner losses. With one inner step it is training on all tasks jointly; what further
steps add is the gradient of the agreement between a task's batches (section 5 of the paper).
"""

import time
from dataclasses import dataclass, replace
from typing import Any

from metarl.arguments import check_fraction, check_positive, check_whole
from metarl.inner.loop import Experience, advance, evaluate, experience, surveyed
from metarl.inner.settings import GradientSettings, cosine
from metarl.inner.state import State, init
from metarl.parallel import threads_over_tasks
from metarl.rollout.setup import Setup

__all__ = ["Config", "State", "evaluate", "init", "iteration"]

NEEDS_A_META_GRADIENT = {
    "learned_lr": "none", "learned_mask": False, "learned_std": True, "learned_noise": False, "learned_discount": False,
    "learned_lambda": False, "inner_gradient": "policy_gradient", "first_order": False, "first_order_until": 0,
    "multi_step_until": 0, "exploration": 0.0, "adapts": "all",
}  # fmt: skip


@dataclass(frozen=True)
class Config(GradientSettings):
    """Settings of Reptile."""

    inner_steps: int = 3
    """Inner gradient steps in training, each on fresh episodes."""
    outer_lr: float = 0.5
    """How far the initialisation moves towards the adapted parameters: 1 is all the way."""
    serial: bool = False
    """Move after every task instead of by the mean over all."""
    anneal_over: int = 0
    """Bring `outer_lr` down to `anneal_to` times itself over this many iterations, by a cosine; 0: constant."""
    anneal_to: float = 0.01
    """What it ends at, as a factor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, inner_steps=1, anneal_over=0)
        check_positive(self, "outer_lr")
        check_fraction(self, "anneal_to")
        for name, default in NEEDS_A_META_GRADIENT.items():
            if getattr(self, name) != default:
                raise ValueError(f"{name}={getattr(self, name)!r} needs a meta-gradient, and Reptile has none: only "
                                 f"what adapts is learned. Leave it at {default!r}")  # fmt: skip


@threads_over_tasks
def iteration(setup: Setup[Config], state: State) -> tuple[State, dict[str, Any]]:
    """One meta-iteration, from `setup` and `state` alone. -> the next state and statistics (see docs/logging.md)."""
    config = setup.config
    start, state = time.perf_counter(), surveyed(setup, state)
    lr = config.outer_lr * cosine(state.iteration, config.anneal_over, config.anneal_to)
    here, found = state, list[Experience]()
    rounds: list[int | None] = list(range(config.n_tasks)) if config.serial else [None]
    for k in rounds:
        found.append(experience(setup, here, only=k))
        moved = {name: value + lr * (found[-1].params[-1][name] - value).mean(0) for name, value in here.params.items()}
        here = replace(here, params=moved)
    rollouts = [rollout for one in found for rollout in one.rollouts]
    together = Experience(found[-1].params, rollouts, [], sum(one.seconds for one in found))
    new = advance(config, state, together, here.params)
    length = sum(float((new.params[name] - value).square().sum()) for name, value in state.params.items()) ** 0.5
    each = [one.statistics(config) for one in found]
    stats: dict[str, Any] = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    stats |= {"outer/step_norm": length, "outer/lr": lr}
    stats |= {"time/rollout": together.seconds, "time/update": time.perf_counter() - start - together.seconds}
    return new, stats
