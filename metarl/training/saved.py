"""How a `MetaLearner` comes back: from one checkpoint, or from a run's directory, where an older one may have to do."""

import copy
import math
import numbers
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from metarl import checkpoint
from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.checkpoint import CheckpointError, DamagedError, reading
from metarl.families.saved import load_family
from metarl.parallel import resolve_device
from metarl.policies.kinds import described_policy
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import spaces_of
from metarl.splits import VALIDATION
from metarl.tasks import (
    TaskFamily,
)
from metarl.training.directory import (
    BEST,
    CONFIG,
    LATEST,
    PREVIOUS,
    RunDirectory,
    read_config,
)

KIND = "learner"
BEFORE_IT_EXISTED = {"inner_adam_eps": ("inner_optimizer", 1e-3)}
"""What the code did before a setting existed, where that is not its default: the setting -> one of the same algorithms
that is older, and the value that a file without the setting means."""


def load(
    kind: Any,
    path: Path,
    family: str | TaskFamily | None,
    device: torch.device,
    policy: nn.Module | AdaptedPolicy | None,
    workers: int | None,
    trust: bool,
    algorithm: Callable[[str], Any],
) -> Any:
    """What `MetaLearner.load` returns, which documents the arguments; `kind` is that class, and `algorithm` finds an
    algorithm by its name."""

    def from_file(file: Path) -> Any:
        tensors, meta = checkpoint.load(file)
        if meta.get("kind") != KIND:
            raise CheckpointError(f"{file} holds a {meta.get('kind')}, not a learner")
        return _made(kind, file, tensors, meta, family, device, policy, workers, trust, algorithm)

    if not path.is_dir():
        learner = from_file(path)
        learner._run_dir = path.parent.resolve()
        return learner
    if without_checkpoint(path):
        learner = _made(kind, path / CONFIG, {}, _start_of(path), family, device, policy, workers, trust, algorithm)
        learner._run_dir = path.resolve()
        return learner
    return of_run(path, from_file)


def of_run(path: Path, from_file: Callable[[Path], Any]) -> Any:
    """The learner of a run's latest checkpoint, or of the previous one where that is damaged, with a UserWarning."""
    latest, previous = path / LATEST, path / PREVIOUS
    try:
        learner = from_file(latest)
    except CheckpointError as error:
        if not previous.exists() or not (isinstance(error, DamagedError) or not latest.exists()):
            raise
        try:
            learner = from_file(previous)
        except CheckpointError:
            raise error from None
        warnings.warn(f"{error}. Instead of it {previous} is used, of iteration {learner.state.iteration}",
                      UserWarning, stacklevel=4)  # fmt: skip
        learner._latest_is_damaged = True
    learner._run_dir = path.resolve()
    return learner


def without_checkpoint(path: Path) -> bool:
    """Whether a run at `path` was killed before its first checkpoint."""
    if any((path / name).exists() for name in (LATEST, PREVIOUS, BEST)) or not (path / CONFIG).exists():
        return False
    return not RunDirectory(path).metrics()


def _start_of(path: Path) -> dict[str, Any]:
    """What a checkpoint of iteration 0 would say, from config.json."""
    found = read_config(path)
    if "started_from" in found:
        raise CheckpointError(f"{path} has no checkpoint yet, and its run was to start from what another learner has "
                              "learned: start it again with the command it was started with")  # fmt: skip
    return {**found, "state": None, "best_score": None}


def _made(
    kind: Any,
    path: Path,
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    family: str | TaskFamily | None,
    device: torch.device,
    policy: Any,
    workers: int | None,
    trust: bool,
    algorithm: Callable[[str], Any],
) -> Any:
    """The learner that the file at `path` describes."""
    with reading(path, tensors):
        if (policy is None) == (meta["policy"] == ModulePolicy.__name__):
            remedy = "pass that module as policy=" if policy is None else "leave policy= out"
            raise CheckpointError(f"{path} was saved by a learner with a policy of type {meta['policy']}: {remedy}")
        own = load_family(path, meta["family"], family, trust, bool(meta["config"].get("task_critic")))
        if described := meta.get("described_policy"):  # of a kind that no settings make
            policy = described_policy(meta["policy"], spaces_of(own), described, trust)
        learner = kind(algorithm(meta["algorithm"]), own, seed=meta["seed"], device=device, policy=policy,
                       workers=workers, **saved_settings(meta["config"]))  # fmt: skip
        like = learner.state
        if meta["state"] is not None:
            learner.state = checkpoint.unpack_state(type(like), tensors, meta["state"], like, learner.device)
        learner._best_score = comparable_score(meta)
        learner.sampler.reports_success = meta.get("reports_success") is True  # older ones do not say it
    return learner


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
