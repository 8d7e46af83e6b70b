"""The MuJoCo backend: Gymnasium's environments, many at once, to the last bit."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

import metarl
from metarl.tasks import task_at
from metarl.vector import mujoco as backend
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv

pytest.importorskip("mujoco")

K, E = 3, 2
SEEDS = [11, 12, 13, 14, 15, 16]


@pytest.fixture(scope="module")
def cheetah():
    return metarl.make("HalfCheetahVel-v0", horizon=200)


@pytest.fixture(scope="module")
def tasks(cheetah):
    return cheetah.sample(K, np.random.default_rng(0))


def actions(steps, envs=K * E, size=6, seed=1):
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (steps, envs, size)).astype(np.float32)


def play(env, tasks, moves, seeds=SEEDS):
    """[steps + 1, N, O], [steps, N] and the final flags."""
    obs, _ = env.reset(seed=seeds, options={"tasks": tasks})
    observations, rewards = [obs], []
    for action in moves:
        obs, reward, terminated, truncated, _ = env.step(action)
        observations.append(obs)
        rewards.append(reward)
    return np.stack(observations), np.stack(rewards), terminated, truncated


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_equals_environments_stepped_one_by_one(cheetah, tasks, threads):
    moves = actions(203)  # beyond the horizon
    fast = play(backend.MujocoVectorEnv(cheetah, K, E, threads), tasks, moves)
    slow = play(LoopVectorEnv(cheetah, K, E), tasks, moves)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a, b)


def test_equals_gymnasium_itself(cheetah, tasks):
    moves = actions(200)
    observations, rewards, _, _ = play(cheetah.make_vector(K, E), tasks, moves)
    env = gym.make("HalfCheetah-v5", disable_env_checker=True)
    obs, _ = env.reset(seed=SEEDS[3])
    for t, action in enumerate(moves[:, 3]):
        np.testing.assert_array_equal(observations[t, 3], obs)
        obs, _, _, _, info = env.step(action)
        expected = -abs(info["x_velocity"] - tasks["velocity"][1]) - 0.05 * (action.astype(float) ** 2).sum()
        assert rewards[t, 3] == pytest.approx(expected, abs=1e-6)


def test_the_solver_warm_start_is_part_of_the_state(cheetah, tasks):
    """The control: an environment that loses it is far from Gymnasium's after 200 steps."""
    env, slow = cheetah.make_vector(K, E), LoopVectorEnv(cheetah, K, E)
    kinds = backend.import_mujoco().mjtState
    warm_start = env._simulator._columns(kinds.mjSTATE_WARMSTART)
    for one in (env, slow):
        one.reset(seed=SEEDS, options={"tasks": tasks})
    for action in actions(200):
        env._simulator._state[:, warm_start] = 0.0
        difference = np.abs(env.step(action)[0] - slow.step(action)[0]).max()
    assert difference > 1e-3


def test_seeds_decide_and_do_not_depend_on_the_batch(cheetah, tasks):
    one = {name: value[1:2] for name, value in tasks.items()}
    moves = actions(30)
    many = play(cheetah.make_vector(K, E), tasks, moves)
    alone = play(cheetah.make_vector(1, E), one, moves[:, 2:4], SEEDS[2:4])
    np.testing.assert_array_equal(many[0][:, 2:4], alone[0])
    np.testing.assert_array_equal(many[1][:, 2:4], alone[1])


