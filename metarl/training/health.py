"""Warnings derived from a run's statistics during training: that nothing is learned, or that returns get worse."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.training.metrics import numbered

FIRST_LOOK = 10
"""Iterations after which a run without any signal is reported; one that ends earlier is reported at its end."""
FEWEST = 9
"""Iterations that it takes to tell a fall from noise: three windows of three."""
_TOLERANCE = 7.0
"""Standard errors of the difference of two windows: noise alone, and the choice of the best of many windows, stay
below it (see tests/training/test_health.py)."""


_START_TOLERANCE = 5.0
"""The same for the first two iterations, which are not chosen among many: a run may be ruined by its first update."""


class Health:
    """Watches the statistics of one call of `learn`; each kind of trouble is reported once."""

    def __init__(self) -> None:
        self._seen: list[Mapping[str, Any]] = []
        self._curve: list[float] = []
        self._reported: set[str] = set()
        self._next_look = 2 * FIRST_LOOK

    def after(self, stats: Mapping[str, Any]) -> list[str]:
        """What is to be reported after an iteration with these statistics."""
        self._curve.append(_score(stats))
        if len(self._seen) < FIRST_LOOK:
            self._seen.append(stats)
        found = []
        n = len(self._curve)
        if n == FIRST_LOOK:
            found.append(("signal", no_signal(self._seen)))
        if n == self._next_look:
            self._next_look += max(5, n // 4)
            found.append(("fall", fall(self._curve, stats)))
        return self._new(found)

    def at_end(self) -> list[str]:
        """What is to be reported when training has ended."""
        if not self._seen:
            return []
        found = [("signal", no_signal(self._seen))] if len(self._curve) <= FIRST_LOOK else []
        return self._new([*found, ("fall", fall(self._curve, self._seen[-1]))])

    def _new(self, found: Sequence[tuple[str, str | None]]) -> list[str]:
        new = [(kind, text) for kind, text in found if text is not None and kind not in self._reported]
        self._reported |= {kind for kind, _ in new}
        return [text for _, text in new]


def no_signal(seen: Sequence[Mapping[str, Any]]) -> str | None:
    """The warning about a run whose first iterations are `seen` if none of them had anything to learn from."""
    n = len(seen)
    moved = [stats.get("outer/gradient_norm", stats.get("outer/step_norm", math.inf)) for stats in seen]
    returns = {tuple(value for name, value in stats.items() if name.startswith("return/")) for stats in seen}
    refused = [stats.get("outer/accepted") in (0, False) and stats.get("outer/accepted") is not None for stats in seen]
    value = _score(seen[-1])
    remedy = (
        "rewards that differ between good and bad actions are needed: a denser reward, longer episodes, or more "
        "exploration (init_std, episodes). See return/ in the log"
    )
    if n >= 2 and len(returns) == 1 and returns != {()}:
        return f"nothing to learn from: every mean return of the first {n} iterations is {value:g}; {remedy}"
    if all(norm == 0 for norm in moved):
        of = "iteration is" if n == 1 else f"{n} iterations is"
        return f"nothing to learn from: the meta-gradient of the first {of} zero, mean return {value:g}; {remedy}"
    if n >= 3 and all(refused):
        return (
            f"nothing was learned: the line search accepted none of the first {n} meta-updates; try a smaller max_kl, "
            "a larger damping, or more episodes and tasks for a less noisy gradient"
        )
    return None


def fall(curve: Sequence[float], stats: Mapping[str, Any]) -> str | None:
    """What to say of the returns after adaptation (or minus the losses) so far if they have clearly fallen: below
    where they began, or by more than half of what had been gained."""
    x = np.asarray(curve)
    n = len(x)
    if n < FEWEST or not np.isfinite(x).all():
        return None
    width = max(3, n // 10)
    sums = np.concatenate([[0.0], np.cumsum(x)])
    windows = (sums[width:] - sums[:-width]) / width
    first, best, last = windows[0], windows.max(), windows[-1]
    squares = np.sort(np.diff(x) ** 2)[:-1]  # the largest may be the fall itself
    noise = math.sqrt(squares.mean() / 2)
    enough = max(_TOLERANCE * noise * math.sqrt(2 / width), (best - first) / 2, 1e-6 * abs(best))
    if best - last <= enough:
        start = _lost_at_once(x, noise)
        if start is None:
            return None
        best, last, width = start, x[n // 2 :].mean(), n - n // 2
    loss = _is_loss(stats)
    what, sign = ("query loss", -1.0) if loss else ("return after adaptation", 1.0)
    knob = "outer_lr" if loss or "outer/lr" in stats else "max_kl" if "outer/accepted" in stats else "outer step"
    return (
        f"training gets worse: the mean {what} was {sign * best:.4g} at its best and is {sign * last:.4g} over the "
        f"last {width} of {n} iterations; try a smaller {knob} or inner_lr; the best state of a run directory is kept "
        "in best.safetensors"
    )


def _lost_at_once(x: np.ndarray, noise: float) -> float | None:
    """The mean of the first two iterations, if it is far above that of the second half; else None."""
    start, half = float(x[:2].mean()), x[len(x) // 2 :]
    bound = _START_TOLERANCE * noise * math.sqrt(1 / 2 + 1 / len(half))
    return start if start - half.mean() > max(bound, 1e-6 * abs(half.mean())) else None


def _is_loss(stats: Mapping[str, Any]) -> bool:
    return "loss/query" in stats


def _score(stats: Mapping[str, Any]) -> float:
    """The mean return after adaptation, of a whole trial, or minus the query loss: higher is better."""
    if _is_loss(stats):
        return -float(stats["loss/query"])
    if "return/trial" in stats:
        return float(stats["return/trial"])
    returns = list(numbered(stats, "return/step_"))
    return float(stats[returns[-1]]) if returns else math.nan
