"""Sizes of the inner steps that training did not take: chosen on validation tasks, never on those that are reported.

Training fixes the sizes of its own inner steps. What a further step should be, only a trial can tell: after a step as
long as the first most policies and networks overshoot, since they are nearly where they should be and their gradient is
noisier.
"""

import contextlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metarl.rollout.finite import NotFiniteError

FACTORS = (1.0, 0.5, 0.25, 0.125)
"""Tried on the usual size of a step."""
TASKS = 20
"""Validation tasks that each is tried on, where tasks are environments."""


@dataclass(frozen=True)
class Choice:
    """Step sizes, and how those that training does not have were chosen."""

    sizes: tuple[float, ...]
    """Of all steps."""
    tried: tuple[dict[float, float], ...]
    """For every step that was chosen, the sizes tried and the mean return (or what `measured` says) after it, in the
    order of the steps; not finite after a step that was too long to compute with."""
    tasks: int
    """Validation tasks."""
    env_steps: int = 0
    """Environment steps that the choice took; 0 where there are no environments."""
    measured: str = "return"
    """What the sizes were judged by."""

    def text(self) -> str:
        """One line for people."""
        first = len(self.sizes) - len(self.tried) + 1
        steps = f"step {first}" if len(self.tried) == 1 else f"steps {first} to {len(self.sizes)}"
        sizes = "size" if len(self.tried) == 1 else "sizes"
        cost = f" ({self.env_steps:,} environment steps)" if self.env_steps else ""
        return f"{sizes} of {steps} chosen on {self.tasks} validation tasks{cost}"

    def as_data(self) -> dict[str, Any]:
        """The same for a file; None in the place of what is not finite."""
        tried = [{"size": size, self.measured: value if math.isfinite(value) else None}
                 for step in self.tried for size, value in step.items()]  # fmt: skip
        return {"tasks": self.tasks, "env_steps": self.env_steps, "tried": tried, "steps_chosen": len(self.tried)}


@dataclass(frozen=True)
class Kept:
    """The choices that were made for a state, so that each is made once."""

    state: Any = None
    choices: Mapping[Hashable, Choice] = field(default_factory=dict)


def choose_once(kept: Kept, state: Any, key: Hashable, make: Callable[[], Choice]) -> tuple[Choice, Kept]:
    """The choice for `state` that is kept under `key`, made if there is none; and what is kept now. The choices for
    another state are dropped."""
    own = kept if kept.state is state else Kept(state)
    if key not in own.choices:
        own = Kept(state, {**own.choices, key: make()})
    return own.choices[key], own


def choose(
    play: Callable[[tuple[float, ...]], tuple[float, int]],
    usual: Sequence[float],
    known: int,
    tasks: int,
    measured: str = "return",
    higher_is_better: bool = True,
) -> Choice:
    """Take the first `known` sizes of `usual`, and for each later step, given those before it, the one of `FACTORS`
    times its usual size that does best.

    The same randomness serves every candidate, so that what differs is the size. A step that only does harm gets the
    smallest, and of equally good ones the smallest is taken.

    Args:
        play: step sizes -> what adapting to the validation tasks by these came to (the mean return, loss or accuracy
            after the last), and the environment steps that it took.
        measured: what that is called.
    """
    worst, best_of = (-math.inf, max) if higher_is_better else (math.inf, min)
    sizes, tried, env_steps = tuple(usual[:known]), list[dict[float, float]](), 0
    for size in usual[known:]:
        found: dict[float, float] = {}
        for factor in FACTORS:
            found[factor * size] = worst
            with contextlib.suppress(NotFiniteError):  # a step too long to compute with is the worst there is
                value, steps = play((*sizes, factor * size))
                env_steps += steps
                if math.isfinite(value):
                    found[factor * size] = value
        best = best_of(found.values())
        sizes = (*sizes, min(tried_size for tried_size, value in found.items() if value == best))
        tried.append(found)
    return Choice(sizes, tuple(tried), tasks, env_steps, measured)