def test_rollouts_in_the_same_tasks_copy_no_model(monkeypatch):
    family = metarl.make("HopperRandParams-v0", horizon=20)
    copied = []
    task_model = family.task_model
    monkeypatch.setattr(family, "task_model", lambda task: copied.append(1) or task_model(task), raising=False)
    env = backend.MujocoVectorEnv(family, K, E, threads=1)
    tasks = family.sample(K, np.random.default_rng(0))
    moves, counts, played = actions(10, size=3), [], []
    for given in (tasks, tasks, dict(tasks)):
        copied.clear()
        played.append(play(env, given, moves))
        counts.append(len(copied))
    assert counts == [K, 0, K]
    for other in played[1:]:
        for a, b in zip(played[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    tasks["mass"][:] *= 1.2  # changed in place: other tasks, other bodies
    assert not np.array_equal(play(env, tasks, moves)[0], played[0][0]) and len(copied) == 2 * K
    env.reset(seed=0, options={"tasks": tasks, "reset_mask": np.array([True] + [False] * 5)})
    assert len(copied) == 2 * K + 1


@pytest.mark.parametrize("id", ["HalfCheetahVel-v0", "AntDir-v0"])
def test_a_reset_leaves_nothing_of_the_episode_before(id):
    family = metarl.make(id)
    tasks = family.sample(K, np.random.default_rng(0))
    moves = actions(40, size=family.action_space.shape[0])
    env = backend.MujocoVectorEnv(family, K, E, threads=1)
    first, second = (play(env, tasks, moves) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_as_gymnasium_takes_them(cheetah, tasks):
    env = cheetah.make_vector(K, E)
    listed, _ = env.reset(seed=list(range(7, 13)), options={"tasks": tasks})
    np.testing.assert_array_equal(env.reset(seed=7)[0], listed)
    np.testing.assert_array_equal(env.reset(seed=torch.arange(7, 13))[0], listed)
    assert not np.array_equal(env.reset(seed=8)[0], listed)
    unseeded = env.reset()[0]
    assert not np.array_equal(env.reset()[0], unseeded)


def test_what_it_returns_is_the_callers(cheetah, tasks):
    env = cheetah.make_vector(K, E)
    first, _ = env.reset(seed=SEEDS, options={"tasks": tasks})
    kept = first.copy()
    second, *_ = env.step(actions(1)[0])
    np.testing.assert_array_equal(first, kept)
    second[:] = np.nan
    assert np.isfinite(env.step(actions(1)[0])[0]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, t: f.make_vector(K, E).reset(seed=0), "first reset needs options"),
        (lambda f, t: f.make_vector(K + 1, E).reset(seed=0, options={"tasks": t}), "runs 4 tasks, got 3"),
        (lambda f, t: f.make_vector(K, E).reset(seed=[1, 2], options={"tasks": t}), "one seed for each of 6"),
        (lambda f, t: backend.MujocoVectorEnv(f, K, E, threads=0), "threads must be at least 1, got 0"),
        (lambda f, t: metarl.make("HalfCheetahVel-v0", horizon=0), "horizon must be at least 1, got 0"),
        (lambda f, t: metarl.make("HalfCheetahVel-v0", max_velocity=-1.0), "max_velocity must be positive, got -1.0"),
        (lambda f, t: f.make({"velocity": np.nan}), "'velocity' of HalfCheetahVel-v0 must be finite, got nan"),
    ],
)
def test_errors_say_what_is_wrong(cheetah, tasks, call, message):
    with pytest.raises(ValueError, match=message):
        call(cheetah, tasks)


def test_deprecated_words_of_gymnasiums_models_are_nobodys_business(cheetah, tasks, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # MuJoCo would write its log there
    cheetah.make(task_at(tasks, 0)).close()
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


def test_other_warnings_of_mujoco_are_shown(cheetah, tasks, monkeypatch):
    import mujoco

    def make(*args, **kwargs):
        mujoco.get_mju_user_warning()("the sky is falling")

    before = mujoco.get_mju_user_warning()
    monkeypatch.setattr(backend.gym, "make", make)
    with pytest.warns(RuntimeWarning, match="MuJoCo: the sky is falling"):
        cheetah.gymnasium_env()
    assert mujoco.get_mju_user_warning() is before


def test_without_mujoco_one_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    backend.import_mujoco.cache_clear()
    with pytest.raises(ImportError, match=r"pip install mujoco imageio packaging$"):
        metarl.make("HalfCheetahDir-v0")
    backend.import_mujoco.cache_clear()


def test_threads_are_those_of_pytorch_when_it_is_built(cheetah):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        env = make_vector(cheetah, K, E)
    finally:
        torch.set_num_threads(before)
    assert env.threads == 2


def test_an_error_in_a_thread_reaches_the_caller(cheetah, tasks):
    env = backend.MujocoVectorEnv(cheetah, K, E, threads=2)
    env.reset(seed=SEEDS, options={"tasks": tasks})
    with pytest.raises(ValueError, match="could not broadcast"):
        env.step(np.zeros((K * E, 5), np.float32))


def test_a_task_of_many_is_the_task_of_one(cheetah, tasks):
    plain = cheetah.make(task_at(tasks, 2))
    plain.reset(seed=SEEDS[4])
    env = cheetah.make_vector(K, E)
    env.reset(seed=SEEDS, options={"tasks": tasks})
    move = actions(1)[0]
    assert env.step(move)[1][4] == plain.step(move[4])[1]


@pytest.mark.parametrize("id", ["HalfCheetahVel-v0", "HopperRandParams-v0", "ReacherGoal-v0"])
def test_mujocos_own_batches_and_our_threads_give_the_same_bits(id, monkeypatch):
    """With fields beside the state, models of every task's own, and episodes that end early."""
    family = metarl.make(id, horizon=60)
    if not isinstance(make_vector(family, K, E)._simulator, backend._BatchSimulator):
        pytest.skip("this MuJoCo has no batches")
    tasks, moves = family.sample(K, np.random.default_rng(0)), actions(62, size=family.action_space.shape[0])
    native = play(backend.MujocoVectorEnv(family, K, E, 2), tasks, moves)
    monkeypatch.setattr(backend, "_simulator", backend._ThreadSimulator)
    threads = play(backend.MujocoVectorEnv(family, K, E, 2), tasks, moves)
    assert np.ptp(native[1]) > 0
    for a, b in zip(native, threads, strict=True):
        np.testing.assert_array_equal(a, b)
