"""What `learn` does, alike for every learner: options, the run's directory, callbacks, the loop."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metarl.arguments import check_takes_one, file_path, whole, yes_or_no
from metarl.checkpoint import CheckpointError
from metarl.training.contract import Kind, Learner, Stats
from metarl.training.directory import (
    CONFIG,
    LATEST,
    PREVIOUS,
    RunDirectory,
    check_same_family,
    check_same_settings,
    read_config,
    versions,
)
from metarl.training.train import Outputs, Progress, Schedule, in_one_piece, train
from metarl.warn import warn_caller


@dataclass(frozen=True)
class Options:
    """The arguments of `learn` that all learners have; checked, and numbers as Python's own.

    Raises:
        ValueError: one that makes no sense.
    """

    iterations: int
    run_dir: Path | str | None
    callback: Any
    progress_bar: bool
    eval_every: int
    eval_tasks: int
    checkpoint_every: int
    eval_more: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments about periodic evaluations, which the run's config.json keeps as well."""

    def __post_init__(self) -> None:
        for name in ("iterations", "eval_every", "checkpoint_every"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        object.__setattr__(self, "eval_tasks", whole("eval_tasks", self.eval_tasks, 1))
        object.__setattr__(self, "progress_bar", yes_or_no("progress_bar", self.progress_bar))
        if self.run_dir is not None:
            object.__setattr__(self, "run_dir", file_path("run_dir", self.run_dir))
        if self.callback is not None:
            _check_callback(self.callback)
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations}")
        if self.checkpoint_every < 1 or self.eval_every < 0:
            raise ValueError("need checkpoint_every >= 1 and eval_every >= 0, got "
                             f"{self.checkpoint_every} and {self.eval_every}")  # fmt: skip

    @property
    def has_hooks(self) -> bool:
        """Whether the callback is one of stable-baselines3, or a list."""
        return isinstance(self.callback, list | tuple) or hasattr(self.callback, "init_callback")

    @property
    def schedule(self) -> dict[str, Any]:
        """What a run's config.json keeps of them."""
        return {"eval_every": self.eval_every, "eval_tasks": self.eval_tasks, **self.eval_more,
                "checkpoint_every": self.checkpoint_every}  # fmt: skip


def _check_callback(callback: Any) -> None:
    if isinstance(callback, list | tuple):
        for one in callback:
            _check_callback(one)
    elif not hasattr(callback, "init_callback"):
        if not callable(callback):
            raise ValueError("callback is a function of an iteration's statistics, a callback of stable-baselines3 or "
                             f"a list of these, got {callback!r}")  # fmt: skip
        check_takes_one("callback", callback, "the statistics of an iteration")


def learn(learner: Learner, kind: Kind, options: Options, evaluate: Callable[[Any], Stats]) -> None:
    """Run `options.iterations` further meta-iterations of `learner`, which has the new state afterwards, however
    training ends.

    Args:
        evaluate: a state -> statistics of a periodic evaluation, with an `"eval/score"`.

    Raises:
        ValueError: a directory that holds another run.
        CheckpointError: the directory's settings are not the learner's.
        DirectoryInUseError: another process, or another learner of this one, trains in the directory.
    """
    step: Callable[[Any], tuple[Any, Stats]] = learner._step
    callback, hooks, logger = options.callback, None, None
    if options.has_hooks:
        from metarl.training.callbacks import Hooks

        hooks = Hooks(learner, kind, callback)
        step, callback = hooks.around(step), hooks.after_iteration
    run = None if options.run_dir is None else RunDirectory(options.run_dir, kind.resume)

    def keep(state: Any, best: float | None) -> None:
        learner.state, learner._best_score = state, best
        if run is not None:
            run.check()

    def save(name: str, state: Any, best: float | None) -> None:
        assert run is not None
        run.write(name, *learner._packed(state, best))

    try:
        if run is not None:
            run.acquire()
            _open(learner, kind, run, options)
            logger = run.open_logger(learner.state.iteration)
        if hooks is not None:
            hooks.start(logger, options.iterations)
        schedule = Schedule(options.iterations, learner.state.iteration, options.eval_every, options.checkpoint_every)
        train(
            learner.state, step, schedule, Outputs(keep, None if run is None else save, logger), evaluate=evaluate,
            best=learner._best_score, callback=callback,
            progress=Progress(options.progress_bar, kind.progress, kind.measure),
        )  # fmt: skip
        if hooks is not None:
            hooks.end()
    finally:
        if logger is not None:
            with in_one_piece():
                logger.close()
        if run is not None:
            run.release()


def _open(learner: Learner, kind: Kind, run: RunDirectory, options: Options) -> None:
    """Begin a run in the directory, or go on with the learner's own that is there."""
    described = learner.describe()
    settings = {"iterations": learner.state.iteration + options.iterations, "schedule": options.schedule, **described,
                "device": str(learner.device), "threads": torch.get_num_threads(), "versions": versions()}  # fmt: skip
    if learner._started_from is not None:
        settings["started_from"] = learner._started_from
    here = any((run.path / name).exists() for name in (CONFIG, LATEST, PREVIOUS))
    if learner._run_dir != run.path.resolve() or not here:
        run.create(settings)
        learner._run_dir = run.path.resolve()
        return
    if learner._family_in_file is not None:
        check_same_family(run.path, learner._family_in_file, described["family"])
    found, own = _recorded(run.path / CONFIG, kind), json.loads(json.dumps(described))
    check_same_settings(run.path / CONFIG, found, own)
    # An earlier version knew fewer settings; loading gave those it did not know their defaults.
    now = {**settings, **found, **own, "iterations": settings["iterations"], "schedule": options.schedule}
    run.reopen(now, learner._latest_is_damaged)
    learner._latest_is_damaged = False


def _recorded(path: Path, kind: Kind) -> dict[str, Any]:
    """config.json as it is, or nothing where it is damaged or gone: the checkpoint has all that it takes."""
    try:
        return read_config(path.parent, kind.entries)
    except CheckpointError as error:
        warn_caller(f"{error}. It is written anew from the checkpoint")
        if path.exists():
            path.replace(path.with_name("config.damaged.json"))
        return {}
