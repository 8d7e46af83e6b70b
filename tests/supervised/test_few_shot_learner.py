"""FewShotLearner: learning, training, evaluating, adapting to one task."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from supervised_twins import blobs, tiny
from tiny_runs import contents, rows_without_time, same_params

from metarl import checkpoint
from metarl.supervised import FewShotLearner, Sets, Sinusoid, maml, method
from metarl.training.train import BEST, LATEST

# ---------------------------------------------------------------------------------------------------------------------
# It learns


def test_maml_adapts_and_a_network_for_all_tasks_does_not():
    """The claim of the MAML paper's figure 3: after meta-training 5 steps on 10 points find the sinusoid; from a
    network trained on all sinusoids together no step size does."""
    settings = {"outer_lr": 6e-3, "anneal_over": 400, "device": "cpu"}
    meta = FewShotLearner(Sinusoid(), **settings).learn(400).evaluate(200, steps=5, queries=50)
    joint = FewShotLearner(Sinusoid(), inner_steps=0, **settings).learn(400)
    best = min(joint.evaluate(200, step_sizes=[size] * 5, queries=50).loss[-1] for size in (0.001, 0.003, 0.01, 0.03))
    assert meta.loss[0] > 2 and meta.loss[1] < 1.2
    assert meta.loss[5] < 0.9 < 1.5 < best < 3.0


def test_classes_are_told_apart_after_adaptation_only():
    learner = tiny(blobs(classes=16), hidden=(20,), shots=2, n_tasks=10, inner_steps=2, outer_lr=5e-3)
    found = learner.learn(80).evaluate(200, steps=3)
    assert abs(found.accuracy[0] - 1 / 3) < 0.05  # chance: which class has which number is drawn anew
    assert found.accuracy[3] > 0.75


# ---------------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize("name", ["meta_sgd", "maml_plus_plus", "reptile"])
def test_a_resumed_training_is_an_uninterrupted_one(tmp_path, name):
    settings = method(name, 8) | {"learned_mask": name == "meta_sgd"}
    whole = tiny(**settings).learn(6)
    tiny(**settings).learn(3).save(tmp_path / "half.safetensors")
    resumed = FewShotLearner.load(tmp_path / "half.safetensors", Sinusoid(), device="cpu").learn(3)
    for part in ("params", "learned", "optimizer"):
        assert same_params(getattr(whole.state, part), getattr(resumed.state, part))
    assert resumed.state.iteration == 6 and resumed.config == whole.config


def test_a_resumed_run_s_files_are_those_of_an_uninterrupted_one(tmp_path):
    tiny().learn(6, run_dir=tmp_path / "whole", eval_every=2, eval_tasks=3)
    tiny().learn(4, run_dir=tmp_path / "parts", eval_every=2, eval_tasks=3)
    learner = FewShotLearner.load(tmp_path / "parts", Sinusoid(), device="cpu")
    learner.learn(2, run_dir=tmp_path / "parts", eval_every=2, eval_tasks=3)
    whole, parts = (contents(tmp_path / name) for name in ("whole", "parts"))
    for name in ("latest.safetensors", "best.safetensors", "config.json"):
        assert whole[name] == parts[name]
    assert rows_without_time(tmp_path / "whole") == rows_without_time(tmp_path / "parts")
    assert json.loads(whole["config.json"])["iterations"] == 6


def test_another_run_s_directory_is_refused(tmp_path):
    tiny().learn(1, run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"is not empty. Continue the run in it with `FewShotLearner.load\("):
        tiny().learn(1, run_dir=tmp_path / "run")


def test_the_best_state_is_the_one_with_the_lowest_loss_on_validation_tasks(tmp_path):
    tiny().learn(6, run_dir=tmp_path, eval_every=2, eval_tasks=20)
    rows = [row for row in rows_without_time(tmp_path) if row["eval/score"] is not None]
    assert all(row["eval/score"] == -row["eval/step_1"] for row in rows)
    best = max(rows, key=lambda row: row["eval/score"])
    _, meta = checkpoint.load(tmp_path / "best.safetensors")
    assert (meta["state"]["iteration"], meta["best_score"]) == (best["iteration"], best["eval/score"])


@pytest.mark.parametrize(("score", "replaced"), [(1e9, False), (-1e9, True)])
def test_a_resumed_run_remembers_its_best_score(tmp_path, score, replaced):
    learner = tiny().learn(1, run_dir=tmp_path, eval_every=1, eval_tasks=2)
    before = (tmp_path / BEST).read_bytes()
    learner._best_score = score
    learner.save(tmp_path / LATEST)
    again = FewShotLearner.load(tmp_path, Sinusoid(), device="cpu")
    again.learn(1, run_dir=tmp_path, eval_every=1, eval_tasks=2)
    assert ((tmp_path / BEST).read_bytes() != before) == replaced


def test_of_classes_it_is_the_accuracy(tmp_path):
    tiny(blobs()).learn(2, run_dir=tmp_path, eval_every=2, eval_tasks=5)
    row = rows_without_time(tmp_path)[-1]
    assert row["eval/score"] == row["eval/accuracy_1"] and 0 <= row["eval/accuracy_0"] <= 1


def test_a_callback_sees_every_iteration_and_can_end_the_training():
    seen = []
    learner = tiny().learn(9, callback=lambda stats: seen.append(stats["iteration"]) or len(seen) < 4)
    assert seen == [1, 2, 3, 4] and learner.state.iteration == 4


def test_the_progress_bar_shows_the_loss(capsys):
    tiny().learn(2, progress_bar=True, eval_every=2, eval_tasks=3)
    shown = capsys.readouterr().out
    assert "query loss" in shown and "2/2" in shown
    assert "loss on validation tasks" in shown


@pytest.mark.parametrize("seed", [0, 3])
def test_a_seed_and_the_settings_determine_the_run(seed):
    one, again, other = (tiny(seed=s).learn(2).state.params for s in (seed, seed, seed + 1))
    assert same_params(one, again) and not torch.equal(one["w0"], other["w0"])


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def test_an_evaluation_is_that_of_its_sets_one_task_after_the_other():
    learner = tiny().learn(3)
    sets = Sinusoid().sample(130, np.random.default_rng(4), "test", 4, 5)  # more than are adapted side by side
    found = learner.evaluate(sets=sets, step_sizes=[0.3, 0.3])
    assert found.losses.shape == (130, 3)
    for k in (0, 99, 100, 129):
        alone = maml.evaluate(learner.config, learner.family, learner.network, learner.state, sets[k : k + 1],
                              [0.3, 0.3])  # fmt: skip
        np.testing.assert_allclose(found.losses[k], alone.losses[0], rtol=1e-5)
    assert (found.parameters["phase"] == sets.parameters["phase"]).all()


def test_an_evaluation_s_tasks_are_the_same_for_every_state_and_no_training_tasks():
    class Spy(Sinusoid):
        def sample(self, n, rng, split, shots, queries):
            drawn.append((split, rng.bit_generator.state["state"]["state"]))
            return super().sample(n, rng, split, shots, queries)

    drawn: list[Any] = []
    learner = tiny(Spy())
    drawn.clear()
    first = learner.evaluate(3)
    learner.learn(2, eval_every=1, eval_tasks=3)
    again = learner.evaluate(3)
    assert (first.parameters["phase"] == again.parameters["phase"]).all() and first.seed == again.seed
    assert [split for split, _ in drawn] == ["test", "train", "validation", "train", "validation", "test"]
    assert drawn[0] == drawn[5] and drawn[2] == drawn[4] != drawn[0]  # periodic ones have their own
    assert len({key for _, key in drawn}) == 4


def test_rows_have_the_interval_of_the_mean(tmp_path):
    found = tiny(blobs()).evaluate(40, steps=2)
    assert [row.step for row in found.rows()] == [0, 1, 2]
    for row, losses, rates in zip(found.rows(), found.losses.T, found.accuracies.T, strict=True):
        assert row.mean == pytest.approx(losses.mean()) and row.rate == pytest.approx(rates.mean())
        for x, mean, low, high in ((losses, row.mean, row.mean_low, row.mean_high),
                                   (rates, row.rate, row.rate_low, row.rate_high)):  # fmt: skip
            width = 2 * 1.96 * x.std() / np.sqrt(40)  # zero for the accuracy of a network that sees no difference
            assert low <= mean <= high and high - low == pytest.approx(width, rel=0.2, abs=1e-6)
    assert found.accuracies[:, 2].std() > 0
    csv_path, json_path = found.save(tmp_path)
    assert csv_path.read_text().splitlines()[0].startswith("step,loss,loss_low,loss_high,accuracy,")
    assert np.allclose(json.loads(json_path.read_text())["accuracies"], found.accuracies)


def test_the_table_shows_every_step_with_its_own_size():
    found = dataclasses.replace(
        tiny().evaluate(2, step_sizes=(0.25, 0.125)), values=np.array([[1.0, 0.5, 0.25], [1.0, 0.5, 0.25]])
    )
    columns = [list(column.cells) for column in found.table().columns]
    assert columns == [["0", "1", "2"], ["", "0.25", "0.125"],
                       [f"{x} \\[{x}, {x}]" for x in ("1.000", "0.500", "0.250")]]  # fmt: skip


def test_losses_that_are_not_finite_can_be_saved(tmp_path):
    found = dataclasses.replace(tiny().evaluate(3, steps=1), values=np.array([[1.0, np.inf], [2.0, np.nan]]))
    _, path = found.save(tmp_path)
    assert json.loads(path.read_text())["losses"] == [[1.0, None], [2.0, None]]
    assert np.isnan(found.rows()[1].mean_high)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"n_tasks": 0}, "n_tasks must be at least 1, got 0"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"queries": -2}, "queries must be at least 1, got -2"),
        ({"steps": -1}, "steps must not be negative, got -1"),
        ({"step_sizes": [0.1, 0.0]}, "step_sizes must be positive and finite"),
        ({"sets": Sets(*(torch.zeros(1, 2, d) for d in (2, 1, 2, 1)))}, r"inputs must be floats of the shape \(1,\)"),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(given, shown):
    with pytest.raises(ValueError, match=shown):
        tiny().evaluate(**given)


# ---------------------------------------------------------------------------------------------------------------------
# Adaptation to one task


def test_a_predictor_predicts_as_the_evaluation_says():
    learner = tiny(inner_lr=0.01).learn(3)
    sets = Sinusoid().sample(1, np.random.default_rng(0), "test", 4, 5)
    before = {name: value.clone() for name, value in learner.state.params.items()}
    predictor = learner.adapt(sets.x_support[0].numpy(), sets.y_support[0].numpy(), steps=2)
    error = ((predictor.predict(sets.x_query[0]) - sets.y_query[0].numpy()) ** 2).mean()
    assert error == pytest.approx(learner.evaluate(sets=sets, steps=2).losses[0, 2], rel=1e-5)
    assert predictor.support_losses.shape == (3,) and predictor.support_losses[2] < predictor.support_losses[0]
    assert same_params(before, learner.state.params)


def test_of_classes_it_predicts_the_number():
    learner = tiny(blobs(), shots=2, hidden=(20,), inner_lr=0.2).learn(5)
    sets = blobs().sample(1, np.random.default_rng(0), "test", 2, 4)
    predictor = learner.adapt(sets.x_support[0], sets.y_support[0], steps=3)
    found = predictor.predict(sets.x_query[0])
    assert found.shape == (12,) and (found == predictor.outputs(sets.x_query[0]).argmax(1)).all()
    rate = (found == sets.y_query[0].numpy()).mean()
    assert rate == pytest.approx(learner.evaluate(sets=sets, steps=3).accuracies[0, 3])


def test_of_a_yes_or_no_it_predicts_the_probability():
    class Sign(Sinusoid):
        loss, id = "bce", "sign"

        def sample(self, n, rng, split, shots, queries):
            sets = super().sample(n, rng, split, shots, queries)
            return dataclasses.replace(sets, y_support=(sets.y_support > 0).float(),
                                       y_query=(sets.y_query > 0).float())  # fmt: skip

    learner = tiny(Sign(loss="bce")).learn(2)
    predictor = learner.adapt([[0.0], [1.0]], [[0.0], [1.0]])
    logits = predictor.outputs([[0.5]])
    assert predictor.predict([[0.5]]) == pytest.approx(1 / (1 + np.exp(-logits)))
    assert learner.evaluate(10).accuracies.shape == (10, 2)


@pytest.mark.parametrize(
    ("x", "y", "shown"),
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), r"inputs must be floats of the shape \(1,\)"),
        (np.zeros((3, 1)), np.zeros((2, 1)), "the support set needs"),
        (np.zeros((3, 1)), np.zeros((3, 2)), r"targets must be floats \[K, N, 1\]"),
        (np.zeros((3, 1), int), np.zeros((3, 1)), "inputs must be floats"),
    ],
)
def test_support_sets_of_another_kind_are_refused(x, y, shown):
    with pytest.raises(ValueError, match=shown):
        tiny().adapt(x, y)


def test_inputs_of_another_shape_are_refused():
    predictor = tiny().adapt([[0.0]], [[0.0]])
    with pytest.raises(ValueError, match=r"shape \[N, 1\], got \(3,\)"):
        predictor.predict(np.zeros(3))
