"""Sizes of the inner steps that training did not take: chosen on validation tasks, never on those that are reported.

Training fixes the sizes of its own inner steps. What a further step should be, only a trial can tell: after a step as
long as the first most policies overshoot, since they are nearly where they should be and their gradient is noisier.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metarl.rollout.finite import NotFiniteError

FACTORS = (1.0, 0.5, 0.25, 0.125)
"""Tried on the usual size of a step."""
TASKS = 20
"""Validation tasks that each is tried on."""


@dataclass(frozen=True)
class Choice:
    """Step sizes, and how those that training does not have were chosen."""

    sizes: tuple[float, ...]
    """Of all steps."""
    returns: tuple[dict[float, float], ...]
    """For every step that was chosen, the sizes tried and the mean return after it, in the order of the steps."""
    tasks: int
    """Validation tasks."""
    env_steps: int
    """Environment steps that the choice took."""

    def text(self) -> str:
        """One line for people."""
        first = len(self.sizes) - len(self.returns) + 1
        steps = f"step {first}" if len(self.returns) == 1 else f"steps {first} to {len(self.sizes)}"
        sizes = "size" if len(self.returns) == 1 else "sizes"
        return f"{sizes} of {steps} chosen on {self.tasks} validation tasks ({self.env_steps:,} environment steps)"

    def as_data(self) -> dict[str, Any]:
        """The same for a file; the return is None after a step that was too long to compute with."""
        tried = [{"size": size, "return": value if math.isfinite(value) else None}
                 for step in self.returns for size, value in step.items()]  # fmt: skip
        return {"tasks": self.tasks, "env_steps": self.env_steps, "tried": tried, "steps_chosen": len(self.returns)}


def choose(play: Callable[[tuple[float, ...]], Any], usual: Sequence[float], known: int, tasks: int) -> Choice:
    """Take the first `known` sizes of `usual`, and for each later step, given those before it, the one of `FACTORS`
    times its usual size with the best mean return after it.

    The same episodes' randomness serves every candidate, so that what differs is the size. A step that only does harm
    gets the smallest, and of equally good ones the smallest is taken.

    Args:
        play: step sizes -> the adaptation to the validation tasks, with `returns` [K, S + 1, E] and `rollouts`.
    """
    sizes, tried, env_steps = tuple(usual[:known]), list[dict[float, float]](), 0
    for size in usual[known:]:
        found: dict[float, float] = {}
        for factor in FACTORS:
            found[factor * size] = -math.inf
            with contextlib.suppress(NotFiniteError):  # a step too long to compute with is the worst there is
                adaptation = play((*sizes, factor * size))
                found[factor * size] = float(adaptation.returns[:, -1].mean())
                env_steps += sum(rollout.steps for rollout in adaptation.rollouts)
        best = max(found.values())
        sizes = (*sizes, min(tried_size for tried_size, value in found.items() if value == best))
        tried.append(found)
    return Choice(sizes, tuple(tried), tasks, env_steps)
