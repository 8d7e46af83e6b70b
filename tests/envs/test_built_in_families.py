"""What holds for every built-in tensor family: Gymnasium's and SB3's checks, twins, splits, gymnasium.make."""

import importlib.metadata
import json
import subprocess
import sys
import warnings

import gymnasium as gym
import metarl_envs
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch
from gymnasium.utils.env_checker import check_env

import metarl
from metarl import check_family, random
from metarl.tasks import task_at
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.tensor import TensorFamily, TensorVectorEnv

IDS = [
    "AcrobotParams-v0",
    "BernoulliBandit-v0",
    "CartPoleParams-v0",
    "GaussianBandit-v0",
    "MountainCarContinuousParams-v0",
    "MountainCarParams-v0",
    "PendulumParams-v0",
    "PointNavigation-v0",
    "PointNavigationCorners-v0",
    "PointNavigationPixels-v0",
    "PointNavigationSparse-v0",
    "TabularMDP-v0",
]
VARIANTS = [
    *((id, {"horizon": 60} if "Params" in id else {}) for id in IDS),  # whole ones: test_classic_control.py
    ("BernoulliBandit-v0", {"arms": 3, "horizon": 4}),
    ("GaussianBandit-v0", {"arms": 2, "horizon": 3, "std": 0.1}),
    ("PointNavigation-v0", {"horizon": 1}),
    ("PointNavigationPixels-v0", {"horizon": 5, "size": 9}),
    ("TabularMDP-v0", {"states": 3, "actions": 2, "horizon": 4}),
]
HEADINGS = [
    "Task parameters and their distribution",
    "Splits",
    "Observation",
    "Action",
    "Reward",
    "Episode end",
    "Source",
    "Version history",
]
# Known and meant: the plane has no border, a displacement of 0.1 is what the papers call an action, and small images
# (stable-baselines3's own network wants 36 x 36 pixels).
ACCEPTED = [
    ".*Box observation space m(in|ax)imum value is -?infinity.*",
    ".*recommend (you to use|using) a symmetric and normalized.*",
    ".*minimal resolution for an image is 36x36.*",
]


def one_task(family, seed=0):
    return task_at(family.sample(5, np.random.default_rng(seed)), 3)


def test_the_list_above_is_complete():
    points = importlib.metadata.entry_points(group="metarl.families")
    ours = {point.name: point.load() for point in points if point.module.startswith("metarl_envs.")}
    assert sorted(id for id, made_by in ours.items() if issubclass(made_by, TensorFamily)) == IDS


@pytest.mark.parametrize("id", IDS)
def test_docstring_is_a_specification(id):
    family = metarl.make(id)
    lines = type(family).__doc__.splitlines()
    assert family.id == id
    assert [line.strip() for line in lines if line.strip() in HEADINGS] == HEADINGS
    assert lines[0].endswith(".")
    assert metarl.registered()[id] == lines[0]


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("checker", [check_env, stable_baselines3.common.env_checker.check_env])
def test_plain_environment_passes_the_checks_of_others(id, checker):
    family = metarl.make(id)
    task = {name: value.tolist() for name, value in one_task(family).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in ACCEPTED:
            warnings.filterwarnings("ignore", message)
        checker(gym.make(f"metarl_envs/{id}", **task).unwrapped)


@pytest.mark.parametrize(("id", "kwargs"), VARIANTS)
def test_family_passes_our_own_check(id, kwargs):
    assert check_family(metarl.make(id, **kwargs)) == []


@pytest.mark.parametrize(("id", "kwargs"), VARIANTS)
def test_tensor_environments_equal_single_ones_step_by_step(id, kwargs):
    """Through the whole episode and two steps beyond; new tasks in the second round."""
    family, k, e = metarl.make(id, **kwargs), 3, 4
    fast, slow = TensorVectorEnv(family, k, e), LoopVectorEnv(family, k, e)
    fast.action_space.seed(0)
    for iteration in range(2):
        tasks = family.sample(k, np.random.default_rng(iteration))
        seeds = random.episode_seeds(5, iteration, 0, k, e)
        got, _ = fast.reset(seed=seeds, options={"tasks": tasks})
        want, _ = slow.reset(seed=seeds.flatten().tolist(), options={"tasks": tasks})
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-6)
        for t in range(family.horizon + 2):
            action = fast.action_space.sample()
            fast_step, slow_step = fast.step(action), slow.step(action)
            for got, want in zip(fast_step[:2], slow_step[:2], strict=True):
                np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6, err_msg=f"step {t}")
            for got, want in zip(fast_step[2:4], slow_step[2:4], strict=True):
                assert np.array_equal(got.numpy(), want), f"step {t}"
        assert (fast_step[2] ^ fast_step[3]).all(), "every episode has ended, in one way"
        assert (fast_step[1] == 0).all(), "and earns nothing"


