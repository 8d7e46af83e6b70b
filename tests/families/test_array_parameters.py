"""Task parameters of from_gymnasium whose values are arrays: every way to draw them, every way into the environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
from gymnasium.spaces import Box

from metarl import MetaLearner, check_family, from_gymnasium
from metarl.families.priors import prior

SMALL = {"n_tasks": 2, "episodes": 2, "hidden": (4,), "device": "cpu"}


class Reach(gym.Env):
    """Paid for being near `goal`, which it cannot see."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-1.0, 1.0, (3,), np.float32)
    goal: Any

    def begin(self, seed: int | None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x = self.np_random.normal(0.0, 0.1, 3)
        return self.x.astype(np.float32), {}

    def step(self, action):
        self.x = self.x + 0.1 * action
        return self.x.astype(np.float32), -float(((self.x - self.goal) ** 2).sum()), False, False, {}


class ByKeyword(Reach):
    def __init__(self, goal=(0.0, 0.0, 0.0)):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        return self.begin(seed)


class ByAttribute(Reach):
    def __init__(self):
        self.goal = np.zeros(3)

    def reset(self, *, seed=None, options=None):
        return self.begin(seed)


class ByTuple(ByAttribute):
    def __init__(self):
        self.goal = (0.0, 0.0, 0.0)


class ByOption(Reach):
    def reset(self, *, seed=None, options=None):
        self.goal = (options or {}).get("goal", np.zeros(3))
        return self.begin(seed)


WAYS = (ByKeyword, ByAttribute, ByTuple, ByOption)
for way in WAYS:
    gym.register(f"Reach{way.__name__}-v0", entry_point=way, max_episode_steps=4)

PRIORS = {
    "box": Box(-1.0, 1.0, (3,)),
    "list of arrays": [np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])],
    "list of lists": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "array": np.eye(3),
    "normal": scipy.stats.norm(np.zeros(3), 1.0),
    "multivariate normal": scipy.stats.multivariate_normal(np.zeros(3), np.eye(3)),
    "dirichlet": scipy.stats.dirichlet([1.0, 1.0, 1.0]),
    "function": (lambda rng, n: rng.uniform(-1.0, 1.0, (n, 3)), Box(-1.0, 1.0, (3,))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("drawn", ["box", "list of arrays"])
def test_a_goal_is_trained_on_saved_and_adapted_to(tmp_path, way, drawn):
    family = from_gymnasium(f"Reach{way.__name__}-v0", {"goal": PRIORS[drawn]})
    check_family(family)
    learners = [MetaLearner("maml_trpo", family, workers=n, **SMALL).learn(1, eval_every=0) for n in (0, 2)]
    one, other = (learner.state.params for learner in learners)
    assert all((one[name] == other[name]).all() for name in one)  # the backends agree
    learners[1].close()
    learners[0].save(tmp_path / "learner")
    loaded = MetaLearner.load(tmp_path / "learner", device="cpu")
    assert loaded.family == family
    near, far = (loaded.adapt({"goal": goal}, seed=0).returns[0] for goal in ([0, 1, 0], np.array([0.0, 1.0, 0.0])))
    assert near == far  # numbers of any kind
    env = family.make({"goal": [0.0, 1.0, 0.0]})
    env.reset(seed=0)
    assert np.array_equal(env.unwrapped.goal, [0.0, 1.0, 0.0])


@pytest.mark.parametrize("drawn", PRIORS)
def test_every_way_to_draw_makes_tasks_of_three_numbers(drawn):
    family = from_gymnasium(ByKeyword, {"goal": PRIORS[drawn]}, horizon=4, splits={"ood": {"goal": Box(1, 2, (3,))}})
    assert str(family) and family.task_space["goal"].shape == (3,)
    for split in ("train", "ood"):
        goals = family.sample(5, np.random.default_rng(0), split)["goal"]
        assert goals.shape == (5, 3) and len(np.unique(goals, axis=0)) > 1
    check_family(family)


def test_arrays_of_different_shapes_are_choices():
    shapes = [np.zeros(2), np.ones(3)]
    family = from_gymnasium(ByKeyword, {"goal": [np.zeros(3), np.ones(3), (0.0, 1.0, 0.0)]}, horizon=4)
    assert family.task_space["goal"].shape == (3,)
    split = {"ood": {"maze": [np.ones(3), np.full(4, 2.0)]}}

    class Maze(ByKeyword):
        def __init__(self, maze=(0.0,)):
            self.goal = np.resize(maze, 3)

    family = from_gymnasium(Maze, {"maze": shapes}, horizon=4, splits=split)
    assert family.task_space["maze"].n == 3  # the array that both splits have is one choice
    assert set(family.sample(50, np.random.default_rng(0), "ood")["maze"]) == {1, 2}
    assert "one of" in str(family) and family == from_gymnasium(Maze, {"maze": shapes}, horizon=4, splits=split)
    assert family != from_gymnasium(Maze, {"maze": shapes[::-1]}, horizon=4, splits=split)
    assert MetaLearner("maml_trpo", family, **SMALL).learn(1, eval_every=0).state.iteration == 1


def test_arrays_of_bits_are_choices():
    found = prior("walls", [np.array([True, False]), np.array([False, True])])
    assert found.space.n == 2 and set(found.sample(np.random.default_rng(0), 50)) == {0, 1}


def test_kinds_that_do_not_go_together_are_named_once():
    with pytest.raises(
        ValueError, match=r"'goal' is Box\(-1\.0, 1\.0, \(3,\), float32\) in one split, Box\(1\.0, 2\.0, "
    ):
        from_gymnasium(ByKeyword, {"goal": PRIORS["box"]}, horizon=4, splits={"ood": {"goal": Box(1, 2, (2,))}})
