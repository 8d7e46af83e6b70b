"""Steps beyond those of training: few-shot learning chooses their sizes as policies do, on validation tasks."""

import json
from typing import Any

import numpy as np
import pytest
from supervised_twins import SMALL, blobs

from metarl.report.step_sizes import FACTORS
from metarl.supervised import FewShotLearner, Sets, Sinusoid


class Slopes:
    """y = slope x at x = -1 and x = 1: a gradient step of size s on the slope's squared error leaves 1 - 2 s of it."""

    id, x_shape, outputs, loss = "slopes", (1,), 1, "mse"

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []

    def sample(self, n: int, rng: np.random.Generator, split: str, shots: int, queries: int) -> Sets:
        self.drawn.append((split, n))
        x = np.tile(np.array([[-1.0], [1.0]]), (n, 1, 1))
        y = rng.normal(size=(n, 1, 1)) * x
        return Sets(x, y, x, y)


def slopes(**settings: Any) -> FewShotLearner:
    own = {"n_tasks": 2, "shots": 2, "queries": 2, "hidden": (), "inner_lr": 0.9} | settings
    return FewShotLearner(Slopes(), device="cpu", **own)


def test_steps_as_long_as_training_s_overshoot_and_those_of_the_default_do_not():
    learner = slopes()
    usual, found = learner.evaluate(50, step_sizes=[0.9] * 3).loss, learner.evaluate(50, steps=3)
    assert usual[1:] / usual[:-1] == pytest.approx([0.64] * 3, rel=1e-4), "the negative control: (1 - 1.8)^2"
    # 0.9 * (1, 1/2, 1/4, 1/8) leave 0.64, 0.01, 0.3, 0.6
    assert found.step_sizes == (0.9, 0.45, 0.45)
    assert found.loss[1:] / found.loss[:-1] == pytest.approx([0.64, 0.01, 0.01], rel=1e-3)


def test_adapting_to_one_task_takes_the_same_sizes():
    learner = slopes()
    predictor = learner.adapt([[-1.0], [1.0]], [[-2.0], [2.0]], steps=2)
    start = learner.adapt([[-1.0], [1.0]], [[-2.0], [2.0]], steps=0).predict([[1.0]])
    left = (predictor.predict([[1.0]]) - 2) / (start - 2)
    assert left.item() == pytest.approx(-0.8 * 0.1, rel=1e-3)
    assert learner.adapt([[-1.0], [1.0]], [[-2.0], [2.0]], step_sizes=[0.9, 0.9]).predict([[1.0]]) == pytest.approx(
        0.64 * (start - 2) + 2, rel=1e-3
    )  # the control: given sizes are taken as they are


@pytest.mark.parametrize(
    ("given", "chosen"),
    [({}, 0), ({"steps": 1}, 0), ({"steps": 2}, 1), ({"step_sizes": [0.9, 0.9]}, 0)],
)
def test_sizes_that_are_training_s_or_given_are_not_chosen(given, chosen):
    learner = slopes()
    learner.family.drawn.clear()
    found = learner.evaluate(7, **given)
    assert (0 if found.choice is None else len(found.choice.tried)) == chosen
    assert learner.family.drawn == [("test", 7), *[("train", 100)] * chosen]  # further draws of training tasks


def test_of_joint_training_the_first_size_is_chosen_too():
    assert slopes(inner_steps=0).evaluate(7, steps=1).step_sizes == (0.45,)


def test_the_choice_is_made_on_validation_tasks_and_once():
    learner = FewShotLearner(Sinusoid(), device="cpu", **SMALL)
    drawn, evaluated = [], []
    draw, evaluate = learner._draw, learner._evaluate
    learner._draw = lambda *args: drawn.append(args) or draw(*args)  # type: ignore[method-assign]
    learner._evaluate = lambda *args: evaluated.append(args[2]) or evaluate(*args)  # type: ignore[method-assign]
    found = learner.evaluate(5, steps=3)
    (n, seed, *reported), (_, chosen_with, *tried) = drawn
    assert (n, reported[0], tried[0]) == (5, "test", "validation") and seed != chosen_with
    assert len(evaluated) == 2 * len(FACTORS) + 1 and evaluated[-1] == found.step_sizes
    learner.evaluate(5, steps=3), learner.adapt([[0.0]], [[1.0]], steps=3)
    assert len(evaluated) == 2 * len(FACTORS) + 2
    learner.evaluate(5, steps=3, shots=2)  # other data: another choice
    assert len(evaluated) == 4 * len(FACTORS) + 3
    learner.learn(1).evaluate(5, steps=3)  # and so is another state
    assert len(evaluated) == 6 * len(FACTORS) + 4


def test_of_classes_the_accuracy_decides_and_the_file_says_so(tmp_path):
    learner = FewShotLearner(blobs(), device="cpu", **SMALL).learn(2)
    found = learner.evaluate(4, steps=2)
    assert found.choice is not None and found.choice.measured == "accuracy"
    (tried,) = found.choice.tried
    assert tried[found.step_sizes[1]] == max(tried.values()) and all(0 <= rate <= 1 for rate in tried.values())
    data = json.loads(found.save(tmp_path)[1].read_text())["step_sizes_chosen"]
    assert data["tried"] == [{"size": size, "accuracy": rate} for size, rate in tried.items()]
    assert "size of step 2 chosen on 100 validation tasks" in repr(found) and "environment" not in repr(found)


def test_of_values_the_loss_decides():
    found = slopes().evaluate(4, steps=2).choice
    assert found is not None and found.measured == "loss"
    assert found.sizes[1] == min(found.tried[0], key=lambda size: found.tried[0][size])


def test_a_size_that_ends_in_no_number_is_the_worst():
    found = slopes(inner_lr=1e30).evaluate(4, step_sizes=[1e-3])
    assert np.isfinite(found.loss).all()
    chosen = slopes(inner_lr=1e20, inner_steps=0).evaluate(4, steps=1).choice
    assert chosen is not None and chosen.sizes == (1e20 * min(FACTORS),) and set(chosen.tried[0].values()) == {np.inf}


def test_periodic_evaluations_take_training_s_sizes_or_those_given(tmp_path):
    rows: list[dict[str, Any]] = []
    slopes().learn(1, eval_every=1, eval_steps=2, callback=rows.append)
    slopes().learn(1, eval_every=1, eval_step_sizes=[0.9, 0.45], callback=rows.append)
    usual, given = (row["eval/step_2"] / row["eval/step_1"] for row in rows)
    assert (usual, given) == (pytest.approx(0.64, rel=1e-3), pytest.approx(0.01, rel=1e-2))
