"""Success rates beside returns: from the environments through rollouts to logs, evaluations, files and pictures."""

import csv
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from probes import Stops, Wins, random_params
from rich.console import Console
from tiny_runs import tiny

from metarl import cli, random
from metarl.algorithms.maml_trpo import Config
from metarl.policies.spaces import spaces_of
from metarl.report import figures
from metarl.report.evaluation import Evaluation
from metarl.rollout.rollout import Rollout, collect
from metarl.rollout.sampler import EnvSampler, Sampler
from metarl.tasks import Task, task_at
from metarl.training.train import RunDirectory
from metarl.vector import success
from metarl.vector.loop import LoopVectorEnv

K, E = 4, 30


def roll(family: Any, episodes: int = E) -> Rollout:
    policy = Config(hidden=(5,)).policy(spaces_of(family))
    tasks = family.sample(K, np.random.default_rng(0))
    return Sampler(family).collect(tasks, episodes, policy, random_params(policy, K), 0, 0, 0)


def by_hand(rollout: Rollout) -> list[list[bool]]:
    """Task k ends after k + 1 steps: its episode wins if the first action number is positive in step index k - 1."""
    return [[k > 0 and bool(rollout.act[k, k - 1, e, 0] > 0) for e in range(rollout.act.shape[2])] for k in range(K)]


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


def test_an_episode_is_a_success_if_any_of_its_steps_was():
    rollout = roll(Wins())
    assert rollout.success.tolist() == by_hand(rollout)
    assert 0 < rollout.success[1:].float().mean() < 1  # the control: both happen
    assert not rollout.success[0].any()  # the step would have come before the first


def test_the_rate_is_the_share_of_episodes():
    rollout = roll(Wins())
    assert rollout.success_rate.tolist() == pytest.approx([sum(row) / E for row in by_hand(rollout)])


def test_without_reports_there_is_no_rate():
    rollout = roll(Stops())
    assert (rollout.success, rollout.success_rate) == (None, None)
    assert rollout[:2].success is None


def test_chunks_and_copies_keep_it():
    rollout = roll(Wins())
    assert torch.equal(rollout[1:3].success, rollout.success[1:3])
    assert torch.equal(rollout.to("cpu").success, rollout.success)


class Late(Wins):
    """Reports a success in every step, to a vector environment that forgets that the episode ended."""

    def make_vector(self, n_tasks: int, episodes: int, device: Any) -> gym.vector.VectorEnv:
        return LateVectorEnv(self, n_tasks, episodes)


class LateVectorEnv(LoopVectorEnv):
    def step(self, actions: Any) -> Any:
        over = self._terminated | self._truncated
        *rest, _ = super().step(actions)
        return *rest, {"success": over}


def test_successes_after_an_episodes_end_do_not_count():
    assert roll(Late()).success.tolist() == [[False] * E] * K


class Sometimes(Stops):
    """Only the tasks of at least three steps report anything, and only in their last step."""

    def info(self, task: Task, t: int, action: np.ndarray) -> dict[str, Any]:
        return {"success": True} if t == int(task["steps"]) >= 3 else {}


def test_environments_may_be_silent():
    assert roll(Sometimes(), 2).success.tolist() == [[False] * 2] * 2 + [[True] * 2] * 2


def test_the_loop_reports_one_flag_for_each_environment_and_nothing_where_none_does():
    env = LoopVectorEnv(Wins(), 3, 2)
    env.reset(seed=0, options={"tasks": {"steps": np.array([2, 1, 4])}})
    actions = np.tile(np.array([[0.5, 0.0], [-0.5, 0.0]], np.float32), (3, 1))
    assert env.step(actions)[-1]["success"].tolist() == [True, False, False, False, False, False]
    env.step(actions)
    assert env.step(actions)[-1]["success"].tolist() == [False, False, False, False, True, False]
    env.step(actions)
    assert env.step(actions)[-1] == {}  # all have ended
    env.close()


