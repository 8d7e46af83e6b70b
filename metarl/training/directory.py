"""The files of one run.

    config.json            everything needed to start the run again, and the versions it ran with
    metrics.csv            one row per meta-iteration; events.out.tfevents.*: the same for TensorBoard
    latest.safetensors     the state after the newest checkpointed iteration
    previous.safetensors   the state that was the latest before it
    best.safetensors       the state with the best periodic evaluation
    evaluation/            what `metarl evaluate` wrote

docs/reliability.md describes the guarantees.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metarl import checkpoint
from metarl.checkpoint import CheckpointError, DamagedError, read_json, write_json
from metarl.families.saved import same_signature
from metarl.training.event_files import tensorboard_writer
from metarl.training.lock import LOCK, DirectoryInUseError, DirectoryLock
from metarl.training.metrics import MetricsFile, Row, read_metrics
from metarl.warn import warn_caller

LATEST, PREVIOUS, BEST = "latest.safetensors", "previous.safetensors", "best.safetensors"
METRICS, CONFIG = "metrics.csv", "config.json"
_EVENTS = "events.out.tfevents."
ENTRIES = {"iterations": int, "schedule": dict, "algorithm": str, "family": dict, "config": dict, "seed": int}
"""What config.json of a `MetaLearner` has at least."""


class RunDirectoryError(OSError):
    """A run directory that no longer exists."""


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("metarl-torch", "torch", "gymnasium", "numpy", "stable-baselines3")
    return {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in names}}


def resume_command(path: Path) -> str:
    """The command that continues the run in a directory."""
    return f"metarl train --resume {shlex.quote(str(path))}"


class RunDirectory:
    """The files of one run. Error messages say how to go on with it: `resume` of its path."""

    def __init__(self, path: Path | str, resume: Callable[[Path], str] = resume_command):
        self.path = Path(path)
        self._resume = resume(self.path)
        self._config: dict[str, Any] = {}
        self._identity: tuple[int, int] | None = None
        self._metrics: MetricsFile | None = None
        self._replacement: tuple[int, int] | None = None  # of the directory made where the run's own is gone
        self._continued = False
        self._lock = DirectoryLock(self.path)

    # -----------------------------------------------------------------------------------------------------------------
    # Beginning

    def create(self, config: dict[str, Any]) -> None:
        """Start a new run. Raises ValueError if the directory holds something already, but for what a start that was
        killed before its first checkpoint left; DirectoryInUseError if another process trains in it."""
        if not self.is_free:
            raise ValueError(
                f"{self.path} is not empty. Continue the run in it with `{self._resume}`, or choose another directory"
            )
        self._lock.acquire()
        for path in self.path.iterdir():
            if path.name != LOCK:
                path.unlink()
        write_json(self.path / CONFIG, config)
        self._opened(config)

    @property
    def is_free(self) -> bool:
        """Whether a new run can begin here."""
        if not self.path.exists():
            return True
        return self.path.is_dir() and (not any(self.path.iterdir()) or self._never_started())

    def reopen(self, config: dict[str, Any], latest_is_damaged: bool = False) -> None:
        """Go on with the run that is here, described by `config`. Raises DirectoryInUseError if another process trains
        in it."""
        self._lock.acquire()
        checkpoint.remove_temporaries(self.path, {CONFIG, METRICS, LATEST, PREVIOUS, BEST})
        if latest_is_damaged and (self.path / LATEST).exists():  # so that it does not take the place of the previous
            os.replace(self.path / LATEST, self.path / "latest.damaged.safetensors")
        write_json(self.path / CONFIG, config)
        self._continued = True
        self._opened(config)

    def acquire(self) -> None:
        """Keep others from training here until `release`. Raises DirectoryInUseError if another process trains here."""
        if self.path.is_dir() or not self.path.exists():
            self._lock.acquire()

    def check_idle(self) -> None:
        """Raise DirectoryInUseError if another process trains here, whose state a learner loaded now would fall
        behind."""
        if self.path.is_dir():
            self._lock.acquire()
            self._lock.release()

    def release(self) -> None:
        """Let other processes train here."""
        self._lock.release()

    def _opened(self, config: dict[str, Any]) -> None:
        self._config, self._identity = config, self._found_identity()

    def _never_started(self) -> bool:
        """Whether nothing is here but what a run writes before its first checkpoint."""
        own = {CONFIG, METRICS, LOCK}
        names = [entry.name for entry in os.scandir(self.path)]
        left = [n for n in names if n not in own and not n.startswith((_EVENTS, *(f".{x}." for x in (*own, LATEST))))]
        began = CONFIG in names or any(n.startswith(f".{CONFIG}.") or n == LOCK for n in names)
        return not left and began and not self.metrics()

    # -----------------------------------------------------------------------------------------------------------------
    # Writing

    def write(self, name: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write a checkpoint under `name`. The latest one so far is kept as the previous one.

        If the directory is gone, a new one is created, so that the state is not lost; `check` then raises an error.

        Raises:
            RunDirectoryError: the directory is gone, and another run has taken its place.
        """
        if self.gone:
            self._begin_again()
        elif name == LATEST:
            if self._metrics is not None:
                self._metrics.sync()
            checkpoint.keep_previous(self.path / LATEST, self.path / PREVIOUS)
        checkpoint.save(self.path / name, tensors, meta)

    def _begin_again(self) -> None:
        """Make a directory where the run's own was."""
        found = self._found_identity()
        if found is not None and found == self._replacement:
            return
        self._lock.release()
        taken = found is not None
        try:
            self._lock.acquire()
        except DirectoryInUseError:
            taken = True
        if taken:
            raise RunDirectoryError(f"the run directory {self.path} was deleted or moved during training, and another "
                                    "run is there now: the present state is not saved")  # fmt: skip
        write_json(self.path / CONFIG, self._config)
        self._replacement = self._found_identity()

    @property
    def gone(self) -> bool:
        """Whether the directory, or what it is recognised by, was deleted or moved since the run began."""
        return self._identity is not None and self._identity != self._found_identity()

    def check(self) -> None:
        """Raise RunDirectoryError if the directory is gone."""
        if self.gone:
            raise RunDirectoryError(
                f"the run directory {self.path} was deleted or moved during training. The present state is saved in a "
                f"new one under that name, without the earlier metrics: go on with {self._resume}"
            )

    def _found_identity(self) -> tuple[int, int] | None:
        try:
            (self.path / CONFIG).stat()
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    # -----------------------------------------------------------------------------------------------------------------
    # Metrics

    def open_logger(self, up_to_iteration: int) -> Any:
        """A stable-baselines3 Logger to CSV and TensorBoard that goes on after `up_to_iteration`."""
        from stable_baselines3.common.logger import KVWriter, Logger

        class Metrics(MetricsFile, KVWriter):
            """What the Logger takes for one of its own."""

        path = self.path / METRICS
        rows, problems = read_metrics(path)
        rows = [row for row in rows if row["iteration"] <= up_to_iteration]  # type: ignore[operator]
        problems += self._missing(rows, up_to_iteration) if self._continued and not problems else []
        if problems:
            kept = ""
            if path.exists():
                shutil.copyfile(path, path.with_name("metrics.damaged.csv"))
                kept = "; it is kept as metrics.damaged.csv"
            warn_caller(f"{path} {', '.join(problems)}{kept}, and training goes on with the {len(rows)} rows that can "
                        "be read")  # fmt: skip
        self._metrics = Metrics(path, rows)
        formats: list[Any] = [self._metrics]
        if importlib.util.find_spec("tensorboard"):
            formats.append(tensorboard_writer(self.path, up_to_iteration))
        return Logger(str(self.path), formats)

    @staticmethod
    def _missing(rows: list[Row], up_to: int) -> list[str]:
        first = rows[0]["iteration"] if rows else up_to
        missing = sorted({*range(max(1, first), up_to + 1)} - {row["iteration"] for row in rows})  # type: ignore
        return [f"lacks the rows of iterations {missing[0]} to {missing[-1]}"] if missing else []

    def metrics(self) -> list[Row]:
        """The logged rows that can be read; numbers as int or float, None where a row has no value."""
        return read_metrics(self.path / METRICS)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_config(path: Path, kinds: Mapping[str, type] = ENTRIES) -> dict[str, Any]:
    """config.json of the run at `path`, which has the entries `kinds`. Raises CheckpointError if it is missing or not
    what a run writes."""
    file = path / CONFIG
    found = read_json(file)
    if not isinstance(found, dict):
        raise DamagedError(f"{file} is damaged: it holds {found!r:.40}, not a run's settings")
    for name, kind in kinds.items():
        if name not in found:
            raise DamagedError(f"{file} is damaged: it lacks {name!r}")
        if type(found[name]) is not kind:
            raise DamagedError(f"{file} is damaged: {name!r} is {found[name]!r:.40}")
    return found


