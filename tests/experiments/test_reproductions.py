"""experiments/: what the scripts compute of their results, and that their commands and settings are understood."""

import math
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from experiment_scripts import EXPERIMENTS, script

import metarl
from metarl.checkpoint import CheckpointError
from metarl.learner import make_config
from metarl.policies.spaces import spaces_of

NAMES = ("navigation", "corners", "promp_half_cheetah")
COMMANDS = {name: name for name in ("trials", "train", "report")} | {"run_strategies": "strategies"}
"""The functions behind the scripts' commands."""

pytestmark = pytest.mark.skipif(not EXPERIMENTS.exists(), reason="metarl is not run from its repository")


def written(name: str) -> list[list[str]]:
    """The words after the script's path in every command of an experiment's docstring and of the documents."""
    documents = [EXPERIMENTS / name / "README.md", *sorted((EXPERIMENTS.parent / "docs" / "algorithms").glob("*.md"))]
    found = "\n".join([script(name).__doc__ or "", *(path.read_text() for path in documents)])
    lines = re.findall(rf"python experiments/{name}/run\.py ([^\n;]*)", found)
    return [shlex.split(line.replace("$seed", "0").replace("$row", "bandit-n10-k5"), comments=True) for line in lines]


@pytest.mark.parametrize("name", [*NAMES, "maml_2d_navigation", "maml_half_cheetah", "bandits", "rl2"])
def test_the_commands_that_are_written_are_understood(name, monkeypatch):
    module, reached = script(name), []
    for function in COMMANDS.keys() & set(vars(module)):
        monkeypatch.setattr(module, function, lambda *_, function=function: reached.append(COMMANDS[function]))
    monkeypatch.setattr(module.torch, "set_num_threads", lambda _: None)
    argvs = written(name)
    for argv in argvs:
        monkeypatch.setattr(sys, "argv", ["run.py", *argv])
        module.main()
    assert reached == [argv[0] for argv in argvs] and {"train", "report"} <= set(reached)
    monkeypatch.setattr(sys, "argv", ["run.py", "train", "--seeds", "0"])
    with pytest.raises(SystemExit):  # the control
        module.main()


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_every_method_are_valid(name):
    module = script(name)
    for algorithm, own in module.METHODS.values():
        settings = own if algorithm == "rl2" else module.SETTINGS | own
        config = make_config(algorithm, settings)
        assert {key: getattr(config, key) for key in settings} == settings


def test_the_best_trial_is_chosen_and_one_that_diverged_is_not(monkeypatch, tmp_path):
    module = script("navigation")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    trials = [{"inner_lr": 0.5, "outer_lr": 0.1, "score": -3.0}, {"inner_lr": 1.0, "outer_lr": 0.2, "score": -2.0},
              {"inner_lr": 2.0, "outer_lr": 0.2, "score": None}]  # fmt: skip
    module.write_json(tmp_path / "promp-trials.json", {"trials": trials})
    assert module.chosen("promp") == {"inner_lr": 1.0, "outer_lr": 0.2}
    assert module.chosen("joint") == {"inner_lr": 0.5}
    module.write_json(tmp_path / "maml_trpo-trials.json", {"trials": [{"inner_lr": 2.0, "score": -1.0}]})
    assert module.chosen("lvc") == module.chosen("maml_trpo") == {"inner_lr": 2.0}


def test_rl2_is_trained_and_tested_without_inner_step_sizes(monkeypatch, tmp_path):
    module = script("navigation")
    small = {"n_tasks": 4, "trial_episodes": 4, "hidden": 3}
    for name, value in (("RESULTS", tmp_path / "found"), ("METHODS", {"rl2": ("rl2", small)}),
                        ("TEST", {"n_tasks": 3, "episodes": 2}), ("TRIAL_BUDGET", 1)):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "VALIDATION", {"n_tasks": 2, "episodes": 1, "seed": 1})
    module.trials(tmp_path, ["rl2"])
    module.train(0, tmp_path, ["rl2"], 801)
    found = module.read_json(tmp_path / "found" / "rl2-seed0.json")
    assert found["env_steps"] == 2 * 4 * 4 * 50 and len(found["mean"]) == 4
    assert found["settings"]["config"]["outer_lr"] == module.chosen("rl2")["outer_lr"]
    module.report()
    assert "| `rl2` |" in (tmp_path / "found" / "table.md").read_text()


def test_smoothing_by_hand():
    np.testing.assert_allclose(script("navigation").smooth([3.0, 1.0, 2.0, 6.0]), [3, 2, 2, 3])


def test_two_steps_go_on_from_one(monkeypatch):
    module = script("maml_2d_navigation")
    monkeypatch.setattr(module, "SETTINGS", module.SETTINGS | {"n_tasks": 2, "episodes": 2})
    monkeypatch.setattr(module, "ONE_STEP_FIRST", 2)
    first = module.new_learner("two_steps", 0, inner_steps=1, lr_schedule=())
    made = module.new_learner("two_steps", 0)
    start = made.state.params
    module.after_one_step(made, first)
    assert made.state.iteration == first.state.iteration == 2
    assert made.state.env_steps == first.state.env_steps > 0
    assert all(torch.equal(made.state.params[name], first.state.params[name]) for name in start)
    assert not torch.equal(made.state.params["w2"], start["w2"])  # negative control
    noise = made.state.learned["noise"]
    assert torch.equal(noise[:1], first.state.learned["noise"]) and noise[0].abs().min() > 0
    assert noise.shape == (2, 2) and not noise[1].any()
    made.learn(1)
    assert made.state.iteration == 3 and made.state.learned["noise"][1].abs().min() > 0