def test_a_plain_environment_gives_the_same_as_its_task():
    family = Wins()
    policy = Config(hidden=(5,)).policy(spaces_of(family))
    tasks = {"steps": np.array([4])}
    args = (tasks, E, policy, random_params(policy, 1), 0, 0, 0)
    alone = EnvSampler(family.make(task_at(tasks, 0)), family.horizon).collect(*args)
    assert torch.equal(alone.success, Sampler(family).collect(*args).success)
    assert 0 < alone.success.float().mean() < 1


def test_a_plain_environment_without_reports_has_none():
    family = Stops()
    policy = Config(hidden=(5,)).policy(spaces_of(family))
    sampler = EnvSampler(family.make({"steps": 3}), 3)
    assert sampler.collect({"env": np.zeros(1)}, 2, policy, random_params(policy, 1), 0, 0, 0).success is None


def test_integers_and_tensors_are_flags_too():
    family = Wins()
    policy = Config(hidden=(5,)).policy(spaces_of(family))

    class Floats(LoopVectorEnv):
        def step(self, actions: Any) -> Any:
            *rest, infos = super().step(actions)
            return *rest, {name: torch.as_tensor(value).double() for name, value in infos.items()}

    tasks, seeds = family.sample(K, np.random.default_rng(0)), random.episode_seeds(0, 0, 0, K, E)
    params = random_params(policy, K)
    one, other = (collect(kind(family, K, E), tasks, 6, policy, params, seeds) for kind in (Floats, LoopVectorEnv))
    assert torch.equal(one.success, other.success)


# ---------------------------------------------------------------------------------------------------------------------
# Training and evaluation


def test_training_logs_the_rates_of_its_rollouts(tmp_path):
    learner, seen = tiny(Wins(), n_tasks=K, episodes=E), []
    collect_ = learner.sampler.collect
    learner.sampler.collect = lambda *args: (seen.append(collect_(*args)), seen[-1])[1]  # type: ignore[method-assign]
    learner.learn(1, run_dir=tmp_path / "run", eval_every=1, eval_tasks=3)
    (row,) = RunDirectory(tmp_path / "run").metrics()
    before, after = (np.mean(by_hand(rollout)) for rollout in seen[:2])
    assert (row["success/step_0"], row["success/step_1"]) == (pytest.approx(before), pytest.approx(after))
    evaluated = [float(rollout.success.float().mean()) for rollout in seen[2:]]
    assert [row["eval/success_0"], row["eval/success_1"]] == pytest.approx(evaluated)


def test_the_progress_line_shows_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    learner, rows = tiny(Wins(), n_tasks=K, episodes=E), []
    learner.learn(1, progress_bar=True, eval_every=1, eval_tasks=3, callback=rows.append)
    shown = capsys.readouterr().out
    first, second = (f"{rows[0][f'success/step_{k}']:.0%}" for k in (0, 1))
    assert f"success {first} → {second} left" in shown
    first, second = (f"{rows[0][f'eval/success_{k}']:.0%}" for k in (0, 1))
    assert f", success {first} → {second}" in shown


def test_an_evaluation_holds_every_tasks_rate():
    learner = tiny(Wins())
    found = learner.evaluate(3, episodes=E, steps=2, details=True)
    assert found.success_rates.shape == (3, 3)
    by_rollout = [rollout.success.float().mean(1).tolist() for rollout in found.details.rollouts]
    np.testing.assert_allclose(found.success_rates.T, by_rollout)
    assert tiny(Stops()).evaluate(2, steps=1).success_rates is None


def test_adapting_gives_them_too():
    learner = tiny(Wins())
    policy = learner.adapt({"steps": 4}, episodes=E, steps=1)
    tasks = {"steps": np.array([4])}
    again = learner.evaluate(tasks=tasks, episodes=E, steps=1)
    assert policy.success_rates.tolist() == pytest.approx(again.success_rates[0].tolist())
    assert tiny(Stops()).adapt({"steps": 4}, steps=1).success_rates is None


RATES = np.array([[0.0, 0.25], [0.5, 1.0], [0.0, 1.0], [0.5, 1.0]])


