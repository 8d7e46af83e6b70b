"""What a training run writes: its configuration, metrics and TensorBoard files; every logged number is documented."""

import csv
import json
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from documents import DOCS, generalised
from probes import Wins
from tiny_runs import SCHEDULE, TINY, TOTAL, contents, point, rows_without_time, same_params, tiny

from metarl import MetaLearner
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.train import CONFIG, METRICS, RunDirectory, versions


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