def check_same_settings(path: Path, found: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise CheckpointError where the config.json at `path` says `found` of settings that the checkpoint has as
    `own`. Settings that it does not know are those of a version before them."""
    config = {**own["config"], **found.get("config", {})}
    for name in sorted({*config, *own["config"]}):
        if name not in own["config"]:
            raise CheckpointError(f"{path} has the setting {name!r}, which this version does not know: upgrade metarl, "
                                  "or take it out")  # fmt: skip
        if config[name] != own["config"][name]:
            _refuse(path, name, config[name], own["config"][name])
    for name in own.keys() - {"config", "algorithm_source"}:  # loading has checked where the algorithm comes from
        if name in found and found[name] != own[name]:
            if name == "family" and same_signature(found[name], own[name]):
                continue
            _refuse(path, name, found[name], own[name])


def check_same_family(path: Path, was: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise CheckpointError if the run at `path`, trained on the family with the signature `was`, cannot go on with
    that of `now`: to evaluate on another one with the same spaces is fine, to mix two in one run is not."""
    now = json.loads(json.dumps(now))
    if was is None or same_signature(was, now):
        return
    kinds = [x["made"] or {"id": f"the object {x['id']}", "kwargs": {}} for x in (was, now)]
    told = [f"{one['id']} made with {one['kwargs']}" if one["kwargs"] else one["id"] for one in kinds]
    if was["task_space"] != now["task_space"]:
        told = [f"{text} with tasks in {x['task_space']}" for text, x in zip(told, (was, now), strict=True)]
    raise CheckpointError(f"{path} was trained on {told[0]}, and cannot go on with {told[1]}: a run keeps its family. "
                          "Leave the family out, or start a new run with it from what this one has learned "
                          "(--start-from, start_from)")  # fmt: skip


def _refuse(path: Path, name: str, found: Any, own: Any) -> None:
    raise CheckpointError(
        f"{path} says {name}={found!r}, the checkpoint beside it {own!r}: a run keeps its settings. Put that back, or "
        "start a new run with the other value (start_from, or --start-from, takes over what this one has learned)"
    )
