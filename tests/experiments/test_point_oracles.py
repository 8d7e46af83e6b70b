"""experiments/: what policies that know something about the goal earn, and what limits the first inner step."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from metarl_envs.point_navigation import PointNavigation

import metarl
from metarl.formulas.distributions import Gaussian

EXPERIMENTS = Path(metarl.__file__).parents[1] / "experiments"
GOALS = np.array([[0.1, 0.0], [0.0, -0.3]])

pytestmark = pytest.mark.skipif(not EXPERIMENTS.exists(), reason="metarl is not run from its repository")


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def oracles() -> ModuleType:
    return loaded(EXPERIMENTS / "point_oracles.py")


@pytest.fixture(scope="module")
def first_step() -> ModuleType:
    pytest.importorskip("matplotlib")
    folder = EXPERIMENTS / "maml_2d_navigation"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "run", raising=False)
        module = loaded(folder / "first_step.py")
    sys.modules.pop("run")  # every experiment has one
    return module


def paid(distances):
    """What an episode earns that is at these distances from its goal after its steps, until it ends."""
    total = 0.0
    for distance in distances:
        total -= abs(distance)
        if abs(distance) < 0.01:
            break
    return total


def test_what_is_earned_with_all_and_with_nothing_by_hand(oracles):
    family = PointNavigation(50)
    assert oracles.play(family, GOALS, oracles.still) == pytest.approx([-50 * 0.1, -50 * 0.3])
    assert oracles.play(family, GOALS, oracles.direct) == pytest.approx([0, -(0.2 + 0.1)], abs=1e-6)


def test_staying_somewhere_on_the_ray_by_hand(oracles):
    stay = oracles.stop(0.2)
    endless = oracles.EndlessNavigation(50)
    assert oracles.play(endless, GOALS, stay) == pytest.approx([0 - 49 * 0.1, -(0.2 + 49 * 0.1)], abs=1e-5)
    found = oracles.play(PointNavigation(50), GOALS, stay)
    assert found == pytest.approx([0, -(0.2 + 49 * 0.1)], abs=1e-5)  # passing the goal ends the episode


@pytest.mark.parametrize("first", [None, 0.05])
def test_sweeping_the_ray_by_hand(oracles, first):
    speed, goals = 0.0199, np.array([[0.123, 0.0], [0.0, -0.321]])
    places = (speed if first is None else first) + speed * np.arange(50)
    want = [paid(places - 0.123), paid(places - 0.321)]
    assert oracles.play(PointNavigation(50), goals, oracles.sweep(speed, first)) == pytest.approx(want, abs=1e-4)
    endless = oracles.play(oracles.EndlessNavigation(50), goals, oracles.sweep(speed, first))  # negative control
    assert (endless < np.array(want) - 5).all()


def test_sweeping_back_by_hand(oracles):
    out, back = 0.1 * np.arange(1, 6), 0.5 - 0.0199 * np.arange(1, 46)
    want = paid(np.concatenate([out, back]) - 0.255)
    found = oracles.play(PointNavigation(50), np.array([[0.255, 0.0], [0.0, -0.255]]), oracles.sweep_back(1.0, 0.0199))
    assert found == pytest.approx([want, want], abs=1e-4)
    assert len(np.flatnonzero(np.abs(np.concatenate([out, back]) - 0.255) < 0.01))  # it does end


def test_noise_has_its_deviation_and_is_pulled_back_to_the_ray(oracles):
    walk, goals = oracles.noisy(0.1, 0.2, 0.04), torch.tensor([[0.4, 0.0]]).repeat(4000, 1)
    away = torch.tensor([[0.25, 0.03]]).repeat(4000, 1)
    step = walk(3, away, goals)
    assert step.mean(0).numpy() == pytest.approx([-0.05, -0.03], abs=0.003)
    assert step.std(0).numpy() == pytest.approx([0.04, 0.04], rel=0.05)
    still = oracles.noisy(0.02, math.inf, 0.0)(0, away, goals)
    assert still[0].numpy() == pytest.approx([0.02, -0.03], abs=1e-6)


def test_nobody_beats_who_knows_the_goal_and_the_direction_is_worth_more_than_a_walk(oracles, monkeypatch):
    for name, value in (("TUNING", 200), ("RADII", (0.3, 0.4)), ("FIRST_STEPS", (0.05,)), ("SHARES", (1.0,))):
        monkeypatch.setattr(oracles, name, value)
    goals = PointNavigation().sample(300, np.random.default_rng(5))["goal"]
    found = {name: returns for name, (_, returns) in oracles.oracles(goals, 100).items()}
    best = found["direction and distance: goes there directly"]
    assert all((returns <= best + 1e-4).all() for returns in found.values())
    walks = found["the direction: walks as far as is best on average, episodes never end"].mean()
    assert -14 < walks < -11 and found["the direction: sweeps the ray"].mean() > -5
    assert found["the direction, noise 0.04: sweeps the ray"].mean() < walks  # with the policies' noise it is no use
    kinds = list(found)
    lines = oracles.table(goals, 100)
    assert len(lines) == 2 + len(kinds) and lines[2].startswith(f"| {kinds[0]} |  | {found[kinds[0]].mean():.2f} |")


class Drawn:
    """A policy that goes to `params["target"]` [K, 2] and comes to rest there."""

    def distribution(self, params, obs):
        return Gaussian((params["target"][:, None] - obs) / 0.1, torch.full((len(obs), 1, 2), math.log(0.1)))


def test_each_error_of_an_adapted_policy_is_put_right_on_its_own(first_step):
    goals = torch.tensor([[0.3, 0.0], [0.0, 0.2], [-0.25, -0.25]])
    off = first_step.rotation(torch.full((3,), math.radians(10.0)))
    target = 0.5 * (off @ goals[..., None])[..., 0]
    found = first_step.counterfactuals(Drawn(), {"target": target}, goals, 30)
    assert found["direction error, median, degrees"] == pytest.approx(10, abs=1e-2)
    assert found["distance of the point of rest, mean"] == pytest.approx(0.5 * found["distance of the goal, mean"])
    ways = ("as it is", "right direction", "right distance", "both right")
    as_it_is, direction, distance, both = (found[f"return, {name}, without noise"] for name in ways)
    half = torch.linalg.vector_norm(goals, dim=-1) / 2
    assert direction == pytest.approx(-100 * half.mean().item(), abs=1.0)  # rests half way, in the right direction
    chord = 2 * math.sin(math.radians(5)) * 2 * half.mean().item()
    assert distance == pytest.approx(-100 * chord, abs=1.0)
    assert as_it_is < direction < distance < both and both > -1
    assert -10 < found["return, both right"] < both  # with noise it takes longer to meet the goal


def test_played_as_it_is_a_policy_earns_what_its_evaluation_says(first_step):
    learner = metarl.MetaLearner("maml_trpo", "PointNavigation-v0", seed=0, device="cpu", lr_in_std=True, init_std=0.2)
    found = learner.evaluate(20, episodes=20, step_sizes=(0.5,), details=True)
    goals = torch.as_tensor(found.tasks["goal"])
    total, _ = first_step.play(learner.policy, found.details.params[1], goals, 20)
    assert total.mean().item() == pytest.approx(found.mean[1], rel=0.02)


def test_what_a_regression_explains(first_step, monkeypatch):
    monkeypatch.setattr(first_step, "GOALS", {"train": 300, "validation": 60, "test": 80})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(440, 5)) * [1, 1e-3, 100, 1, 0]
    assert first_step.explained(x, x[:, 0] + 1000 * x[:, 1]) > 0.999
    assert abs(first_step.explained(x, rng.normal(size=440))) < 0.1
    half = x[:, 0] + rng.normal(size=440)
    assert 0.3 < first_step.explained(x, half) < 0.65


def test_the_table_has_the_mean_and_the_range_of_the_seeds(first_step):
    results = {"maml": {"0": {"return": -1.0}, "1": {"return": -2.0}}, "two_steps": {"0": {"return": 3.0}}}
    lines = first_step.rows(results)
    assert lines[0] == "| after one inner step | maml, 2 seeds | two_steps, 1 seeds |"
    assert lines[2] == "| return | -1.50 (-2.00 to -1.00) | 3.00 (3.00 to 3.00) |"


def test_without_checkpoints_it_says_what_to_do(first_step, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["first_step.py", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit):
        first_step.main()
    assert "train them with run.py first" in capsys.readouterr().err
