"""The training loop: repeat, log, checkpoint, evaluate, independently of the algorithm.

The files are those of `metarl.training.directory`; docs/logging.md explains the logged numbers.
"""

import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import rich.progress
from rich.console import Console

from metarl.checkpoint import CheckpointError, in_own_memory, not_finite_in
from metarl.training.contract import Stats
from metarl.training.directory import BEST, CONFIG, LATEST, METRICS, PREVIOUS, RunDirectory, versions
from metarl.training.health import Health
from metarl.training.metrics import numbered
from metarl.vector.survival import STOPPING
from metarl.warn import warn_caller

__all__ = ["BEST", "CONFIG", "LATEST", "METRICS", "PREVIOUS", "Outputs", "Progress", "RunDirectory", "Schedule",
           "in_one_piece", "train", "versions"]  # fmt: skip

S = TypeVar("S")


def returns_and_speed(stats: Stats) -> str:
    """An iteration of reinforcement learning in a few words: returns, speed, where the time goes."""
    post = list(numbered(stats, "return/step_"))[-1]
    rollout, update = stats["time/rollout"], stats["time/update"]
    share = rollout / max(rollout + update, 1e-9)
    last = f"rollout {share:.0%}"
    if "success/step_0" in stats:  # both do not fit into 80 columns
        last = f"success {stats['success/step_0']:.0%} → [bold]{stats[post.replace('return', 'success')]:.0%}[/]"
    return (
        f"return {stats['return/step_0']:.1f} → [bold]{stats[post]:.1f}[/]  "
        f"{stats['time/steps_per_second']:,.0f} steps/s  {last}"
    )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Meta-iterations `start + 1` to `start + iterations`, and what is done every so often."""

    iterations: int
    start: int = 0
    eval_every: int = 0
    """Iterations between evaluations; the last iteration is always followed by one; 0 disables them."""
    checkpoint_every: int = 10

    @property
    def last(self) -> int:
        return self.start + self.iterations

    def evaluates(self, iteration: int) -> bool:
        return self.eval_every > 0 and (iteration % self.eval_every == 0 or iteration == self.last)


@dataclasses.dataclass(frozen=True)
class Outputs(Generic[S]):
    """Where training sends its results."""

    keep: Callable[[S, float | None], None]
    """Gets the state and the best score after every iteration that counts."""
    save: Callable[[str, S, float | None], None] | None = None
    """Writes a checkpoint under the name it is given, of a state and the best score so far."""
    logger: Any = None
    """Has `record(name, number)` and `dump(iteration)`."""

    def checkpoint(self, name: str, state: S, best: float | None) -> None:
        if self.save is not None:
            self.save(name, state, best)

    def log(self, stats: Stats, iteration: int) -> None:
        if self.logger is not None:
            for key, value in stats.items():
                self.logger.record(key, float(value) if isinstance(value, bool) else value)
            self.logger.dump(iteration)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What the live line shows."""

    enabled: bool = False
    describe: Callable[[Stats], str] = returns_and_speed
    """An iteration's statistics in a few words."""
    measure: str = "return"
    """What `"eval/step_k"` are."""


def train(
    state: S,
    step: Callable[[S], tuple[S, Stats]],
    schedule: Schedule,
    outputs: Outputs[S],
    *,
    evaluate: Callable[[S], Stats] | None = None,
    best: float | None = None,
    callback: Callable[[Stats], bool | None] | None = None,
    progress: Progress = Progress(),
) -> None:
    """Run the meta-iterations of `schedule` from `state`.

    An iteration counts once it has been evaluated and logged. An interruption before that (including Ctrl-C) leaves the
    state of the previous iteration, which is saved: continuing from there gives the results of an uninterrupted run.

    Args:
        step: does one iteration -> the next state and statistics.
        evaluate: -> statistics with a `"eval/score"`.
        best: the best score so far.
        callback: gets every iteration's statistics; returning False stops the training.

    Warns:
        UserWarning: the numbers say that nothing is learned, or that training gets worse (see
            `metarl.training.health`).
    """
    health = Health()
    state = in_own_memory(state) if dataclasses.is_dataclass(state) else state
    with _Display(schedule, progress) as display:
        try:
            outputs.checkpoint(LATEST, state, best)  # from now on the run can be resumed, whatever kills it
            for done in range(schedule.start + 1, schedule.last + 1):
                new, stats = step(state)
                new = _checked(new, done)
                stats, score = {"iteration": done, **stats}, best
                if evaluate is not None and schedule.evaluates(done):
                    stats |= evaluate(new)
                    display.evaluated(stats)
                    if math.isfinite(stats["eval/score"]) and (best is None or stats["eval/score"] > best):
                        score = stats["eval/score"]
                        outputs.checkpoint(BEST, new, score)
                with in_one_piece():
                    outputs.log(stats, done)
                    state, best = new, score
                    outputs.keep(state, best)
                    if done % schedule.checkpoint_every == 0:
                        outputs.checkpoint(LATEST, state, best)
                display.advance(stats)
                for text in health.after(stats):
                    warn_caller(text)
                if callback is not None and callback(stats) is False:
                    break
            for text in health.at_end():
                warn_caller(text)
        finally:
            with in_one_piece():
                outputs.checkpoint(LATEST, state, best)


def _checked(state: S, iteration: int) -> S:
    """The state after `iteration`, in memory of its own. Raises CheckpointError before one that is not finite counts,
    so that it cannot take the place of the last good one."""
    if not dataclasses.is_dataclass(state):
        return state
    if (name := not_finite_in(state)) is not None:
        raise CheckpointError(f"iteration {iteration} made {name!r} not finite (NaN or infinity), so it does not "
                              "count: take smaller steps, or look at the rewards")  # fmt: skip
    return in_own_memory(state)


@contextlib.contextmanager
def in_one_piece() -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP until the block has finished.

    TensorBoard's writer counts what it has queued: interrupted in between, its `close` waits for ever.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread is interrupted
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    mended = {number: handler for number, handler in before.items() if callable(handler)}
    for number in mended:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in mended.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


class _Display:
    """The live line of progress: iteration, what `describe` says (returns, speed), time left."""

    def __init__(self, schedule: Schedule, line: Progress):
        self.line = line
        console = Console()
        more = [rich.progress.BarColumn(24)] if console.width >= 110 else []  # without it all fits into 80 columns
        self.progress = rich.progress.Progress(
            rich.progress.MofNCompleteColumn(), *more, rich.progress.TextColumn("{task.description}"),
            rich.progress.TextColumn("left"), rich.progress.TimeRemainingColumn(),
            console=console, disable=not line.enabled, speed_estimate_period=60.0,
        )  # fmt: skip
        self.bar = self.progress.add_task("", total=schedule.last, completed=schedule.start)

    def __enter__(self) -> "_Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.progress.stop()

    def advance(self, stats: Stats) -> None:
        self.progress.update(self.bar, advance=1, description=self.line.describe(stats))

    def evaluated(self, stats: Stats) -> None:
        if self.line.enabled:
            curve = " → ".join(f"{stats[name]:.2f}" for name in numbered(stats, "eval/step_"))
            rates = " → ".join(f"{stats[name]:.0%}" for name in numbered(stats, "eval/success_"))
            curve += f", success {rates}" if rates else ""
            line = f"iteration {stats['iteration']:>5}: {self.line.measure} on validation tasks {curve}"
            self.progress.console.print(line, highlight=False)
