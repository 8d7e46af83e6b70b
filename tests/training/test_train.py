"""Training runs: what is logged, saved and evaluated when, and that no interruption changes a number."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from documents import DOCS, generalised
from fake_training import Fake
from probes import Stops, Wins
from tiny_runs import TINY, contents, iterations_logged, point, rows_without_time, same_params, tiny

from metarl import MetaLearner, parallel
from metarl.inner import loop
from metarl.rollout.sampler import Sampler
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.train import BEST, CONFIG, LATEST, METRICS, RunDirectory, in_one_piece, versions

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
# Resuming

TOTAL = 5
SCHEDULE: dict[str, Any] = {"eval_every": 2, "eval_tasks": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is never interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    tiny().learn(TOTAL, run_dir=path, **SCHEDULE)
    return path


def assert_same_run(run: Path, whole: Path) -> None:
    a, b = MetaLearner.load(run), MetaLearner.load(whole)
    assert same_params(a.state.params, b.state.params)
    assert a.state.env_steps == b.state.env_steps
    assert rows_without_time(run) == rows_without_time(whole)
    for name in (LATEST, BEST):  # the best score stands in them
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def finish(run: Path) -> MetaLearner:
    learner = MetaLearner.load(run, device="cpu")
    return learner.learn(TOTAL - learner.state.iteration, run_dir=run, **SCHEDULE)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, stop):
    tiny().learn(TOTAL, run_dir=tmp_path, callback=lambda stats: stats["iteration"] < stop, **SCHEDULE)
    assert MetaLearner.load(tmp_path).state.iteration == stop
    finish(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_learner_goes_on_in_its_own_directory(tmp_path, whole):
    learner = tiny()
    learner.learn(TOTAL, run_dir=tmp_path, callback=lambda stats: stats["iteration"] < 3, **SCHEDULE)
    learner.learn(TOTAL - 3, run_dir=tmp_path, **SCHEDULE)
    assert_same_run(tmp_path, whole)
    assert same_params(learner.state.params, MetaLearner.load(whole).state.params)


def interrupt(monkeypatch: pytest.MonkeyPatch, rollout: int) -> None:
    """Ctrl-C in the rollout of that number."""
    collect, count = Sampler.collect, [0]

    def broken(*args: Any) -> Any:
        count[0] += 1
        if count[0] == rollout:
            raise KeyboardInterrupt
        return collect(*args)

    monkeypatch.setattr(Sampler, "collect", broken)


# Iterations 1 to 3 take the rollouts 1-2, 3-4 (with an evaluation in 5-6) and 7-8.
@pytest.mark.parametrize(("rollout", "done"), [(1, 0), (2, 0), (4, 1), (5, 1), (6, 1), (8, 2)])
def test_a_run_interrupted_in_the_middle_of_an_iteration_equals_an_uninterrupted_one(
    tmp_path, whole, monkeypatch, rollout, done
):
    learner = tiny()
    with monkeypatch.context() as patch:
        interrupt(patch, rollout)
        with pytest.raises(KeyboardInterrupt):
            learner.learn(TOTAL, run_dir=tmp_path, **SCHEDULE)
    assert learner.state.iteration == done
    assert same_params(MetaLearner.load(tmp_path).state.params, learner.state.params)
    finish(tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(("kill", "latest"), [(1, 0), (3, 2)])
def test_a_run_killed_hard_goes_on_from_the_latest_checkpoint(tmp_path, whole, kill, latest):
    run, killed = tmp_path / "run", tmp_path / "killed"

    def copy(stats: dict[str, Any]) -> None:  # what a kill at this moment would leave
        if stats["iteration"] == kill:
            shutil.copytree(run, killed)

    tiny().learn(TOTAL, run_dir=run, callback=copy, **SCHEDULE)
    assert (iterations_logged(killed), MetaLearner.load(killed).state.iteration) == (kill, latest)
    finish(killed)
    assert_same_run(killed, whole)


def test_the_best_state_is_the_best_after_adaptation_to_tasks_that_are_not_trained_on(tmp_path, monkeypatch):
    learner, step = tiny(), MetaLearner._step
    by_iteration = {1: (9.0, 1.0), 2: (8.0, 3.0), 3: (7.0, 2.0)}  # before and after: the second is the best

    def trained(self, state):
        new, stats = step(self, state)
        return new, stats | {"return/step_0": -1.0, "return/step_1": float(new.iteration)}  # the third would be

    def evaluated(self, state, *args, **kwargs):
        returns = torch.tensor(by_iteration[state.iteration]).reshape(1, 2, 1)
        return SimpleNamespace(returns=returns, success_rates=None, score=returns[0, -1, 0].item())

    monkeypatch.setattr(MetaLearner, "_step", trained)
    monkeypatch.setattr(MetaLearner, "_evaluate", evaluated)
    learner.learn(3, run_dir=tmp_path, eval_every=1)
    assert MetaLearner.load(tmp_path / BEST).state.iteration == 2
    assert [row["eval/score"] for row in RunDirectory(tmp_path).metrics()] == [1, 3, 2]


@pytest.mark.parametrize(("score", "replaced"), [(1e9, False), (-1e9, True)])
def test_a_resumed_run_remembers_its_best_score(tmp_path, score, replaced):
    learner = tiny().learn(1, run_dir=tmp_path, **SCHEDULE)
    before = (tmp_path / BEST).read_bytes()
    learner._best_score = score
    learner.save(tmp_path / LATEST)
    finish(tmp_path)
    assert ((tmp_path / BEST).read_bytes() != before) == replaced


def test_another_seed_gives_another_run(tmp_path, whole):
    learner = tiny(seed=1).learn(TOTAL, run_dir=tmp_path, **SCHEDULE)
    assert not same_params(learner.state.params, MetaLearner.load(whole).state.params)


def test_the_run_directory_changes_no_number(whole):
    assert same_params(tiny().learn(TOTAL, eval_every=0).state.params, MetaLearner.load(whole).state.params)


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 10)  # one task of 5 steps and 2 episodes
    pooled: list[int] = []
    thread_map = parallel.thread_map
    monkeypatch.setattr(loop, "thread_map", lambda f, xs: (pooled.append(len(xs)), thread_map(f, xs))[1])
    params = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        params.append(tiny(n_tasks=4).learn(3, eval_every=0).state.params)
    assert set(pooled) == {4}
    assert same_params(*params)


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


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def test_the_configuration_makes_the_run_again(whole):
    config = json.loads((whole / CONFIG).read_text())
    assert {"algorithm": "maml_trpo", "seed": 0, "iterations": TOTAL, "device": "cpu"}.items() <= config.items()
    again = MetaLearner(config["algorithm"], point(**config["family"]["made"]["kwargs"]), seed=config["seed"],
                        device="cpu", **config["config"])  # fmt: skip
    again.learn(config["iterations"], **config["schedule"])
    assert same_params(again.state.params, MetaLearner.load(whole).state.params)


def test_the_configuration_names_versions_and_schedule(whole):
    config = json.loads((whole / CONFIG).read_text())
    assert config["versions"] == versions()
    assert config["versions"]["torch"] == torch.__version__
    assert config["schedule"].items() >= SCHEDULE.items()


def test_a_longer_schedule_replaces_the_recorded_one(tmp_path):
    learner = tiny().learn(1, run_dir=tmp_path, eval_every=0)
    learner.learn(2, run_dir=tmp_path, eval_every=0, checkpoint_every=7)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["iterations"], config["schedule"]["checkpoint_every"]) == (3, 7)


def test_one_row_per_iteration_in_a_fixed_order_of_columns(whole):
    with (whole / METRICS).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["eval/score"] == "" for row in rows] == [True, False, True, False, False]
    names = list(rows[0])
    assert names[:3] == ["iteration", "return/step_0", "return/step_1"]
    assert names[-3:] == ["eval/step_0", "eval/step_1", "eval/score"]  # they came last


def test_rows_hold_the_numbers_that_callbacks_got(tmp_path):
    seen: list[dict[str, Any]] = []
    tiny().learn(3, run_dir=tmp_path, callback=seen.append, eval_every=2, eval_tasks=2)
    rows = RunDirectory(tmp_path).metrics()
    assert [{name: value for name, value in row.items() if value is not None} for row in rows] == seen


def test_the_speed_is_that_of_the_iterations_own_steps():
    seen: list[dict[str, Any]] = []
    tiny().learn(3, callback=seen.append, eval_every=0)
    seconds = [stats["time/rollout"] + stats["time/update"] for stats in seen]
    assert [stats["time/steps_per_second"] * s for stats, s in zip(seen, seconds, strict=True)] == pytest.approx(
        [40] * 3
    )


def test_the_score_is_the_return_after_the_last_inner_step():
    seen: list[dict[str, Any]] = []
    tiny().learn(1, callback=seen.append, eval_every=1, eval_tasks=2, eval_step_sizes=(0.5, 0.3))
    curve = [seen[0][f"eval/step_{k}"] for k in range(3)]
    assert len(set(curve)) == 3 and seen[0]["eval/score"] == curve[-1]


def test_steps_are_those_of_the_rollouts(whole):
    # 2 tasks of 2 episodes of 5 steps, before and after adaptation. None ends early: the goal is out of reach.
    assert [row["env_steps"] for row in rows_without_time(whole)] == [40, 80, 120, 160, 200]


def test_a_row_torn_by_a_power_cut_is_left_out(whole, tmp_path):
    text = (whole / METRICS).read_text()
    (tmp_path / METRICS).write_text(text[:-150])
    assert [row["iteration"] for row in RunDirectory(tmp_path).metrics()] == [1, 2, 3, 4]


def test_no_metrics_are_no_rows(tmp_path):
    assert RunDirectory(tmp_path).metrics() == []


def test_tensorboard_gets_the_same_numbers(whole):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    events = accumulator(str(whole))
    events.Reload()
    rows = RunDirectory(whole).metrics()
    assert set(events.Tags()["scalars"]) == set(rows[0])
    for name in rows[0]:
        expected = [(row["iteration"], row[name]) for row in rows if row[name] is not None]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in expected]


@pytest.mark.parametrize("kind", ["maml_trpo", "few-shot"])
def test_after_a_kill_and_a_resume_every_step_is_logged_once(tmp_path, kind):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    make = {
        "maml_trpo": "from metarl import MetaLearner, make\n"
        "learner = MetaLearner('maml_trpo', make('PointNavigation-v0', horizon=5), n_tasks=2, episodes=2, hidden=(8,))",
        "few-shot": "from metarl.supervised import FewShotLearner, Sinusoid\n"
        "learner = FewShotLearner(Sinusoid(), n_tasks=2, hidden=(8,))",
    }[kind]
    killed = f"""import os, signal
{make}
def die(stats):
    if stats["iteration"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
learner.learn(9, run_dir={str(tmp_path)!r}, callback=die, eval_every=0, checkpoint_every=3)
"""
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -signal.SIGKILL
    assert [row["iteration"] for row in RunDirectory(tmp_path).metrics()] == [1, 2, 3, 4, 5]
    load = {"maml_trpo": MetaLearner.load, "few-shot": lambda path: FewShotLearner.load(path, Sinusoid())}[kind]
    resumed = load(tmp_path)
    assert resumed.state.iteration == 3
    resumed.learn(1, run_dir=tmp_path, eval_every=0)
    assert [row["iteration"] for row in RunDirectory(tmp_path).metrics()] == [1, 2, 3, 4]
    events = accumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("env_steps" if kind == "maml_trpo" else "loss/query")] == [
        1,
        2,
        3,
        4,
    ]


def documented() -> set[str]:
    lines = (DOCS / "logging.md").read_text().partition("\n## ")[0].splitlines()  # without RL2's own
    return {
        found for line in lines if line.startswith("|") for found in re.findall(r"`([a-z_/]+)`", line.split("|")[1])
    }


def test_every_logged_number_is_documented_and_nothing_else(whole, tmp_path):
    learned = {"learned_lr": "scalar", "learned_mask": True, "learned_noise": True, "gae_lambda": 0.9}
    tiny(Wins()).learn(1, run_dir=tmp_path / "wins", eval_every=1, eval_tasks=2)
    tiny(learned_discount=True, learned_lambda=True, **learned).learn(1, run_dir=tmp_path / "learned", eval_every=0)
    reptile = MetaLearner("reptile", point(), seed=0, device="cpu", **TINY)
    reptile.learn(1, run_dir=tmp_path / "reptile", eval_every=0)
    runs = (whole, tmp_path / "wins", tmp_path / "learned", tmp_path / "reptile")
    logged = [{generalised(name) for name in RunDirectory(run).metrics()[0]} for run in runs]
    assert set().union(*logged) == documented()
    assert logged[0] & {"success/step_k", "inner/noise", "outer/lr"} == set()
    assert logged[1] - logged[0] == {"success/step_k", "eval/success_k"}


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny().learn(1, eval_every=1, eval_tasks=2)
    assert contents(tmp_path) == {}


def test_periodic_evaluations_of_a_run_use_the_same_tasks(monkeypatch):
    learner, drawn = tiny(), []
    sample = learner.family.sample
    monkeypatch.setattr(learner.family, "sample",
                        lambda n, rng, split: (drawn.append((split, sample(n, rng, split)["goal"])), drawn[-1])[1]
                        and {"goal": drawn[-1][1]})  # fmt: skip
    learner.learn(4, eval_every=2, eval_tasks=3)
    first, second = (goals for split, goals in drawn if split == "validation")
    assert (first == second).all()
    assert "test" not in {split for split, _ in drawn}  # the best state is not chosen on test tasks
    train_goals = [goals.tolist() for split, goals in drawn if split == "train"]
    assert len(train_goals) == 4
    assert len({str(goals) for goals in train_goals}) == 4


def test_every_setting_reaches_the_run():
    assert {name: getattr(tiny().config, name) for name in TINY} == TINY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_in_one_piece_is_interrupted_when_it_is_done(number):
    before = signal.signal(number, signal.default_int_handler)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
            with in_one_piece():
                signal.raise_signal(number)
                done.append("first")
                signal.raise_signal(number)
                done.append("second")
        assert done == ["first", "second"]
        assert signal.getsignal(number) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)


def test_one_piece_without_interruption_changes_nothing_not_even_in_a_thread():
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    done = []

    def work():
        with in_one_piece():
            done.append(1)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1, 1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
