"""A run that learns nothing, or gets worse, says so once; a run that is as it should be says nothing."""

import csv
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from tiny_runs import point, tiny

import metarl
from metarl import MetaLearner
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.health import Health, fall, no_signal

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RETURN = "return/step_1"


def watched(curve: list[float], **more: Any) -> list[str]:
    """What is reported of a run with these returns after adaptation."""
    health = Health()
    found = [text for value in curve for text in health.after({RETURN: value, "outer/gradient_norm": 1.0, **more})]
    return found + health.at_end()


def noisy(mean: Callable[[int], float], n: int, std: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [mean(i) + rng.gauss(0, std) for i in range(n)]


# ---------------------------------------------------------------------------------------------------------------------
# Falling


@pytest.mark.parametrize(
    "curve",
    [
        noisy(lambda i: -68 - 267 * i / 19, 20, 5.0),  # from the start on
        noisy(lambda i: -68 - 267 * i / 8, 9, 5.0),  # in as few iterations as can tell
        noisy(lambda i: -490 + 42 * min(i, 10) - 30 * max(0, i - 20), 30, 10.0),  # first it learned
        noisy(lambda i: -68 if i < 10 else -335, 20, 5.0),  # at one blow
        noisy(lambda i: -68 if i < 2 else -335, 20, 15.0),  # by the first updates
    ],
    ids=["at once", "short", "later", "blow", "first"],
)
def test_a_run_that_gets_worse_says_so_once(curve):
    found = watched(curve)
    assert len(found) == 1
    assert found[0].startswith("training gets worse: the mean return after adaptation was ")
    assert "outer_lr" in watched(curve, **{"outer/lr": 0.1})[0]
    assert "max_kl" in watched(curve, **{"outer/accepted": 1.0})[0]


def test_the_numbers_in_it_are_means_of_windows():
    curve = [0.0, 0.0, 0.0, *[10.0] * 9, *[-5.0, -6.0, -7.0]]
    text = fall(curve, {})
    assert text is not None
    assert "was 10 at its best and is -6 over the last 3 of 15 iterations" in text


def test_less_than_half_of_the_gain_is_no_report_and_more_is_one():
    def up_and_down(to: float) -> list[float]:
        return [0.0] * 5 + [100.0] * 10 + [to] * 15

    assert fall(up_and_down(60.0), {}) is None
    assert fall(up_and_down(40.0), {}) is not None


@pytest.mark.parametrize("draw", ["gauss", "exponential"])
def test_noise_alone_is_no_fall(draw):
    rng = np.random.default_rng(0)
    draws = {"gauss": rng.normal, "exponential": rng.exponential}[draw]
    alarms = sum(bool(watched(list(map(float, draws(size=60))))) for _ in range(300))
    assert alarms <= 3


def curves() -> dict[str, list[float]]:
    """Returns after adaptation of the runs that this repository keeps."""
    out = {}
    for folder in ("maml_2d_navigation", "maml_half_cheetah", "promp_half_cheetah", "rl2"):
        for path in sorted((EXPERIMENTS / folder / "results").rglob("*.csv")):
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            columns = [name for name in rows[0] if name.startswith("return")]
            if "iteration" in rows[0] and columns:
                out[f"{folder}/{path.name}"] = [float(row[columns[-1]]) for row in rows if row[columns[-1]]]
    return out


def test_runs_that_learned_raise_no_alarm():
    runs = curves()
    assert len(runs) >= 20
    assert {name: watched(curve) for name, curve in runs.items() if watched(curve)} == {}


def test_the_same_runs_backwards_raise_it():
    # The control: backwards, most of these runs forget what they knew.
    backwards = [curve[::-1] for curve in curves().values() if len(curve) >= 20]
    assert sum(bool(watched(curve)) for curve in backwards) > 0.8 * len(backwards)


# ---------------------------------------------------------------------------------------------------------------------
# No signal


def stats(value: float = 1.0, norm: float = 1.0, accepted: bool = True, **more: Any) -> dict[str, Any]:
    own = {"return/step_0": value, RETURN: value, "outer/gradient_norm": norm, "outer/accepted": accepted}
    return own | more


def test_the_same_return_in_every_iteration_is_no_signal():
    assert "every mean return of the first 4 iterations is -100" in str(no_signal([stats(-100.0)] * 4))
    assert no_signal([stats(-100.0)] * 3 + [stats(-99.9)]) is None
    assert no_signal([stats(-100.0)]) is None  # once can be chance


def test_a_gradient_of_zero_is_no_signal():
    assert "meta-gradient of the first 2 iterations is zero" in str(no_signal([stats(1, 0.0), stats(2, 0.0)]))
    assert no_signal([stats(1, 0.0), stats(2, 1e-9)]) is None
    assert "zero" in str(no_signal([{RETURN: 1.0, "outer/step_norm": 0.0}]))


def test_that_nothing_was_accepted_takes_three_iterations():
    refused = [stats(float(i), accepted=False) for i in range(4)]
    assert "accepted none of the first 4" in str(no_signal(refused))
    assert no_signal(refused[:2]) is None
    assert no_signal([*refused, stats(9.0)]) is None


def test_it_is_said_after_ten_iterations_and_not_again():
    health = Health()
    found = [health.after(stats(-100.0)) for _ in range(30)] + [health.at_end()]
    assert [i for i, texts in enumerate(found) if texts] == [9]


class Flat(gym.Env):
    """No action changes anything."""

    observation_space, action_space = Box(-1.0, 1.0, (2,), np.float32), Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), -1.0, False, False, {}


@pytest.mark.parametrize("algorithm", ["maml_trpo", "promp", "reptile"])
def test_learners_warn(algorithm):
    family = metarl.from_gymnasium(Flat, {"gain": Box(0.5, 2.0)}, horizon=5)
    learner = MetaLearner(algorithm, family, n_tasks=2, episodes=2, hidden=(4,), device="cpu")
    with pytest.warns(UserWarning, match="nothing to learn from: every mean return of the first 3 iterations is -5"):
        learner.learn(3, eval_every=0)


def test_a_learner_that_gets_worse_warns_where_it_was_called(monkeypatch):
    learner = tiny()
    step = learner._step

    def worse(state: Any) -> tuple[Any, dict[str, Any]]:
        new, stats = step(state)
        return new, {**stats, RETURN: stats[RETURN] - 10.0 * new.iteration}

    monkeypatch.setattr(learner, "_step", worse)
    with pytest.warns(UserWarning, match="training gets worse") as told:
        learner.learn(12, eval_every=0)
    assert told[0].filename == __file__


def test_usual_runs_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny(point(20), n_tasks=5, episodes=5, max_kl=0.02).learn(25, eval_every=0)
        FewShotLearner(Sinusoid(), n_tasks=4, hidden=(16,), device="cpu").learn(200)


def test_the_terminal_shows_a_line(tmp_path):
    argv = ["train", "maml_trpo", "MountainCarParams-v0", "--n-tasks", "2", "--episodes", "2", "--hidden", "4",
            "--family-kwargs", "horizon=20", "--iterations", "3", "--eval-every", "0", "--no-progress",
            "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "metarl", *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "nothing to learn from" in line]
    assert len(lines) == 1
    assert lines[0].startswith("note: nothing to learn from: every mean return of the first 3 iterations is -20")