def test_long_trials_start_from_short_ones(monkeypatch, tmp_path):
    module, small = script("rl2"), {"n_tasks": 8, "hidden": 4, "minibatches": 2, "epochs": 1}
    for row, before in module.STARTS_FROM.items():  # what fits in full size fits in small
        shapes = []
        for name in (row, before):
            config, family = make_config("rl2", module.ROWS[name]["settings"]), module.family_of(name)
            params = config.policy(spaces_of(family)).init(torch.Generator())
            shapes.append((family.id, {n: tuple(x.shape) for n, x in params.items()}))
        assert shapes[0] == shapes[1]
    rows = {"long": {"arms": 5, "n": 3, "settings": {**small, "anneal_over": 1}, "tasks": 6},
            "short": {"arms": 5, "n": 2, "settings": {**small, "anneal_over": 2}, "tasks": 6}}  # fmt: skip
    for name, value in (("ROWS", rows), ("STARTS_FROM", {"long": "short"}), ("RESULTS", tmp_path / "results")):
        monkeypatch.setattr(module, name, value)
    with pytest.raises(CheckpointError, match="short-seed0"):
        module.train("long", 0, tmp_path, 10.0)
    for row in ("short", "long"):
        module.train(row, 0, tmp_path, 10.0)
    short, long = (metarl.MetaLearner.load(tmp_path / f"{row}-seed0", device="cpu") for row in ("short", "long"))
    assert (short.state.iteration, long.state.iteration, long.config.trial_episodes) == (2, 1, 3)
    change = (long.state.params["w_rec"] - short.state.params["w_rec"]).abs().max()
    assert 0 < change <= 2 * small["epochs"] * small["minibatches"] * long.config.outer_lr  # a few steps of Adam
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        f"{row}-seed0{end}" for row in rows for end in (".csv", ".json", "-training.csv")}  # fmt: skip


def test_what_strategies_earn_in_a_tabular_mdp():
    """With one state the two are the same bandit strategy; with more, only the one that looks at the state can know
    which action is good in which."""
    play = script("rl2").posterior_strategy
    rng = np.random.default_rng(0)
    one = {"transitions": np.ones((50, 1, 5, 1)), "rewards": rng.normal(1, 1, (50, 1, 5))}
    assert np.array_equal(play(one, 4, 10, True, seed=3), play(one, 4, 10, False, seed=3))
    # Two states that take turns, in each of which the other action earns 1 and the first is wrong: 0.
    turns = np.tile(np.array([[[0.0, 1], [0, 1]], [[1, 0], [1, 0]]]), (200, 1, 1, 1))
    rewards = np.tile(np.array([[0.0, 8], [8, 0]]), (200, 1, 1))
    looks, blind = (play({"transitions": turns, "rewards": rewards}, 10, 10, x, seed=0) for x in (True, False))
    assert 780 < looks.mean() <= 800 + 3 and 350 < blind.mean() < 450
    # One state, one good action of many: who does not explore stays with the first that pays.
    bandit = {
        "transitions": np.ones((300, 1, 9, 1)),
        "rewards": rng.permuted(np.tile([9.0] + [2.0] * 8, (300, 1, 1)), axis=-1),
    }
    explores, stays = (play(bandit, 10, 10, True, bonus).mean() for bonus in (3.0, 0.0))
    assert stays < 0.6 * explores


def test_goals_are_weighed_to_the_distances_of_the_whole_square():
    weights = script("maml_2d_navigation").stratified_weights
    rng = np.random.default_rng(1)
    square = rng.uniform(-0.5, 0.5, (4000, 2))
    near = np.linalg.norm(square, axis=-1) < 0.3
    goals = np.concatenate([square[near], square[~near][:500]])  # far too few of those far away
    found, distance = weights(goals), np.linalg.norm(goals, axis=-1)
    assert found.sum() == pytest.approx(1)
    assert (found * distance).sum() == pytest.approx(0.3826, abs=0.003)  # of the unit square: (sqrt 2 + asinh 1) / 6
    assert distance.mean() < 0.3  # negative control
    one_each = weights(square, strata=1)
    assert one_each == pytest.approx(np.full(4000, 1 / 4000))


def test_goals_are_read(tmp_path):
    (tmp_path / "x.csv").write_text("goal_x,goal_y\n0.3,0.4\n0,-0.1\n")
    np.testing.assert_allclose(script("navigation").read_goals(tmp_path / "x.csv"), [[0.3, 0.4], [0, -0.1]])


