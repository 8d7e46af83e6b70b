"""Families whose tasks can be seen: every backend alike, and what seeing is worth."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from broken_families import Lines
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from tiny_runs import same_params, tiny

import metarl
from metarl import MetaLearner, check_family, visible
from metarl.families.saved import signature
from metarl.policies import normalize
from metarl.policies.vectors import TaskVectors
from metarl.tasks import num_tasks
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv

HIDDEN = {
    "point": lambda: metarl.make("PointNavigation-v0", horizon=5),
    "corners": lambda: metarl.make("PointNavigationCorners-v0", horizon=5),
    "bandit": lambda: metarl.make("GaussianBandit-v0", arms=3, horizon=2),
    "mdp": lambda: metarl.make("TabularMDP-v0"),
    "lines": Lines,
    "pendulum": lambda: metarl.from_gymnasium("Pendulum-v1", {"g": Box(5.0, 15.0), "level": ["a", "b"]}, horizon=5,
                                              where={"level": "configure"}, configure=expect_a_level),
}  # fmt: skip


def expect_a_level(env, task):
    assert task["level"] in ("a", "b")
    env.unwrapped.m = {"a": 1.0, "b": 1.5}[task["level"]]


@pytest.mark.parametrize("name", HIDDEN)
def test_every_backend_shows_the_same(name):
    hidden = HIDDEN[name]()
    family = visible(hidden)
    assert hasattr(family, "make_vector") == hasattr(hidden, "make_vector")
    tasks = family.sample(3, np.random.default_rng(0))
    slow, fast, own = LoopVectorEnv(family, 3, 2), make_vector(family, 3, 2), make_vector(hidden, 3, 2)
    seeds = torch.arange(6) + 2**40
    options = {"tasks": tasks}
    a, b, c = (env.reset(seed=seeds, options=options)[0] for env in (slow, fast, own))
    described = np.repeat(family.describe(tasks), 2, 0)
    actions = np.random.default_rng(1)
    for _ in range(family.horizon + 1):
        a, b, c = (torch.as_tensor(x).float().numpy() for x in (a, b, c))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert a.shape == (6, family.observation_space.shape[0])
        np.testing.assert_array_equal(b[:, -described.shape[1] :], described)
        if isinstance(hidden.observation_space, Box):
            np.testing.assert_array_equal(b[:, : c.shape[1]], c)
        else:
            np.testing.assert_array_equal(b[:, : -described.shape[1]].argmax(1), c.reshape(-1))
        action = np.stack([_action(family.action_space, actions) for _ in range(6)])
        a, b, c = (env.step(action)[0] for env in (slow, fast, own))
    assert [x.shape for x in (a, b)] == [b.shape, b.shape]


def _action(space, rng):
    return rng.integers(space.n) if isinstance(space, Discrete) else rng.uniform(-0.1, 0.1, space.shape).astype("f4")


@pytest.mark.parametrize("name", HIDDEN)
def test_it_is_a_healthy_family(name):
    family = visible(HIDDEN[name]())
    assert check_family(family) == []
    assert family.hidden_task is False and family.id == "visible:" + family.family.id
    if name == "pendulum":
        assert pickle.loads(pickle.dumps(family)) == family


def test_without_the_flag_the_check_notices_that_the_task_can_be_seen():
    family = visible(Lines())
    family.hidden_task = True  # type: ignore[misc]
    assert "tells tasks apart" in str(check_family(family, raise_problems=False)[0])


def test_what_is_appended():
    family = Lines()
    family.task_space = gym.spaces.Dict({
        "a": Box(np.array([0, -3], np.float32), np.array([10, 1], np.float32)),
        "b": Box(-np.inf, np.inf, (), np.float32),
        "c": Discrete(3, start=-1),
        "d": MultiDiscrete([2, 3]),
        "e": MultiBinary(2),
        "f": Box(4.0, 4.0, (), np.float32),
        "g": Box(0, 4, (), np.int64),
    })  # fmt: skip
    tasks = {
        "a": np.array([[0, 1], [7.5, -1]]), "b": np.array([7.0, -2]), "c": np.array([-1, 1]),
        "d": np.array([[0, 2], [1, 0]]), "e": np.array([[0, 1], [1, 1]]), "f": np.array([4.0, 4]),
        "g": np.array([0, 3]),
    }  # fmt: skip
    described = visible(family).describe(tasks)
    assert described.dtype == np.float32
    assert described.tolist() == [
        [-1, 1, 7, 1, 0, 0, 1, 0, 0, 0, 1, -1, 1, 0, -1],
        [0.5, 0, -2, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0.5],
    ]
    space = visible(family).observation_space
    assert space.low.tolist()[1:4] == [-1, -1, -np.inf] and space.high.tolist()[1:4] == [1, 1, np.inf]


def test_images_are_flattened_and_scaled():
    family = Lines()
    family.observation_space = Box(0, 255, (2, 1, 2), np.uint8)
    family = visible(family)
    image = np.array([[[[0, 51]], [[102, 255]]]], np.uint8)
    shown = family.append(image, np.array([[0.5]], np.float32))
    np.testing.assert_allclose(shown, [[0, 0.2, 0.4, 1, 0.5]], rtol=1e-6)
    same = family.append(torch.from_numpy(image), torch.tensor([[0.5]]))
    np.testing.assert_allclose(same.numpy(), shown, rtol=1e-6)
    assert family.observation_space == Box(np.array([0, 0, 0, 0, -1], np.float32), np.ones(5, np.float32))


def test_new_tasks_are_described_anew_and_stay_through_a_reset_without_tasks():
    family = visible(HIDDEN["point"]())
    env = make_vector(family, 2, 1)
    for seed in range(2):
        tasks = family.sample(2, np.random.default_rng(seed))
        obs, _ = env.reset(seed=[0, 1], options={"tasks": tasks})
        np.testing.assert_allclose(obs[:, 2:], tasks["goal"] / 0.5, rtol=1e-6)
    np.testing.assert_array_equal(env.reset(seed=[5, 6])[0], obs)


def test_it_cannot_be_done_twice_or_for_a_plain_environment():
    family = visible(HIDDEN["point"]())
    with pytest.raises(ValueError, match="visible already"):
        visible(family)
    learner = tiny(family)
    task = {"goal": [0.1, 0.2]}
    with pytest.raises(ValueError, match="does not specify one"):
        learner.adapt(family.family.make(task))
    assert same_params(learner.adapt(family.make(task)).params, learner.adapt(task).params)


def test_a_learner_loads_without_being_handed_the_family(tmp_path):
    for family in (visible(HIDDEN["point"]()), metarl.make("visible:PointNavigation-v0", horizon=5)):
        assert family.id == "visible:PointNavigation-v0" and family.horizon == 5
        learner = tiny(family)
        learner.save(tmp_path / "x.safetensors")
        again = MetaLearner.load(tmp_path / "x.safetensors", device="cpu").family
        assert type(again) is type(family) and again.horizon == 5
    seen = metarl.from_gymnasium("Pendulum-v1", {"g": Box(5.0, 15.0)}, horizon=5, visible=True)
    assert metarl.make(seen.spec.id, **seen.spec.kwargs) == seen != seen.family


def test_pictures_show_the_hidden_familys_observations():
    drawn = []

    class Drawing(Lines):
        def draw(self, axes, task, observations):
            drawn.extend(observations)

    visible(Drawing()).draw(None, {}, [np.arange(6).reshape(3, 2)])
    assert [x.tolist() for x in drawn] == [[[0], [2], [4]]]
    assert not hasattr(visible(Lines()), "draw")


def test_the_oracle_learns_what_a_blind_policy_cannot():
    # The best of two arms with means of N(0, 1) pays 1/sqrt(pi) = 0.564 on average, a fixed arm 0.
    def trained(family):
        learner = MetaLearner("maml_trpo", family, seed=0, device="cpu", n_tasks=200, episodes=4, inner_steps=0,
                              hidden=(16,), max_kl=0.05)  # fmt: skip
        learner.learn(25, eval_every=0)
        result = learner.evaluate(1000, episodes=10, steps=0)
        assert num_tasks(result.tasks) == 1000
        return result.mean[0]

    bandit = metarl.make("GaussianBandit-v0", arms=2)
    blind, oracle = trained(bandit), trained(visible(bandit))
    assert blind < 0.15
    assert oracle > 0.45


@pytest.mark.parametrize("most", [float(np.finfo(np.float32).max), 1e19])
def test_bounds_that_are_none_do_not_scale_a_parameter_to_nothing(most):
    space = {"x": Box(-most, most, (), np.float32), "y": Box(0.0, 4.0, (), np.float32)}
    vectors = TaskVectors(gym.spaces.Dict(space))
    shown = vectors.encode({"x": np.array([1.0, -2.0], np.float32), "y": np.array([1.0, 3.0], np.float32)})
    np.testing.assert_allclose(shown, [[1.0, -0.5], [-2.0, 0.5]])


class Clock(gym.Env):
    """Observes seconds since 1970, within half a minute; `huge` is how somebody wrote that there is no bound."""

    huge = float(np.finfo(np.float64).max)
    observation_space = Box(-huge, huge, (1,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._now(), {}

    def step(self, action):
        return self._now(), self.gain * float(action[0]), False, False, {}

    def _now(self):
        return 1.7e9 + self.np_random.uniform(-30.0, 30.0, 1)


def test_large_offsets_reach_the_statistics_before_they_are_rounded():
    family = metarl.from_gymnasium(Clock, {"gain": Box(0.5, 2.0)}, horizon=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of an overflow
        shown = visible(family)
    assert shown.observation_space.dtype == np.float64 and check_family(shown) == []
    learner = MetaLearner("maml_trpo", shown, device="cpu", normalize_obs=True, n_tasks=3, episodes=3, hidden=(4,))
    learner.learn(1, eval_every=0)
    variance = learner.state.obs_stats["m2"] / learner.state.obs_stats["count"]
    assert variance[0].sqrt() == pytest.approx(60 / 12**0.5, rel=0.1)  # in float32 1.7e9 has steps of 128
    obs = torch.tensor([[1.7e9 - 20.0, 0.0], [1.7e9 + 20.0, 0.0]], dtype=torch.float64)
    apart = normalize.scaler(learner.state.obs_stats)(obs)[:, 0].diff().abs()
    assert apart.item() == pytest.approx(40 / variance[0].sqrt().item(), rel=1e-3)


def test_the_signature_is_that_of_files_with_float32_observations():
    family = metarl.from_gymnasium(Clock, {"gain": Box(0.5, 2.0)}, horizon=20, visible=True)
    told = signature(family)["observation_space"]
    assert told == "Box([-inf  -1.], [inf  1.], (2,), float32)"
    assert signature(metarl.make("visible:PointNavigation-v0"))["observation_space"].endswith("(4,), float32)")
