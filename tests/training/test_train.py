"""The training loop: what happens when, what an interruption may not break, and what training refuses."""

import json
import signal
from typing import Any

import pytest
from fake_training import Fake
from probes import Stops
from tiny_runs import contents, iterations_logged, same_params, tiny

from metarl import MetaLearner
from metarl.training.train import BEST, LATEST, RunDirectory

# ---------------------------------------------------------------------------------------------------------------------
# The loop, with a state that is a number


@pytest.mark.parametrize(
    ("start", "iterations", "every", "expected"),
    [(0, 7, 3, [3, 6, 7]), (4, 3, 3, [6, 7]), (0, 6, 3, [3, 6]), (0, 2, 5, [2]), (0, 0, 1, [])],
)
def test_evaluations_come_at_multiples_and_at_the_end(start, iterations, every, expected):
    fake = Fake()
    fake.train(iterations, start, eval_every=every)
    assert fake.evaluated == expected


def test_without_evaluation_there_is_no_best_state():
    fake = Fake()
    fake.train(3, evaluate=None)
    assert [name for name, *_ in fake.saved if name == BEST] == []
    assert fake.kept == (3, None)


def test_checkpoints_come_before_the_first_iteration_at_multiples_and_at_the_end():
    fake = Fake()
    fake.train(5, evaluate=None, checkpoint_every=2)
    assert fake.saved == [(LATEST, state, None) for state in (0, 2, 4, 5)]


def test_the_best_state_is_kept_when_later_ones_are_worse():
    fake = Fake({1: 1.0, 2: 3.0, 3: 2.0, 4: 3.0})
    fake.train(4)
    assert [(state, best) for name, state, best in fake.saved if name == BEST] == [(1, 1.0), (2, 3.0)]
    assert fake.kept == (4, 3.0)


def test_the_best_score_of_an_earlier_part_of_the_run_counts():
    fake = Fake({1: 4.0, 2: 6.0})
    fake.train(2, best=5.0)
    assert [(state, best) for name, state, best in fake.saved if name == BEST] == [(2, 6.0)]


def test_a_callback_stops_the_training():
    fake = Fake()
    fake.train(5, callback=lambda stats: stats["iteration"] < 2)
    assert fake.kept == (2, 0.0)
    assert fake.saved[-1] == (LATEST, 2, 0.0)


def test_a_callback_that_returns_nothing_does_not():
    fake = Fake()
    fake.train(3)
    assert fake.kept is not None
    assert fake.kept[0] == 3


@pytest.mark.parametrize("where", ["step", "evaluate", "save best", "log"])
def test_an_iteration_that_breaks_off_does_not_count(where):
    fake = Fake({1: 1.0, 2: 2.0, 3: 3.0}, fail=(where, 3))
    with pytest.raises(KeyboardInterrupt):
        fake.train(5)
    assert fake.kept == (2, 2.0)
    assert fake.saved[-1] == (LATEST, 2, 2.0)
    assert [row["iteration"] for row in fake.rows] == [1, 2]


def test_an_iteration_that_is_logged_counts():
    fake = Fake({1: 1.0, 2: 2.0, 3: 3.0}, fail=("callback", 3))
    with pytest.raises(KeyboardInterrupt):
        fake.train(5)
    assert fake.saved[-1] == (LATEST, 3, 3.0)
    assert fake.kept == (3, 3.0)


class Interrupted(Fake):
    """Ctrl-C comes in the middle of what is done at the end of iteration 3, of 4."""

    def __init__(self, where: str):
        super().__init__({3: 1.0})
        self.where = where

    def _interrupted(self, where: str, state: int) -> None:
        if (where, state) == (self.where, 3):
            signal.raise_signal(signal.SIGINT)

    def dump(self, step: int) -> None:
        self._interrupted("log", step)
        super().dump(step)

    def keep(self, state: int, best: float | None) -> None:
        self._interrupted("keep", state)
        super().keep(state, best)

    def save(self, name: str, state: int, best: float | None) -> None:
        self._interrupted("save" if name == LATEST else "", state)
        super().save(name, state, best)


@pytest.mark.parametrize("iterations", [4, 3])
@pytest.mark.parametrize("where", ["log", "keep", "save"])
def test_an_interruption_waits_until_an_iteration_is_logged_kept_and_saved(where, iterations):
    fake, before = Interrupted(where), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fake.train(iterations, checkpoint_every=3 if iterations == 4 else 100)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [row["iteration"] for row in fake.rows] == [1, 2, 3]
    assert fake.kept == (3, 1.0)
    assert fake.saved[-1] == (LATEST, 3, 1.0)