def test_reached_corners_by_hand():
    module = script("corners")
    straight = np.linspace([0, 0], [2, 2], 5)  # ends on corner 3
    near = np.linspace([0, 0], [-2, 1.6], 5)  # ends 0.4 below corner 2
    past = np.stack([np.zeros(5), np.zeros(5)], -1)
    past[2] = (2, -1.45)  # 0.55 from corner 1
    found = module.reached(np.stack([straight, near, past]))
    assert found.tolist() == [[False] * 3 + [True], [False, False, True, False], [False] * 4]
    assert module.reached(past[None], radius=0.6).tolist() == [[False, True, False, False]]
    with pytest.raises(AssertionError, match="paths"):
        module.reached(straight)


def test_walking_to_a_known_corner_is_not_the_most_that_can_be_earned():
    """From the origin the way to (2, 2) is 2 sqrt 2 long and felt from (0.4, 0.4) on, where it begins at (0.2, 0.2);
    starts vary by 0.2. To and fro, a step of 0.18 in both coordinates is paid every other time."""
    module = script("corners")
    family = metarl.make("PointNavigationCorners-v0", horizon=50)
    straight, to_and_fro = (module.known_return(family, 200, x) for x in (False, True))
    assert 2.55 < straight < 2 * math.sqrt(2) - 0.15
    assert to_and_fro == pytest.approx(25 * 0.18 * math.sqrt(2), rel=0.05)
    assert module.known_corner(20)[2].startswith("| near | 2.6")


def test_corners_that_are_felt_by_hand():
    # Through the quadrants of corners 3 and 2; and near the origin, where nothing is felt.
    path = np.array([[0.0, 0.0], [0.3, 0.3], [-0.1, 0.3], [-0.4, 0.2]])
    near = np.array([[0.2, 0.2], [-0.2, 0.2], [-0.2, -0.2], [0.2, -0.2]])
    felt = script("corners").felt
    assert felt(np.stack([path, near]), 0.5).tolist() == [[False, False, True, True], [False] * 4]
    assert felt(np.stack([path, near]), 0.65).tolist() == [[False] * 4] * 2


@pytest.mark.parametrize(("form", "size"), [("near", 0.6), ("far", 2.0)])
def test_what_is_felt_is_what_the_environment_rewards(form, size):
    module = script("corners")
    family = metarl.make(module.FAMILY, **module.FORMS[form][0])
    points = np.random.default_rng(0).uniform(-size, size, (50, 2))
    found = module.felt(points[:, None], family.start_radius)
    assert 5 < found.any(1).sum() < 45
    for point, felt in zip(points, found, strict=True):
        state = {"position": torch.as_tensor(point, dtype=torch.float32).expand(4, 1, 2) * 0.99}
        action = torch.as_tensor(point, dtype=torch.float32).expand(4, 1, 2) * 0.01
        _, reward, _ = family.step(state, action, {"corner": torch.arange(4)[:, None]}, torch.empty(4, 1, 0))
        assert (reward[:, 0] > 0).tolist() == felt.tolist()


def test_quadrants_by_hand():
    points = np.array([[0.1, 0.2], [3, 9], [-1, 0.1], [1, -1]])
    np.testing.assert_allclose(script("corners").quadrants(points), [0, 0.25, 0.25, 0.5])


@pytest.mark.parametrize(
    ("weights", "bits"), [((1, 1, 1, 1), 2), ((0.3, 0.3, 0, 0), 1), ((5, 0, 0, 0), 0), ((0, 0, 0, 0), 0)]
)
def test_entropy_by_hand(weights, bits):
    assert script("corners").entropy(np.array(weights, float)) == pytest.approx(bits, abs=1e-12)


def test_entropy_of_an_uneven_pair():
    expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert script("corners").entropy(np.array([0.1, 0.3])) == pytest.approx(expected)


def test_the_clock_goes_on_and_forgets_what_was_not_saved(tmp_path):
    module = script("promp_half_cheetah")
    path = tmp_path / "x.csv"
    stats = {"env_steps": 10, "return/step_0": 1.0, "return/step_1": 2.0}
    path.write_text(",".join(module.COLUMNS) + "\n1,10,5.0,3.0,1.0,2.0\n2,20,100.0,100.0,1.0,2.0\n")
    clock = module.Clock(path, iteration=1)  # iteration 2 was lost
    clock({"iteration": 2, **stats})
    first, second = module.read_rows(path)
    assert first["clock_seconds"] == 5.0 and 5.0 <= second["clock_seconds"] < 10 and 3.0 <= second["cpu_seconds"] < 8
    assert second["return_1"] == 2.0


def test_the_tasks_that_the_scripts_write_down_exist():
    module = script("corners")
    assert spaces_of(metarl.make(module.FAMILY, horizon=module.HORIZON)).obs_dim == 2
    assert set(metarl.make(module.FAMILY).task_space) == {"corner"}
    pytest.importorskip("mujoco")
    assert set(metarl.make(script("promp_half_cheetah").FAMILY).task_space) == {"forward"}


def test_different_numbers_are_counted():
    count = script("rl2").num_distinct
    assert count(np.array([[1, 1, 2], [0, 0, 0], [5, 6, 7]])) == 2 and count(np.array([[2, 1, 2]])) == 2
