"""`learn` and `load` are the same for a policy's learner and for a few-shot learner: options, files, callbacks."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common import callbacks as sb3
from supervised_twins import SMALL, blobs
from tiny_runs import contents, rows_without_time, same_params, tiny

from metarl import MetaLearner, checkpoint
from metarl.checkpoint import CheckpointError
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.directory import BEST, CONFIG, LATEST, PREVIOUS, RunDirectory, RunDirectoryError

OFTEN: dict[str, Any] = {"eval_every": 2, "eval_tasks": 2, "checkpoint_every": 1}


@dataclass(frozen=True)
class Kind:
    """How one of the two learners is made and loaded, and what its messages say."""

    make: Callable[..., Any]
    load: Callable[[Path], Any]
    resume: str
    timesteps: int


KINDS = {
    "MetaLearner": Kind(tiny, lambda path: MetaLearner.load(path, device="cpu"), "metarl train --resume", 40),
    "FewShotLearner": Kind(
        lambda **settings: FewShotLearner(Sinusoid(), device="cpu", **(SMALL | settings)),
        lambda path: FewShotLearner.load(path, Sinusoid(), device="cpu"), "FewShotLearner.load(", 1,
    ),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# ---------------------------------------------------------------------------------------------------------------------
# Options


@kinds
@pytest.mark.parametrize(
    ("options", "message"),
    [({"iterations": -1}, "iterations must not be negative, got -1"),
     ({"iterations": 1.5}, "iterations must be a whole number, got 1.5"),
     ({"iterations": 1, "eval_every": -2}, "checkpoint_every >= 1 and eval_every >= 0, got 10 and -2"),
     ({"iterations": 1, "checkpoint_every": 0}, "checkpoint_every >= 1 and eval_every >= 0, got 0 and 10"),
     ({"iterations": 1, "eval_tasks": 0}, "eval_tasks must be at least 1, got 0"),
     ({"iterations": 1, "eval_step_sizes": [0.1, 0]}, "eval_step_sizes must be positive and finite"),
     ({"iterations": 1, "progress_bar": "yes"}, "progress_bar must be True or False, got 'yes'"),
     ({"iterations": 1, "callback": 3}, "callback is a function of an iteration's statistics, a callback of stable"),
     ({"iterations": 1, "callback": lambda: None}, "callback is called with one argument"),
     ({"iterations": 1, "callback": [3]}, "callback is a function .* got 3")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_before_anything_is_written(kind, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        kind.make().learn(run_dir=tmp_path / "run", **{"eval_every": 10, "checkpoint_every": 10} | options)
    assert not (tmp_path / "run").exists()


@kinds
def test_the_configuration_has_the_schedule_and_what_the_run_computed_with(kind, tmp_path):
    kind.make().learn(1, run_dir=tmp_path, eval_step_sizes=[0.2, 0.1], **OFTEN)
    found = json.loads((tmp_path / CONFIG).read_text())
    assert found["schedule"].items() >= (OFTEN | {"eval_step_sizes": [0.2, 0.1]}).items()
    assert (found["iterations"], found["device"], found["threads"]) == (1, "cpu", 1) and "torch" in found["versions"]
    assert "eval/step_2" in RunDirectory(tmp_path).metrics()[0]


# ---------------------------------------------------------------------------------------------------------------------
# The run's directory


@kinds
def test_a_run_with_a_damaged_configuration_goes_on_and_writes_it_anew(kind, tmp_path):
    learner = kind.make().learn(1, run_dir=tmp_path, **OFTEN)
    before = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text("[]")
    with pytest.warns(UserWarning, match="It is written anew from the checkpoint") as warned:
        learner.learn(1, run_dir=tmp_path, **OFTEN)
    assert [one.filename for one in warned] == [__file__]  # the user's own line
    assert json.loads((tmp_path / CONFIG).read_text()) == before | {"iterations": 2}
    assert (tmp_path / "config.damaged.json").read_text() == "[]"


@kinds
def test_what_another_version_wrote_in_the_configuration_is_kept(kind, tmp_path):
    learner = kind.make().learn(1, run_dir=tmp_path, **OFTEN)
    found = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(found | {"versions": {"torch": "1.0"}, "note": "mine"}))
    learner.learn(1, run_dir=tmp_path, **OFTEN)
    now = json.loads((tmp_path / CONFIG).read_text())
    assert now == found | {"versions": {"torch": "1.0"}, "note": "mine", "iterations": 2}


@kinds
def test_a_run_keeps_its_settings_and_the_way_to_others_is_told(kind, tmp_path):
    learner = kind.make().learn(1, run_dir=tmp_path, **OFTEN)
    found = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(found | {"config": found["config"] | {"inner_lr": 7.0}}))
    with pytest.raises(CheckpointError, match=r"says inner_lr=7.0, the checkpoint beside it .*start_from"):
        learner.learn(1, run_dir=tmp_path, **OFTEN)


@kinds
def test_a_directory_of_another_run_is_refused_with_the_way_to_go_on(kind, tmp_path):
    kind.make().learn(1, run_dir=tmp_path, **OFTEN)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"is not empty\. Continue the run in it with") as refused:
        kind.make().learn(1, run_dir=tmp_path, **OFTEN)
    assert f"`{kind.resume}" in str(refused.value) and str(tmp_path) in str(refused.value)
    assert contents(tmp_path) == before


@kinds
def test_a_directory_that_goes_away_ends_the_training_with_the_way_to_go_on(kind, tmp_path):
    def lose(stats: dict[str, Any]) -> None:
        if stats["iteration"] == 2:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(RunDirectoryError, match="was deleted or moved during training") as ended:
        kind.make().learn(4, run_dir=tmp_path / "run", callback=lose, **OFTEN)
    assert f"go on with {kind.resume}" in str(ended.value)
    assert kind.load(tmp_path / "run").state.iteration == 3


@kinds
def test_a_damaged_checkpoint_is_stood_in_for_by_the_previous_one_and_kept(kind, tmp_path):
    kind.make().learn(3, run_dir=tmp_path, **OFTEN)
    (tmp_path / LATEST).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="Instead of it .* is used, of iteration 3") as warned:
        learner = kind.load(tmp_path)
    assert [one.filename for one in warned] == [__file__]
    learner.learn(1, run_dir=tmp_path, **OFTEN)
    assert (tmp_path / "latest.damaged.safetensors").read_bytes() == b"damaged"
    assert kind.load(tmp_path).state.iteration == 4 and checkpoint.load(tmp_path / PREVIOUS)[1]["state"]


@kinds
def test_a_resumed_run_s_files_are_those_of_an_uninterrupted_one(kind, tmp_path):
    kind.make().learn(4, run_dir=tmp_path / "whole", **OFTEN)
    kind.make().learn(4, run_dir=tmp_path / "half", callback=lambda stats: stats["iteration"] < 3, **OFTEN)
    kind.load(tmp_path / "half").learn(1, run_dir=tmp_path / "half", **OFTEN)
    for name in (LATEST, BEST, CONFIG):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert rows_without_time(tmp_path / "half") == rows_without_time(tmp_path / "whole")


@kinds
def test_a_learner_that_goes_on_remembers_its_best_score(kind, tmp_path):
    learner = kind.make().learn(2, run_dir=tmp_path, **OFTEN)
    learner._best_score, best = 1e9, (tmp_path / BEST).read_bytes()
    learner.learn(2, run_dir=tmp_path, **OFTEN)
    assert learner._best_score == 1e9 and (tmp_path / BEST).read_bytes() == best
    scores = [row["eval/score"] for row in RunDirectory(tmp_path).metrics() if row["eval/score"] is not None]
    assert kind.make().learn(4, **OFTEN)._best_score == max(scores)  # and so does one without a directory


def test_neither_takes_the_other_s_checkpoint(tmp_path):
    one, other = KINDS.values()
    one.make().save(tmp_path / "policy"), other.make().save(tmp_path / "few")
    with pytest.raises(CheckpointError, match="few holds a few-shot learner, not a learner"):
        one.load(tmp_path / "few")
    with pytest.raises(CheckpointError, match="policy holds a learner, not a few-shot learner"):
        other.load(tmp_path / "policy")


# ---------------------------------------------------------------------------------------------------------------------
# Starting from another learner


@kinds
def test_a_learner_starts_from_what_another_has_learned(kind, tmp_path):
    other = kind.make(seed=1, learned_lr="scalar").learn(2)
    learner = kind.make(learned_lr="scalar", inner_lr=0.2).start_from(other)
    for part in ("params", "learned"):
        assert same_params(getattr(learner.state, part), getattr(other.state, part))
    assert learner.state.iteration == 0 and learner.config.inner_lr == 0.2
    learner.learn(1, run_dir=tmp_path)
    assert not same_params(learner.state.params, other.state.params)
    found = json.loads((tmp_path / CONFIG).read_text())["started_from"]
    assert (found["seed"], found["iteration"], found["config"]["inner_lr"]) == (1, 2, other.config.inner_lr)
    for path in (LATEST, PREVIOUS, "metrics.csv"):  # killed before its first checkpoint
        (tmp_path / path).unlink(missing_ok=True)
    (tmp_path / BEST).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="start it again the way it was started"):
        kind.load(tmp_path)


@kinds
def test_one_that_has_trained_or_does_not_fit_is_refused(kind):
    with pytest.raises(ValueError, match="this learner has trained for 1 iterations"):
        kind.make().learn(1).start_from(kind.make())
    with pytest.raises(ValueError, match=r"cannot start from .*parameter 'b0' has the shape"):
        kind.make().start_from(kind.make(hidden=(3,)))
    with pytest.raises(ValueError, match="activation='elu', here it is 'tanh'"):
        kind.make().start_from(kind.make(activation="elu"))


@kinds
def test_what_is_not_learned_here_is_told_at_the_user_s_line(kind):
    with pytest.warns(UserWarning, match="has learned of its inner loop .lr. is not taken over") as warned:
        kind.make().start_from(kind.make(learned_lr="scalar"))
    assert [one.filename for one in warned] == [__file__]


def test_few_shot_learners_of_another_kind_of_task_are_refused():
    make = KINDS["FewShotLearner"].make
    with pytest.raises(ValueError, match=r"cannot start from few-shot learning on blobs: its x_shape is \[2\], here"):
        make().start_from(FewShotLearner(blobs(), device="cpu", **SMALL))
    with pytest.raises(ValueError, match=r"start_from takes a FewShotLearner .*, got 'x'"):
        make().start_from("x")


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks of stable-baselines3


class Recorder(sb3.BaseCallback):
    """Notes what is called when, adds a column, and stops after the second iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def _on_training_start(self) -> None:
        self.events.append(f"start {self.num_timesteps}")

    def _on_rollout_end(self) -> None:
        self.logger.record("mine", self.n_calls)
        self.events.append("end of rollout")

    def _on_step(self) -> bool:
        self.events.append(f"step {self.num_timesteps} {self.locals['stats']['iteration']}")
        return self.n_calls < 2

    def _on_training_end(self) -> None:
        self.events.append("end")


