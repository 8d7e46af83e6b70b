"""The interface of a learner for training, saving and loading; `MetaLearner` and `FewShotLearner` both have it.

`metarl.training.learn` and `metarl.training.saved` use it in the same way for both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

Stats = dict[str, Any]
"""What an iteration logs: name -> number."""


class Learner(Protocol):
    """A state that training replaces, and what the files of a run say besides."""

    state: Any
    """A dataclass of data, with the `iteration` that it is the state after."""
    device: torch.device
    _best_score: float | None
    """The highest `"eval/score"` so far."""
    _run_dir: Path | None
    """The run that this learner is the state of."""
    _latest_is_damaged: bool
    """In that run, so that this is its previous state."""
    _started_from: dict[str, Any] | None
    """The learner that this one started from, described."""
    _family_in_file: dict[str, Any] | None
    """The signature of its family in the file that it was loaded from, if it has a family and was loaded."""

    def describe(self) -> dict[str, Any]:
        """Everything needed to recreate this learner, as JSON-serialisable data; `"config"` has its settings."""
        ...

    def _step(self, state: Any) -> tuple[Any, Stats]:
        """One meta-iteration."""
        ...

    def _packed(self, state: Any, best: float | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds; see `metarl.training.saved.packed`."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of learner, where the words or the numbers of the two differ."""

    name: str
    """What its checkpoints say that they hold."""
    entries: Mapping[str, type]
    """What its config.json has at least."""
    resume: Callable[[Path], str]
    """What to type to go on with the run in a directory."""
    progress: Callable[[Stats], str]
    """An iteration's statistics in a few words, for the progress bar."""
    measure: str
    """What `"eval/step_k"` are."""
    timesteps: Callable[[Any], int]
    """A state -> the `num_timesteps` of stable-baselines3's callbacks."""
    predictor: Callable[[Any], Any]
    """A learner -> what acts before adaptation, for callbacks that call `model.predict`."""
