"""Reptile: moves the initialisation towards the result of several inner steps, without a meta-gradient.

Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999, algorithms 1 and 2.

One iteration, top to bottom:
    tasks                     K tasks from the training split
    data_0 .. data_{S-1}      roll out, step each task's parameters on its own data, repeat
    outer step                move the initialisation towards the adapted parameters: once, towards their mean over the
                              tasks (batched), or after each task in turn (serial)

    Parameters that do not adapt keep their initial values; so does a Gaussian policy's standard deviation unless
    `adapt_std` is set. Only the inner losses are differentiated. With one inner step, Reptile is joint training on all
    tasks; further steps add a gradient that increases the agreement between a task's batches (section 5 of the paper).
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
    """Inner gradient steps during training, each on new episodes."""
    outer_lr: float = 0.5
    """Fraction of the distance to the adapted parameters by which the initialisation moves; 1 moves it all the way."""
    serial: bool = False
    """Move after every task instead of once, by the mean over all tasks."""
    anneal_over: int = 0
    """Anneal `outer_lr` to `anneal_to` times its initial value over this many iterations, by a cosine schedule; 0 keeps
    it constant."""
    anneal_to: float = 0.01
    """Final factor of that schedule."""

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
    """One meta-iteration, a function of `setup` and `state` only -> the next state and statistics (docs/logging.md)."""
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