def test_the_progress_line_shows_returns_speed_and_evaluations(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    fake = Fake({2: 1.5})
    step = fake.step
    more = {"return/step_0": -1234.5, "return/step_10": -321.0, "return/step_9": 3.0, "time/steps_per_second": 98765}
    monkeypatch.setattr(fake, "step", lambda state: (state + 1, step(state)[1] | more))
    monkeypatch.setattr(fake, "evaluate", lambda state: {"eval/step_0": -1.25, "eval/score": 1.5})
    fake.train(2, eval_every=2, progress_bar=True)
    shown = capsys.readouterr().out
    assert "return on validation tasks -1.25" in shown
    line = shown.splitlines()[-1]
    assert "2/2 return -1234.5 → -321.0  98,765 steps/s  rollout 50% left 0:00:00" in line  # step 10 comes after step 9


def test_without_progress_nothing_is_printed(capsys):
    Fake().train(2, progress_bar=False)
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


class GoesWrong(Stops):
    """From some moment on every third step's reward is no number."""

    broken = False

    def reward(self, task: Any, t: int) -> float:
        return float("nan") if self.broken and t == 3 else 1.0


def test_a_reward_that_is_no_number_stops_the_training_before_any_damage(tmp_path):
    family, states = GoesWrong(), []
    learner = tiny(family, n_tasks=4)

    def callback(stats: dict[str, Any]) -> None:
        states.append(learner.state)
        family.broken = stats["iteration"] == 2

    with pytest.raises(ValueError, match="StopsProbe-v0 returned the reward nan in step 2 of episode 0 of task 2"):
        learner.learn(5, run_dir=tmp_path, callback=callback, eval_every=0)
    assert learner.state is states[1]
    loaded = MetaLearner.load(tmp_path, family=family)
    assert loaded.state.iteration == 2
    assert same_params(loaded.state.params, states[1].params)
    assert iterations_logged(tmp_path) == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_a_directory_that_holds_something_is_refused_and_left_alone(tmp_path, seed):
    tiny().learn(1, run_dir=tmp_path, eval_every=0)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"is not empty. Continue the run in it with `metarl train --resume"):
        tiny(seed=seed).learn(1, run_dir=tmp_path)
    assert contents(tmp_path) == before


def test_a_file_of_any_kind_makes_a_directory_not_empty(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is not empty"):
        tiny().learn(1, run_dir=tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"all of it"}


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(tmp_path):
    tiny().learn(1, run_dir=tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    before = json.loads(path.read_text())
    del before["config"]["fisher_stride"]
    path.write_text(json.dumps(before))
    MetaLearner.load(tmp_path / "run", device="cpu").learn(1, run_dir=tmp_path / "run")
    assert [row["iteration"] for row in RunDirectory(tmp_path / "run").metrics()] == [1, 2]
    assert json.loads(path.read_text())["config"]["fisher_stride"] == 1
    before["config"]["gamma"] = 0.5  # negative control: a setting that is another
    path.write_text(json.dumps(before))
    with pytest.raises(ValueError, match=r"config.json says gamma=0.5, the checkpoint beside it 0.99"):
        MetaLearner.load(tmp_path / "run", device="cpu").learn(1, run_dir=tmp_path / "run")


def test_a_run_is_not_continued_by_a_state_of_another_run(tmp_path):
    tiny().learn(1, run_dir=tmp_path, eval_every=0)
    tiny(seed=1).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"config.json says seed=0, the checkpoint beside it 1"):
        MetaLearner.load(tmp_path / "other.safetensors").learn(1, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"iterations": -1}, "iterations must not be negative, got -1"),
     ({"iterations": 1, "eval_every": -2}, "eval_every >= 0, got 10 and -2"),
     ({"iterations": 1, "checkpoint_every": 0}, "checkpoint_every >= 1 and eval_every >= 0, got 0 and 10"),
     ({"iterations": 1, "eval_tasks": 0}, "must be at least 1, got 0"),
     ({"iterations": 1, "eval_step_sizes": (0.1, -0.1)},
      r"eval_step_sizes must be positive and finite, got \[0.1, -0.1\]")],
)  # fmt: skip
def test_a_schedule_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tiny().learn(run_dir=tmp_path, **options)
    assert contents(tmp_path) == {}
