"""Loading a learner from a checkpoint or a run directory (if necessary, from an older checkpoint), the content of its
checkpoints, and pickling."""

import copy
import dataclasses
import math
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from metarl import checkpoint
from metarl.checkpoint import CheckpointError, DamagedError, reading
from metarl.parallel import resolve_device
from metarl.splits import VALIDATION
from metarl.training.contract import Kind
from metarl.training.directory import BEST, CONFIG, LATEST, PREVIOUS, RunDirectory, read_config
from metarl.warn import warn_caller

BEFORE_IT_EXISTED = {"inner_adam_eps": ("inner_optimizer", 1e-3)}
"""What the code did before a setting existed, where that is not its default: the setting -> one of the same algorithms
that is older, and the value that a file without the setting means."""

# ---------------------------------------------------------------------------------------------------------------------
# Saving


def packed(kind: Kind, described: dict[str, Any], state: Any, best: float | None) -> tuple[dict[str, Tensor], Any]:
    """What a checkpoint of a learner holds: tensors, and what its header says.

    Args:
        described: what the learner's `describe` says.
        best: the highest score so far.
    """
    tensors, rest = checkpoint.pack_state(state)
    return tensors, {"kind": kind.name, **described, "state": rest, "best_score": best, "chosen_on": VALIDATION}


def settings_as_data(config: Any) -> dict[str, Any]:
    """Settings, a dataclass, as they come back from JSON."""
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(config).items()}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load(kind: Kind, path: Path, make: Callable[[Path, dict[str, Any]], Any]) -> Any:
    """The learner of a checkpoint, or of a run's directory: of its latest checkpoint; of the previous one where that is
    damaged, with a UserWarning; or as its settings begin, where it was killed before its first checkpoint.

    Args:
        make: file and what its header says -> the learner before training.

    Raises:
        CheckpointError: a file that is damaged, of another kind of learner, or does not fit.
    """

    def made(file: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Any:
        with reading(file, tensors):
            learner = make(file, meta)
            like = learner.state
            if meta["state"] is not None:
                learner.state = checkpoint.unpack_state(type(like), tensors, meta["state"], like, learner.device)
            learner._best_score = comparable_score(meta)
        return learner

    def from_file(file: Path) -> Any:
        tensors, meta = checkpoint.load(file)
        if meta.get("kind") != kind.name:
            raise CheckpointError(f"{file} holds a {meta.get('kind')}, not a {kind.name}")
        return made(file, tensors, meta)

    if not path.is_dir():
        learner = from_file(path)
        learner._run_dir = path.parent.resolve()
        return learner
    learner = made(path / CONFIG, {}, _start_of(path, kind)) if _without_checkpoint(path) else _newest(path, from_file)
    learner._run_dir = path.resolve()
    return learner


def _newest(path: Path, from_file: Callable[[Path], Any]) -> Any:
    """The learner of a run's latest checkpoint, or of the previous one where that is damaged."""
    latest, previous = path / LATEST, path / PREVIOUS
    try:
        return from_file(latest)
    except CheckpointError as error:
        if not previous.exists() or not (isinstance(error, DamagedError) or not latest.exists()):
            raise
        try:
            learner = from_file(previous)
        except CheckpointError:
            raise error from None
        warn_caller(f"{error}. Instead of it {previous} is used, of iteration {learner.state.iteration}")
    learner._latest_is_damaged = True
    return learner


def _without_checkpoint(path: Path) -> bool:
    """Whether a run at `path` was killed before its first checkpoint."""
    if any((path / name).exists() for name in (LATEST, PREVIOUS, BEST)) or not (path / CONFIG).exists():
        return False
    return not RunDirectory(path).metrics()


def _start_of(path: Path, kind: Kind) -> dict[str, Any]:
    """What a checkpoint of iteration 0 would say, from config.json."""
    found = read_config(path, kind.entries)
    if "started_from" in found:
        raise CheckpointError(f"{path} has no checkpoint yet, and its run was to start from what another learner has "
                              "learned: start it again the way it was started")  # fmt: skip
    return {**found, "state": None, "best_score": None}


def saved_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings in a file, so that a run of an earlier version goes on as it was. Settings that the file does not
    have keep their defaults, but for those in `BEFORE_IT_EXISTED`."""
    return {name: value for name, (older, value) in BEFORE_IT_EXISTED.items() if older in config} | config


def comparable_score(meta: dict[str, Any]) -> float | None:
    """The best score so far, if later ones can be compared with it: earlier versions chose the best state on test
    tasks, and say nothing of it."""
    score = checked_score(meta["best_score"])
    return score if meta.get("chosen_on") == VALIDATION else None


def checked_score(value: Any) -> float | None:
    """The best score so far. Raises DamagedError for what is no number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise DamagedError(f"its best_score is {value!r}, which is no number")
    return float(value)


# ---------------------------------------------------------------------------------------------------------------------
# Pickles


def portable(learner: Any) -> dict[str, Any]:
    """A learner's attributes for pickle, with the tensors of its state on the CPU.

    Raises:
        TypeError: the family can neither be pickled nor copied.
    """
    family = learner.family
    try:
        cloudpickle.dumps(family)  # takes what pickle takes, and more
    except Exception as error:  # whatever its own methods do wrong
        try:
            copy.deepcopy(family)
        except Exception:
            raise TypeError(f"the learner's family {family.id!r} can be neither pickled nor copied: {error}. Keep open "
                            "files, locks and simulators out of it, and build them in make") from None  # fmt: skip
    return vars(learner) | {"state": checkpoint.on_device(learner.state, "cpu")}


def restore(learner: Any, attributes: dict[str, Any]) -> None:
    """Give `learner` these attributes, on the CPU if its GPU is not there."""
    try:
        device = resolve_device(attributes["device"])
    except ValueError:
        device = torch.device("cpu")
    state = checkpoint.on_device(attributes["state"], device)
    vars(learner).update(attributes | {"device": device, "state": state})
