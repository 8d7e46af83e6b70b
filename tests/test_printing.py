"""`print` shows what a reader wants to know, and no arrays."""

import re

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tiny_runs import point, tiny
from torch import nn

import metarl
from metarl import MetaLearner
from metarl.printing import as_text, curve_text, family_text
from metarl.report.evaluation import Evaluation
from metarl.supervised import FewShotLearner, Sets, Sinusoid, digits

GOAL = {"goal": [0.3, -0.2]}


def is_readable(text: str) -> bool:
    return "array(" not in text and "tensor(" not in text and " object at 0x" not in text and len(text) < 3000


def curve(returns: np.ndarray, **more: object) -> Evaluation:
    return Evaluation(
        returns, (0.5,) * (returns.shape[1] - 1), {"episodes": 4}, {"goal": np.zeros((len(returns), 2))}, 0, **more
    )


def test_an_evaluation_is_its_table():
    evaluation = curve(np.array([[-4.0, -1.0], [-6.0, -2.0]]))
    for text in (repr(evaluation), str(evaluation), f"{evaluation}", str(evaluation.table())):
        lines = text.splitlines()
        assert "2 test tasks, 4 episodes each" in lines[0]
        assert len(lines) == 7
        assert re.search(r"0 │ +│ -5\.00 \[-6\.00, -4\.00\]", text)
        assert re.search(r"1 │ +0\.5 │ -1\.50 \[-2\.00, -1\.00\]", text)
        assert "\x1b" not in text  # no colours


def test_details_are_not_in_it():
    evaluation = tiny().evaluate(3, details=True)
    assert evaluation.details is not None
    assert is_readable(repr(evaluation))
    assert is_readable(repr(evaluation.details))
    assert "obs=float32[3, 5, 2, 2]" in repr(evaluation.details.rollouts[0])


def test_of_a_long_trial_some_episodes_are_shown():
    text = repr(curve(np.zeros((2, 100))))
    shown = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert shown == ["0", "1", "2", "5", "10", "20", "50", "99"]
    assert len(curve(np.zeros((2, 100))).rows()) == 100


def test_success_rates_are_shown():
    assert "success [95%]" in repr(curve(np.zeros((2, 2)), rates=np.ones((2, 2))))
    assert "100%" in repr(curve(np.zeros((2, 2)), rates=np.ones((2, 2))))
    assert "success" not in repr(curve(np.zeros((2, 2))))


def test_learners_say_what_they_are_and_how_far():
    learner = tiny(seed=3)
    assert repr(learner) == (
        "MetaLearner('maml_trpo', 'PointNavigation-v0', seed=3, device='cpu'): 0 iterations, 0 environment steps"
    )
    assert repr(learner.learn(2, eval_every=0)).endswith("2 iterations, 80 environment steps")
    assert is_readable(repr(learner.state))


def test_policies_say_what_they_do():
    policy = tiny().adapt(GOAL, steps=2)
    assert repr(policy).startswith(
        "AdaptedPolicy(MLPPolicy of 44 parameters, from Box(-inf, inf, (2,), float32) to Box("
    )
    assert f"returns in its adaptation: {curve_text(policy.returns)})" in repr(policy)
    recurrent = MetaLearner("rl2", point(), n_tasks=2, hidden=4, minibatches=1, device="cpu").adapt(GOAL)
    assert repr(recurrent).startswith("RecurrentPolicy(GRUPolicy of ")
    module = tiny(policy=nn.Linear(2, 2)).policy
    assert repr(module).count("Linear") == 1


def test_families_say_their_name_and_what_differs_between_tasks():
    assert repr(point()) == "PointNavigation-v0(horizon=5, tasks: goal)"
    assert repr(metarl.visible(point())) == "visible(PointNavigation-v0(horizon=5, tasks: goal))"
    assert is_readable(repr(metarl.from_gymnasium("Pendulum-v1", {"g": Box(5.0, 15.0)})))
    assert [id for id in metarl.registered() if "MetaWorld" not in id and not is_readable(repr(metarl.make(id)))] == []


def test_a_family_that_lacks_members_can_be_shown_in_an_error():
    class Bare:
        id = "Bare-v0"

    assert family_text(Bare()) == "<Bare>"


def test_few_shot_learning_is_readable_too():
    learner = FewShotLearner(Sinusoid(), n_tasks=2, hidden=(4,), device="cpu")
    assert repr(learner) == f"FewShotLearner({Sinusoid().id!r}, seed=0, device='cpu'): 0 iterations"
    evaluation = learner.evaluate(3)
    assert repr(evaluation) == as_text(evaluation.table()) == str(evaluation.table())
    predictor = learner.adapt(np.zeros((5, 1)), np.ones((5, 1)))
    assert repr(predictor).startswith(f"FewShotPredictor({Sinusoid().id}, MLPNetwork; support losses: 1, ")
    x = torch.zeros(2, 5, 1)
    assert repr(Sets(x, x, x, x)).startswith("Sets(x_support=float32[2, 5, 1], ")
    assert all(map(is_readable, (repr(learner.state), repr(digits()), repr(Sets(x, x, x, x)))))


@pytest.mark.parametrize(
    ("values", "text"),
    [(None, ""), ([1.0, 2.5], "1, 2.5"), (np.arange(6.0), "0, 1, 2, 3, 4, 5"), (np.arange(7.0), "0, 1, 2, ..., 6")],
)
def test_long_curves_are_cut(values, text):
    assert curve_text(values) == text
