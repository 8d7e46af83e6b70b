"""What an environment gets for a parameter that is an array: a copy for every episode, in the form that it had."""

import collections

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete
from tiny_runs import TINY, same_params

from metarl import MetaLearner, check_family, from_gymnasium
from metarl.families.check import FamilyError
from metarl.families.priors import prior
from metarl.families.task_values import as_before
from metarl.tasks import task_at

Pair = collections.namedtuple("Pair", "x y")


class Reaching(gym.Env):
    """Paid for being near a goal that it does not see. `drift` moves the goal in place, as careless code does."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, goal=(0.0, 0.0), drift: float = 0.0):
        self.goal, self.drift = goal, drift

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(0.0, 0.1, 2)
        return self.x.astype(np.float32), {}

    def step(self, action):
        self.x = self.x + 0.1 * np.clip(action, -1, 1)
        reward = -float(np.abs(self.x - np.asarray(self.goal, float)).sum())
        if self.drift:
            self.goal -= self.drift
        return self.x.astype(np.float32), reward, False, False, {}


class OnReset(Reaching):
    def __init__(self, drift: float = 0.0):
        super().__init__(np.zeros(2), drift)

    def reset(self, *, seed=None, options=None):
        self.goal = (options or {}).get("goal", np.zeros(2))
        return super().reset(seed=seed)


class Attribute(Reaching):
    def __init__(self, drift: float = 0.0):
        super().__init__(np.array([0, 0]), drift)  # whole numbers: nobody wrote the decimal points


PLACES = {"keyword": Reaching, "option": OnReset, "attribute": Attribute}
PRIORS = {
    "box": Box(-1.0, 1.0, (2,)),
    "box of unequal ends": Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64),
    "arrays": [np.zeros(2), np.ones(2), np.array([0.5, -1.0])],
    "lists": [[0, 1], [1, 0]],
    "scipy": scipy.stats.norm([0.0, 1.0], 1.0),
    "multivariate": scipy.stats.multivariate_normal(np.zeros(2), np.eye(2)),
    "multidiscrete": MultiDiscrete([2, 3]),
    "multibinary": MultiBinary(2),
    "flags": [np.array([True, False]), np.array([False, True])],
}


def family(place: str, values, **more):
    return from_gymnasium(PLACES[place], {"goal": values}, horizon=4, **more)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PRIORS)
def test_a_family_of_arrays_is_healthy_wherever_they_go(place, kind):
    found = family(place, PRIORS[kind])
    assert found.where == {"goal": place} and found == family(place, PRIORS[kind])
    assert check_family(found, n_tasks=8) == []


@pytest.mark.parametrize("place", ["attribute"])
def test_learners_of_arrays_train_alike_in_processes_and_come_back(place, tmp_path, monkeypatch):
    monkeypatch.setitem(gym.registry, "A-v0", gym.envs.registration.EnvSpec("A-v0", PLACES[place], max_episode_steps=4))
    made = from_gymnasium("A-v0", {"goal": [[0.0, 0.5], [1.0, -1.0], [0.25, 0.0]]})
    one, other = (MetaLearner("maml_trpo", made, device="cpu", workers=n, **TINY) for n in (0, 1))
    for learner in (one, other):
        learner.learn(1, eval_every=0)
    assert same_params(one.state.params, other.state.params)
    one.save(tmp_path / "l")
    loaded = MetaLearner.load(tmp_path / "l", device="cpu")
    assert loaded.family == made
    goal = [1.0, -1.0]
    first, again = (learner.adapt({"goal": goal}, seed=0) for learner in (one, loaded))
    assert np.array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, one.adapt({"goal": [0.0, 0.5]}, seed=0).returns)


@pytest.mark.parametrize(  # without `fresh` a constructor's argument is the environment's own to keep
    ("place", "fresh"), [("keyword", True), *((place, fresh) for place in ("option", "attribute") for fresh in (0, 1))]
)
def test_what_an_environment_does_to_its_array_ends_with_the_episode(place, fresh):
    made = family(place, [[0.0, 1.0], [1.0, 0.0]], make_kwargs={"drift": 0.5}, fresh=bool(fresh))
    task = {"goal": np.array([1.0, 0.0])}
    env = made.make(task)
    rewards = []
    for _ in range(3):
        env.reset(seed=0)
        rewards.append([env.step(np.zeros(2, np.float32))[1] for _ in range(3)])
    assert rewards[0] == rewards[1] == rewards[2] and len(set(rewards[0])) == 3
    assert task["goal"].tolist() == [1.0, 0.0]


def test_configure_and_choices_hand_out_copies():
    for values in ([np.zeros(2), np.ones(2)], [[1.0], [1.0, 2.0]]):  # lists of different lengths are choices
        seen: list[list[float]] = []

        def spoil(env, given, seen=seen):
            seen.append(list(given["goal"]))
            given["goal"][:] = [7.0] if isinstance(given["goal"], list) else 7.0
            env.goal = np.zeros(2)

        made = family("attribute", values, where={"goal": "configure"}, configure=spoil, fresh=True)
        before = str(made)
        task = task_at(made.sample(1, np.random.default_rng(0)), 0)
        env = made.make(task)
        for _ in range(3):
            env.reset(seed=0)  # `fresh` builds the environment again, and configures it
        assert str(made) == before and all(7.0 not in goal for goal in seen)


@pytest.mark.parametrize(
    ("now", "value", "expected"),
    [(np.array([0, 0]), np.array([0.5, -0.5]), np.array([0.5, -0.5])),
     (np.zeros(2, np.float32), np.array([0.5, -0.5]), np.array([0.5, -0.5], np.float32)),
     (np.zeros(2, bool), np.array([1, 0], np.int8), np.array([True, False])),
     (np.zeros((1, 2)), np.array([0.5, 1.0]), np.array([[0.5, 1.0]]))],
)  # fmt: skip
def test_an_array_keeps_its_form_but_no_fraction_is_cut_off(now, value, expected):
    found = as_before(type("Env", (), {"goal": now}), "goal", value)
    assert np.array_equal(found, expected) and found.dtype == expected.dtype and found.shape == expected.shape


def test_tuples_with_names_keep_them():
    assert as_before(type("Env", (), {"goal": Pair(0, 0)}), "goal", np.array([1.0, 2.0])) == Pair(1.0, 2.0)


def test_an_attribute_that_reset_makes_float32_is_no_replaced_one():
    class Casting(Attribute):
        def reset(self, *, seed=None, options=None):
            self.goal = np.asarray(self.goal, np.float32)
            return super().reset(seed=seed)

    class Replacing(Attribute):
        def reset(self, *, seed=None, options=None):
            self.goal = np.zeros(2)
            return super().reset(seed=seed)

    values = {"goal": [[0.1, 0.2], [0.3, 0.4]]}
    assert check_family(from_gymnasium(Casting, values, horizon=4)) == []
    with pytest.raises(ValueError, match="replaces the attribute 'goal'"):
        from_gymnasium(Replacing, values, horizon=4)


def test_choices_among_arrays_are_compared_whole():
    one, same, other = (prior("p", [np.array([True, False]), np.array(end)]) for end in ([True], [True], [False]))
    assert one == same and hash(one) == hash(same) and one != other


@pytest.mark.parametrize(
    "pair",
    [(5.0, 15.0), (1, 2), (np.zeros(2), np.ones(2)), ([-1, -1], [1, 1])],
    ids=["floats", "ints", "arrays", "lists"],
)
def test_a_pair_is_neither_a_range_nor_two_values(pair):
    with pytest.raises(ValueError, match=r"parameter 'g': .*may mean a range or two values: write Box\(.*, \[.*\] for"):
        prior("g", pair)
    assert prior("g", list(pair)).countable  # a list says what is meant
    with pytest.raises(ValueError, match="may mean a range or two values"):
        family("keyword", pair)


def test_a_parameter_that_nobody_reads_is_still_found_among_arrays():
    class Deaf(Reaching):
        def __init__(self, goal=(0.0, 0.0)):
            super().__init__()

    with pytest.raises(FamilyError, match="parameter 'goal': changes nothing"):
        check_family(from_gymnasium(Deaf, {"goal": Box(-1.0, 1.0, (2,))}, horizon=4))