@pytest.mark.parametrize(
    "id", ["BernoulliBandit-v0", "GaussianBandit-v0", "PointNavigationCorners-v0", "TabularMDP-v0"]
)
def test_stochastic_families_follow_their_seed_and_nothing_else(id):
    """An episode's numbers depend on its seed, not on its place in the batch; another seed gives others."""
    family = metarl.make(id, horizon=10)
    tasks = family.sample(4, np.random.default_rng(0))
    seeds = random.episode_seeds(0, 0, 0, 4, 8)

    def play(seeds, tasks):
        env = TensorVectorEnv(family, *seeds.shape)
        outputs = [env.reset(seed=seeds, options={"tasks": tasks})[0].flatten().float()]
        for _ in range(family.horizon):
            obs, reward, *_ = env.step(np.ones((env.num_envs, *family.action_space.shape)))
            outputs += [obs.flatten().float(), reward]
        return [x.unflatten(0, (*seeds.shape, -1)) for x in outputs]

    full = play(seeds, tasks)
    part = play(seeds[1:3, :5], {name: value[1:3] for name, value in tasks.items()})
    other = play(seeds + 1, tasks)
    assert all(torch.equal(a[1:3, :5], b) for a, b in zip(full, part, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(full, other, strict=True))


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_no_number_is_drawn_twice(block, monkeypatch):
    """Draw t of an episode's stream is the family's t-th, whether drawn step by step or all at once."""
    monkeypatch.setattr("metarl.vector.tensor._DRAW_BLOCK", block)
    family, seeds = Draws(), random.episode_seeds(0, 0, 0, 2, 3)
    env = TensorVectorEnv(family, 2, 3)
    shown = [env.reset(seed=seeds, options={"tasks": {"unused": np.zeros(2)}})[0]]
    shown += [env.step(np.zeros(6))[0] for _ in range(family.horizon)]
    wanted = random.uniform(seeds.flatten(), 0, 3 + 2 * family.horizon, random.ENVIRONMENT)
    assert torch.equal(torch.cat([shown[0], *(x[:, :2] for x in shown[1:])], -1), wanted)


class Draws(TensorFamily):
    """Shows its draws: three at the reset, two in each step."""

    id, horizon = "Draws-v0", 5
    observation_space = gym.spaces.Box(0, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)
    task_space = gym.spaces.Dict({"unused": gym.spaces.Box(0, 1, (), np.float32)})
    reset_draws, step_draws = 3, 2

    def sample(self, n, rng, split="train"):
        return {"unused": np.zeros(n, np.float32)}

    def initial(self, task, draws):
        return {"draws": draws}

    def observe(self, state, task):
        return state["draws"]

    def step(self, state, action, task, draws):
        return {"draws": torch.cat([draws, draws[..., :1]], -1)}, draws[..., 0], None


@pytest.mark.parametrize("id", IDS)
def test_splits(id):
    family = metarl.make(id)
    draws = {split: family.sample(40, np.random.default_rng(3), split) for split in ("train", "test")}
    for name in family.task_space.spaces:
        assert not np.array_equal(draws["train"][name], draws["test"][name])
    with pytest.raises(ValueError, match="split must be one of"):
        family.sample(2, np.random.default_rng(0), "trian")


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("PointNavigation-v0", {"horizon": 0}, "horizon must be at least 1, got 0"),
        ("PointNavigationPixels-v0", {"horizon": 0}, "horizon must be at least 1, got 0"),
        ("PointNavigationPixels-v0", {"size": 7}, "size must be at least 8, got 7"),
        ("PointNavigationSparse-v0", {"goal_radius": 0.0}, "goal_radius must be positive, got 0.0"),
        ("PointNavigationCorners-v0", {"start_radius": -1.0}, "start_radius must not be negative, got -1.0"),
        ("BernoulliBandit-v0", {"arms": 1}, "arms must be at least 2, got 1"),
        ("GaussianBandit-v0", {"std": -0.5}, "std must not be negative, got -0.5"),
        ("TabularMDP-v0", {"states": 0}, "states must be at least 1, got 0"),
    ],
)
def test_nonsense_is_refused_with_its_value(id, kwargs, message):
    with pytest.raises(ValueError, match=message):
        metarl.make(id, **kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# gymnasium.make


def test_gymnasium_makes_them_in_a_fresh_interpreter():
    code = """if True:
        import sys, gymnasium
        id, goal = "metarl_envs/PointNavigation-v0", (0.3, -0.2)
        env = gymnasium.make(f"metarl_envs:{id}", goal=goal, render_mode="rgb_array")
        env.reset(seed=0)
        _, reward, *_ = env.step([0.1, -0.1])
        assert abs(reward + (0.2**2 + 0.1**2) ** 0.5) < 1e-6, reward
        assert env.render().shape == (256, 256, 3)
        assert gymnasium.make(id, goal=goal).unwrapped.task["goal"].shape == (2,)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light():
    code = "import sys, metarl_envs; assert not {'torch', 'metarl'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_gymnasium_knows_each_once():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Gymnasium warns where a registration replaces another
        metarl_envs.register_gymnasium()
    assert {f"metarl_envs/{id}" for id in IDS} <= set(gym.registry)


def test_arguments_reach_the_task_and_the_family():
    env = gym.make("metarl_envs/BernoulliBandit-v0", p=[0.0, 1.0, 0.0], arms=3, horizon=2)
    assert env.action_space.n == 3
    env.reset(seed=0)
    assert [env.step(arm)[1:4] for arm in (1, 2)] == [(1.0, False, False), (0.0, True, False)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, r"a task of PointNavigation-v0 also needs \['goal'\]"),
        ({"gaol": (0.1, 0.2)}, "no task parameter 'gaol'; did you mean 'goal'"),
        ({"goal": (0.1, 2.0)}, "'goal' of PointNavigation-v0 lies in"),
        ({"goal": (0.1, 0.2), "horizon": 0}, "horizon must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gym.make("metarl_envs/PointNavigation-v0", **kwargs)


def test_specification_survives_json():
    spec = gym.make("metarl_envs/PointNavigationCorners-v0", corner=2, horizon=7).spec
    env = gym.make(gym.envs.registration.EnvSpec.from_json(spec.to_json())).unwrapped
    assert json.loads(spec.to_json())["kwargs"]["corner"] == 2
    assert (int(env.task["corner"]), env.family.horizon) == (2, 7)
