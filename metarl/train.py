"""Repeat, log, checkpoint, evaluate. Nothing of any algorithm.

A run is a directory:

    config.json            everything needed to start the run again, and the versions it ran with
    metrics.csv            one row per meta-iteration; events.out.tfevents.*: the same for TensorBoard
    latest.safetensors     the state after the newest checkpointed iteration
    best.safetensors       the state with the best periodic evaluation
    evaluation/            what `metarl evaluate` wrote

What each logged number means stands in docs/logging.md.
"""

import csv
import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.progress
from rich.console import Console

from metarl.checkpoint import write_json

LATEST, BEST = "latest.safetensors", "best.safetensors"
METRICS, CONFIG = "metrics.csv", "config.json"

Stats = dict[str, Any]


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("metarl-torch", "torch", "gymnasium", "numpy", "stable-baselines3")
    return {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in names}}


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def create(self, config: dict[str, Any]) -> None:
        """Start a new run. Raises ValueError if the directory holds something already."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(
                f"{self.path} is not empty. Continue the run in it with `metarl train --resume {self.path}`, or choose "
                "another directory"
            )
        write_json(self.path / CONFIG, config)

    def open_logger(self, up_to_iteration: int) -> Any:
        """A stable-baselines3 Logger to CSV and TensorBoard that goes on after `up_to_iteration`."""
        from stable_baselines3.common.logger import CSVOutputFormat, KVWriter, Logger, TensorBoardOutputFormat

        rows = [row for row in self.metrics() if row["iteration"] <= up_to_iteration]
        formats: list[KVWriter] = [CSVOutputFormat(str(self.path / METRICS))]
        for row in rows:  # opening the file emptied it
            formats[0].write({key: "" if value is None else value for key, value in row.items()}, {})
        if importlib.util.find_spec("tensorboard"):
            formats.append(TensorBoardOutputFormat(str(self.path)))
        return Logger(str(self.path), formats)

    def metrics(self) -> list[dict[str, Any]]:
        """The logged rows; numbers as int or float, None where a row has no value."""
        path = self.path / METRICS
        if not path.exists():
            return []
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{key: _number(text) for key, text in row.items()} for row in rows if _number(row["iteration"])]


def _number(text: str | None) -> int | float | None:
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError:
        return {"True": 1, "False": 0}.get(text, None) if text in ("True", "False") else float(text)


def train(
    step: Callable[[], Stats],
    iterations: int,
    start: int,
    *,
    evaluate: Callable[[], Stats] | None,
    eval_every: int,
    save: Callable[[str, float | None], None] | None,
    checkpoint_every: int,
    logger: Any = None,
    best: float | None = None,
    callback: Callable[[Stats], bool | None] | None = None,
    progress_bar: bool = False,
) -> float | None:
    """Run meta-iterations `start + 1` to `start + iterations`.

    Args:
        step: does one iteration, returns its statistics.
        evaluate: returns statistics with a `"eval/score"`; called every `eval_every` iterations and after the last.
        save: writes a checkpoint under the name it is given; also gets the best score so far.
        best: the best score so far.
        callback: gets every iteration's statistics; returning False stops the training.

    Returns:
        The best score. An exception (Ctrl-C too) first saves the state after the last whole iteration.
    """
    last, done = start + iterations, start
    with _Display(last, start, progress_bar) as display:
        try:
            for done in range(start + 1, last + 1):
                stats = {"iteration": done, **step()}
                if evaluate is not None and (done % eval_every == 0 or done == last):
                    stats |= evaluate()
                    display.evaluated(stats)
                    if best is None or stats["eval/score"] > best:
                        best = stats["eval/score"]
                        if save is not None:
                            save(BEST, best)
                if logger is not None:
                    for key, value in stats.items():
                        logger.record(key, float(value) if isinstance(value, bool) else value)
                    logger.dump(done)
                if save is not None and (done % checkpoint_every == 0 or done == last):
                    save(LATEST, best)
                display.advance(stats)
                if callback is not None and callback(stats) is False:
                    break
        except BaseException:
            if save is not None:
                save(LATEST, best)
            raise
    if save is not None:
        save(LATEST, best)
    return best


class _Display:
    """The live line of progress: iteration, returns, speed, where the time goes, time left."""

    def __init__(self, total: int, start: int, enabled: bool):
        self.enabled, self.steps, self.began = enabled, 0, time.perf_counter()
        self.progress = rich.progress.Progress(
            rich.progress.TextColumn("iteration"), rich.progress.MofNCompleteColumn(), rich.progress.BarColumn(24),
            rich.progress.TextColumn("{task.description}"), rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"), rich.progress.TimeRemainingColumn(),
            console=Console(), disable=not enabled, speed_estimate_period=60.0,
        )  # fmt: skip
        self.bar = self.progress.add_task("", total=total, completed=start)

    def __enter__(self) -> "_Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, stats: Stats) -> None:
        post = max((k for k in stats if k.startswith("return/step_")), key=lambda k: int(k.rpartition("_")[2]))
        rollout, update = stats["time/rollout"], stats["time/update"]
        share = rollout / max(rollout + update, 1e-9)
        text = (f"return {stats['return/step_0']:.1f} → [bold]{stats[post]:.1f}[/]  "
                f"{stats['time/steps_per_second']:,.0f} steps/s  rollout {share:.0%} update {1 - share:.0%} ")
        self.progress.update(self.bar, advance=1, description=text)

    def evaluated(self, stats: Stats) -> None:
        if self.enabled:
            curve = " → ".join(f"{v:.2f}" for k, v in stats.items() if k.startswith("eval/step_"))
            self.progress.console.print(f"iteration {stats['iteration']:>5}: return on test tasks {curve}",
                                        highlight=False)  # fmt: skip