@kinds
def test_a_callback_of_stable_baselines3_is_called_logs_and_stops(kind, tmp_path):
    recorder, seen, n = Recorder(), [], kind.timesteps
    learner = kind.make().learn(9, run_dir=tmp_path, callback=[recorder, seen.append], **OFTEN)
    assert learner.state.iteration == 2 and [stats["iteration"] for stats in seen] == [1, 2]
    assert recorder.events == ["start 0", "end of rollout", f"step {n} 1", "end of rollout", f"step {2 * n} 2", "end"]
    assert [row["mine"] for row in rows_without_time(tmp_path)] == [0, 1]


@kinds
def test_its_checkpoints_load_and_it_stops_at_a_score(kind, tmp_path):
    callback = sb3.CheckpointCallback(2, str(tmp_path))
    learner = kind.make().learn(2, callback=callback)
    (path,) = tmp_path.iterdir()
    assert path.name == f"rl_model_{2 * kind.timesteps}_steps.safetensors"
    assert same_params(kind.load(path).state.params, learner.state.params)
    low, high = (sb3.StopTrainingOnRewardThreshold(x) for x in (-1e9, 1e9))
    assert kind.make().learn(3, callback=low, eval_every=1, eval_tasks=2).state.iteration == 1
    assert kind.make().learn(3, callback=high, eval_every=1, eval_tasks=2).state.iteration == 3


def test_its_model_predicts_without_adaptation():
    asked, x = [], np.array([[0.5], [-0.5]], np.float32)
    ask = sb3.ConvertCallback(lambda *_: asked.append(ask.model.predict(x)) or True)
    learner = KINDS["FewShotLearner"].make().learn(1, callback=ask)
    adapted = learner.adapt([[0.5], [-0.5]], [[2.0], [3.0]])
    assert np.array_equal(asked[0], learner.adapt(x, x, steps=0).predict(x))
    assert not np.array_equal(asked[0], adapted.predict(x))
