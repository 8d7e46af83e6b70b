"""Steps beyond those of training: their sizes are chosen on validation tasks, not on those that are reported."""

import json
from typing import Any

import numpy as np
import pytest

import metarl
from metarl.report.evaluation import STEP_SIZES, evaluation_seed
from metarl.report.step_sizes import FACTORS, TASKS, choose
from metarl.rollout.finite import NotFiniteError


def valley(sizes: tuple[float, ...]) -> tuple[float, int]:
    """Adaptation of one number to 1: a step takes it by its size towards 1.6, so that steps of 1 overshoot."""
    x = 0.0
    for size in sizes:
        x += size * (1.6 - x)
    return -abs(x - 1), 5 * (len(sizes) + 1)


def test_each_further_size_is_the_best_after_those_before_it():
    choice = choose(valley, [0.5, 0.5, 0.5], 1, 2)
    # 0.8 after the first; then 1.2, 1.0, 0.9, 0.85 with the four sizes; then anything takes it away from 1.
    assert choice.sizes == (0.5, 0.25, 0.0625)
    assert [list(step) for step in choice.tried] == [[0.5 * factor for factor in FACTORS]] * 2
    assert choice.tried[0][0.5] == pytest.approx(-0.2) and choice.tried[0][0.25] == pytest.approx(0.0)


def test_of_equally_good_sizes_the_smallest_is_taken():
    def flat(sizes: tuple[float, ...]) -> tuple[float, int]:
        return 0.0, 0

    assert choose(flat, [0.5, 0.5], 1, 2).sizes == (0.5, 0.5 * min(FACTORS))


def test_a_size_too_long_to_compute_with_is_the_worst_and_ends_nothing():
    def overflows(sizes: tuple[float, ...]) -> tuple[float, int]:
        if sizes[-1] > 0.2:
            raise NotFiniteError("parameters too large have overflowed")
        return valley(sizes)

    choice = choose(overflows, [0.5, 0.5], 1, 2)
    assert choice.sizes == (0.5, 0.125) and choice.tried[0][0.5] == -np.inf
    assert json.dumps(choice.as_data(), allow_nan=False).count("null") == 2


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_nor_is_one_chosen_that_ends_in_no_number(odd, higher_is_better):
    def play(sizes: tuple[float, ...]) -> tuple[float, int]:
        return (1.0, 0) if sizes[-1] == 0.25 else (odd, 0)

    assert choose(play, [0.5, 0.5], 1, 2, "loss", higher_is_better).sizes == (0.5, 0.25)


def test_what_the_choice_costs_is_counted():
    # Two steps with four candidates each, of three and four rollouts of five steps.
    assert choose(valley, [0.5, 0.5, 0.5], 1, 2).env_steps == 4 * 3 * 5 + 4 * 4 * 5


def learner(**settings: Any) -> metarl.MetaLearner:
    own = {"n_tasks": 4, "episodes": 5, "hidden": (8,)} | settings
    return metarl.MetaLearner("maml_trpo", metarl.make("PointNavigation-v0", horizon=20), seed=0, **own)


@pytest.mark.parametrize(
    ("settings", "steps", "sizes"),
    [
        ({}, 1, (0.5,)),
        ({"inner_steps": 2}, 2, (0.5, 0.5)),
        ({"lr_schedule": (1.0, 0.25, 0.5)}, 3, (0.5, 0.125, 0.25)),
    ],
    ids=["one", "two", "schedule"],
)
def test_the_sizes_that_training_or_its_schedule_has_are_not_chosen(settings, steps, sizes):
    found = learner(**settings).evaluate(n_tasks=3, steps=steps)
    assert found.step_sizes == sizes and found.choice is None


def test_given_sizes_are_taken_as_they_are():
    found = learner().evaluate(n_tasks=3, step_sizes=[0.5, 0.5])
    assert found.step_sizes == (0.5, 0.5) and found.choice is None


def test_of_joint_training_the_first_size_is_chosen_too():
    found = learner(inner_steps=0).evaluate(n_tasks=3, steps=1)
    assert found.choice is not None and len(found.choice.tried) == 1


def test_the_choice_is_made_on_other_tasks_than_those_reported():
    made, drawn = learner(), []
    tasks = made.sampler.tasks

    def noted(n: int, seed: int, iteration: int, split: str = "train") -> Any:
        found = tasks(n, seed, iteration, split)
        drawn.append((n, split, found["goal"]))
        return found

    made.sampler.tasks = noted  # type: ignore[method-assign]
    made.evaluate(n_tasks=30, steps=2)
    (n, chosen_on, first), (_, reported_on, second) = sorted(drawn, key=lambda x: x[0])
    assert (n, reported_on) == (TASKS, "test") and chosen_on != "test"
    assert not (first[:, None] == second[None]).all(-1).any()


def test_no_reported_episode_is_one_that_the_choice_saw():
    made = learner()
    assert evaluation_seed(0, STEP_SIZES) not in (made.evaluate(n_tasks=2, steps=2).seed, made.seed)


def test_evaluate_and_adapt_take_the_same_sizes_and_choose_once(monkeypatch):
    made, played = learner(), []
    evaluate = made._evaluate

    def noted(state: Any, sampler: Any, tasks: Any, episodes: int, sizes: Any, seed: int) -> Any:
        played.append(sizes)
        return evaluate(state, sampler, tasks, episodes, sizes, seed)

    monkeypatch.setattr(made, "_evaluate", noted)
    found = made.evaluate(n_tasks=2, steps=3)
    assert len(played) == 2 * len(FACTORS) + 1 and played[-1] == found.step_sizes
    made.adapt({"goal": [0.1, 0.2]}, steps=3)
    assert len(played) == 2 * len(FACTORS) + 2 and played[-1] == found.step_sizes


def test_another_state_is_chosen_for_anew():
    made = learner()
    before = made.evaluate(n_tasks=2, steps=2).choice
    made.learn(1, eval_every=0)
    after = made.evaluate(n_tasks=2, steps=2).choice
    assert before is not None and after is not None and before.tried != after.tried


def test_the_table_and_the_file_say_that_sizes_were_chosen_and_on_what(tmp_path):
    found = learner().evaluate(n_tasks=2, steps=2)
    assert found.choice is not None
    assert "size of step 2 chosen on 20 validation tasks" in " ".join(repr(found).split())
    found.save(tmp_path)
    data = json.loads((tmp_path / "adaptation.json").read_text())
    assert data["step_sizes_chosen"]["tasks"] == 20
    assert data["step_sizes_chosen"]["tried"] == [{"size": s, "return": r} for s, r in found.choice.tried[0].items()]


def test_later_steps_as_long_as_the_first_overshoot_and_those_of_the_default_do_not():
    family = metarl.make("PointNavigation-v0", horizon=50)
    made = metarl.MetaLearner("maml_trpo", family, seed=0, cg_iterations=10).learn(5)
    usual = made.evaluate(n_tasks=60, step_sizes=[0.5, 0.5]).mean
    found = made.evaluate(n_tasks=60, steps=2).mean
    assert usual[1] == found[1] and usual[2] < usual[1] - 1, "the negative control"
    assert found[2] > found[1]


def test_rl2_has_no_sizes_to_choose():
    family = metarl.make("PointNavigation-v0", horizon=5)
    made = metarl.MetaLearner("rl2", family, n_tasks=2, trial_episodes=2, minibatches=1, hidden=8)
    found = made.evaluate(n_tasks=2, steps=3)
    assert found.step_sizes == (None,) * 3 and found.choice is None