def evaluation(rates: np.ndarray | None = RATES) -> Evaluation:
    returns = np.array([[1.0, 2.0], [1.5, 2.5], [0.5, 3.0], [1.0, 7.0]])
    return Evaluation(returns, (0.5,), {"episodes": 4}, {"steps": np.arange(4)}, 0, None, rates)


def test_rows_have_the_mean_rate_and_its_interval():
    first, last = evaluation().rows()
    assert (first.rate, last.rate) == (0.25, 0.8125)
    assert 0 <= first.rate_low < 0.25 < first.rate_high <= 0.5
    assert evaluation(None).rows()[0].rate is None


def cells(found: Evaluation) -> list[list[str]]:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    lines = console.export_text().splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_the_table_has_a_column_for_them():
    row = evaluation().rows()[1]
    assert cells(evaluation())[1][4] == f"81% [{row.rate_low:.0%}, {row.rate_high:.0%}]"
    assert len(cells(evaluation(None))[1]) == 4


def test_the_files_have_them(tmp_path):
    csv_path, json_path = evaluation().save(tmp_path)
    with csv_path.open() as file:
        assert [float(row["success"]) for row in csv.DictReader(file)] == [0.25, 0.8125]
    data = json.loads(json_path.read_text())
    assert data["success_rates"] == RATES.tolist()
    assert [row["success"] for row in data["rows"]] == [0.25, 0.8125]


def test_files_without_them_do_not_mention_them(tmp_path):
    for path in evaluation(None).save(tmp_path):
        assert "success" not in path.read_text()


METRICS = [{"iteration": i, "return/step_0": 1.0, "return/step_1": 2.0} for i in (1, 2)]
LOGGED = [row | {"success/step_0": 0.1 * i, "success/step_1": 0.2 * i} for i, row in enumerate(METRICS, 1)]


def test_the_figure_has_panels_for_them():
    pytest.importorskip("matplotlib")
    figure = figures.evaluation_figure(Wins(), evaluation(), LOGGED)
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["mean return", "mean return", "success rate", "success rate"]
    training, adaptation = figure.axes[2:]
    assert training.lines[1].get_xydata().tolist() == [[1, 0.2], [2, 0.4]]
    assert adaptation.lines[0].get_xydata().tolist() == [[0, 0.25], [1, 0.8125]]


@pytest.mark.parametrize(("metrics", "rates", "count"), [(METRICS, RATES, 3), (LOGGED, None, 2), ((), RATES, 2)])
def test_there_is_no_empty_panel(metrics, rates, count):
    pytest.importorskip("matplotlib")
    assert len(figures.evaluation_figure(Wins(), evaluation(rates), metrics).axes) == count


def test_the_command_line_says_them(tmp_path, capsys, monkeypatch):
    learner = tiny(Wins())
    monkeypatch.setattr(cli, "_load", lambda *_: learner)
    assert cli.run(["adapt", "run", "--task", "steps=4", "--episodes", "30", "--out", str(tmp_path / "p")]) == 0
    rates = learner.adapt({"steps": 4}, episodes=30).success_rates
    assert f"success rate {rates[1]:.0%}" in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), 0.5, np.float32("nan"), torch.tensor(0.25)])
def test_a_report_that_is_neither_yes_nor_no_is_no_success(value):
    for name in success.NAMES:
        with pytest.raises(ValueError, match=rf"info\['{name}'\] is .*: report one yes or no in each step"):
            success.of_step({name: value})
        for many in (np.array([1.0, float(value)]), torch.tensor([1.0, float(value)]), [1.0, value]):
            with pytest.raises(ValueError, match="report one yes or no"):
                success.of_steps({name: many}, 2)
    counted = {"success": np.array([1.0, float(value)]), "_success": np.array([True, False])}
    assert success.of_steps(counted, 2).tolist() == [True, False]  # which does not count
    assert success.of_step({"success": np.float32(1.0)}) is True and success.of_step({"success": 0.0}) is False
