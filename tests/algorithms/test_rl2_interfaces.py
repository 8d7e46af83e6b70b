"""RL² on the command line, in films and pictures, with stable-baselines3, and on its page."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import DOCS
from probes import Drift, TwoArms
from rl2_runs import small, trained_on_two_arms

import metarl
from metarl import MetaLearner, RecurrentPolicy, cli
from metarl.report import figures


def test_it_is_not_for_stable_baselines3_nor_to_start_from():
    sb3 = pytest.importorskip("metarl.sb3")
    learner = small()
    policy = learner.adapt({"good": 0})
    for one in (learner, policy):
        with pytest.raises(ValueError, match="a recurrent policy cannot be converted"):
            sb3.to_sb3(one)
    with pytest.raises(ValueError, match="a learner cannot start from a RecurrentPolicy"):
        MetaLearner("rl2", TwoArms(), policy=policy)


def test_stable_baselines3_evaluates_it():
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    learner, _ = trained_on_two_arms()
    policy: Any = learner.adapt({"good": 1}, episodes=1)
    mean, _ = evaluate_policy(policy, Monitor(learner.family.make({"good": np.int64(1)})), 20)
    assert mean == 1.0


def test_callbacks_of_stable_baselines3_can_ask_the_meta_policy():
    from stable_baselines3.common.callbacks import BaseCallback

    class Asks(BaseCallback):
        actions = None

        def _on_step(self) -> bool:
            self.actions = self.model.predict(np.zeros((3, 2), np.float32), deterministic=True)[0]
            return True

    asks, learner = Asks(), small(Drift())
    learner.learn(1, eval_every=0, callback=asks)
    fresh = RecurrentPolicy(learner.policy, learner.state.params)
    assert np.array_equal(asks.actions, fresh.predict(np.zeros((3, 2), np.float32), deterministic=True)[0])


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--n-tasks", "4", "--trial-episodes", "3", "--hidden", "4", "--iterations", "2", "--no-progress"]
    assert cli.run(["train", "rl2", "BernoulliBandit-v0", *size, "--eval-tasks", "2", "--out", "run"]) == 0
    assert "4 tasks, 1 trials of 3 episodes" in capsys.readouterr().out
    assert cli.run(["evaluate", "run", "--tasks", "5", "--no-figures"]) == 0
    assert "return of a whole trial of 3 episodes: " in capsys.readouterr().out
    assert len((tmp_path / "run/evaluation/adaptation.csv").read_text().splitlines()) == 1 + 3
    with pytest.raises(ValueError, match="rl2 has no inner step sizes"):
        cli.run(["evaluate", "run", "--tasks", "5", "--step-sizes", "0.1"])
    assert cli.run(["adapt", "run", "--task", "p=0.1,0.2,0.3,0.4,0.9", "--steps", "1", "--out", "policy"]) == 0
    out = capsys.readouterr().out
    assert "return after 1 episode:" in out and "metarl.RecurrentPolicy.load" in out
    assert isinstance(RecurrentPolicy.load(Path("policy")), RecurrentPolicy)


def test_films_show_it_before_its_first_episode(tmp_path, monkeypatch):
    from metarl.report import render

    learner, seen = small(metarl.make("PointNavigation-v0", horizon=3)), {}
    learner.save(tmp_path / "learner.safetensors")
    monkeypatch.setattr(render, "film", lambda family, task, policies, path, **_: seen.update(policies) or path)
    assert cli.run(["render", str(tmp_path / "learner.safetensors"), "--task", "goal=0.1,0.2"]) == 0
    before, after = seen.values()
    assert list(seen) == ["before", "after 3 episodes"]
    assert not before.memory.hidden.any() and after.memory.hidden.any()
    env = learner.family.make({"goal": np.full(2, 0.4, np.float32)})
    monkeypatch.setattr(render, "_image", lambda env: np.zeros((2, 2, 3), np.uint8))
    observe, told = RecurrentPolicy.observe, []
    monkeypatch.setattr(RecurrentPolicy, "observe", lambda self, *x: (told.append(x[1]), observe(self, *x))[1])
    _, returns = render._play(env, after, 3, 0, True)
    assert np.allclose(np.cumsum(told), returns[1:]) and len(told) == 3


def test_the_documented_example_runs():
    text = (DOCS / "algorithms" / "rl2.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert code.count("learner.learn(300") == code.count("evaluate(1000)") == 1
    names: dict[str, Any] = {}
    code = code.replace("learner.learn(300", "learner.learn(1").replace("evaluate(1000)", "evaluate(10)")
    exec(compile(code.replace("n_tasks=1000", "n_tasks=10"), "rl2.md", "exec"), names)
    assert names["learner"].state.iteration == 1 and len(names["policy"].returns) == 10
    assert not np.array_equal(names["state"][0][0], names["policy"].memory.hidden)


def test_pictures_count_episodes():
    pytest.importorskip("matplotlib")
    learner = small(metarl.make("BernoulliBandit-v0"), trial_episodes=30)
    found = learner.evaluate(3, details=True)
    figure = figures.evaluation_figure(
        learner.family, found, [{"iteration": 1, "return/step_0": 0.5, "return/step_5": 1}]
    )
    training, curve = figure.axes
    assert [text.get_text() for text in training.get_legend().get_texts()] == ["before adaptation", "after 5 episodes"]
    assert curve.get_xlabel() == "episodes" and len(curve.get_xticks()) < 12
    assert curve.lines[0].get_ydata().tolist() == pytest.approx(found.mean.tolist())
