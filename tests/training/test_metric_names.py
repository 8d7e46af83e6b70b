"""Metrics of the user's own, whose names begin as training's do."""

from types import SimpleNamespace

import pytest
from stable_baselines3.common import callbacks as sb3_callbacks
from tiny_runs import TINY, point, tiny

from metarl import MetaLearner, cli
from metarl.algorithms import maml_vpg
from metarl.algorithms.results import ContractError
from metarl.training.directory import RunDirectory
from metarl.training.health import Health
from metarl.training.metrics import numbered

OWN = {"eval/step_size": 0.25, "eval/custom": 1.0, "return/step_best": 2.0, "success/step_": 0.5}


def test_only_numbers_are_numbers():
    names = [
        "return/step_10",
        "return/step_2",
        "return/step_best",
        "return/step_",
        "my/return/step_1",
        "return/step_1x",
    ]
    assert numbered(names, "return/step_") == {"return/step_2": 2, "return/step_10": 10}
    assert list(numbered(names, "return/step_")) == ["return/step_2", "return/step_10"]


class Logs(sb3_callbacks.BaseCallback):
    def _on_step(self):
        for name, value in OWN.items():
            self.logger.record(name, value)
        return True


def test_a_callback_may_log_them(tmp_path, capsys):
    run = tmp_path / "run"
    learner = tiny().learn(2, run_dir=run, callback=Logs(), eval_every=1, eval_tasks=2, progress_bar=True)
    row = RunDirectory(run).metrics()[-1]
    assert OWN.items() <= row.items() and row["eval/score"] == row["eval/step_1"] != OWN["eval/step_size"]
    assert cli.run(["evaluate", str(run), "--tasks", "2", "--episodes", "2", "--steps", "1", "--threads", "1"]) == 0
    assert (run / "evaluation" / "adaptation.png").exists()
    assert learner._best_score == max(row["eval/score"] for row in RunDirectory(run).metrics())


def algorithm(**more: float) -> SimpleNamespace:
    def iteration(setup, state):
        state, stats = maml_vpg.iteration(setup, state)
        return state, more | stats

    names = {name: getattr(maml_vpg, name) for name in ("Config", "State", "init", "evaluate")}
    return SimpleNamespace(**names, iteration=iteration, __name__="own")


def test_an_algorithm_may_too(tmp_path, capsys):
    learner = MetaLearner(algorithm(**OWN), point(), device="cpu", **TINY)
    learner.learn(2, run_dir=tmp_path / "run", eval_every=1, eval_tasks=2, progress_bar=True)
    assert RunDirectory(tmp_path / "run").metrics()[0]["eval/custom"] == 1.0
    assert "0.25" not in "".join(line for line in capsys.readouterr().out.splitlines() if "validation" in line)


@pytest.mark.parametrize("name", ["eval/score", "eval/step_1", "eval/success_0", "iteration"])
def test_but_not_those_that_training_writes(name):
    learner = MetaLearner(algorithm(**{name: 1e9}), point(), device="cpu", **TINY)
    with pytest.raises(ContractError, match=f"have {name}, which training writes itself: give them another name"):
        learner.learn(1, eval_every=0)
    assert learner.state.iteration == 0


def test_a_run_is_judged_by_its_returns_alone():
    health = Health()
    texts = [health.after({"return/step_1": -k, "return/step_best": 0.0, "outer/step_norm": 1.0}) for k in range(60)]
    assert any("-" in text for found in texts for text in found)
