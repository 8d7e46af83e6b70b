"""Families as stable-baselines3's vector environments: the plain environments' numbers, tasks, wrappers, training."""

import os
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from probes import Drift, Locks, PointGoal, Stops, TwoArms
from process_families import Noisy
from sb3_policies import (
    plain,
)
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from tiny_runs import point

from metarl import random
from metarl.families.registry import make
from metarl.sb3 import as_vec_env
from metarl.tasks import task_at


class Numbered(TwoArms):
    """Choices that are not counted from zero, in observations and actions."""

    horizon = 3

    def __init__(self) -> None:
        super().__init__()
        self.observation_space, self.action_space = Discrete(3, start=4), Discrete(2, start=7)

    def observe(self, state: Any, task: Any) -> torch.Tensor:
        return 4 + task["good"]

    def step(self, state: Any, action: torch.Tensor, task: Any, draws: torch.Tensor) -> Any:
        reward = (action == 7 + task["good"]).to(draws.dtype)
        return state, reward, None


class Short(Drift):
    """Some episodes end, others are cut off."""

    horizon = 6


TASK = {"steps": 5, "push": np.array([0.3, -0.2], np.float32)}


@pytest.mark.parametrize(
    ("family", "task"),
    [
        (Short(), "resample"),
        (Short(), TASK),
        (Short(), [{**TASK, "steps": n} for n in (8, 3, 5, 7)]),
        (plain(Short), "resample"),
        (Stops(), "resample"),
        (Numbered(), "resample"),
        (Locks(), "resample"),
    ],
    ids=["tensor", "one task", "a task each", "loop", "gymnasium", "numbered", "several"],
)
def test_a_vec_env_equals_plain_environments(family, task):
    n, seed, rng = 4, 11, np.random.default_rng(0)
    env = as_vec_env(family, n, task, seed=seed, split="test")
    shift_obs, shift_act = (np.asarray(getattr(s, "start", 0)) for s in (family.observation_space, family.action_space))
    obs = env.reset()
    episode, singles, ends = [0] * n, [None] * n, [0, 0]

    def begin(i: int) -> Any:
        now = env.get_attr("task", i)[0]
        if task == "resample":
            want = family.sample(n, np.random.default_rng([seed, episode[i]]), "test")
            assert all(np.array_equal(now[name], want[name][i]) for name in now)
        singles[i] = family.make(now)
        return singles[i].reset(seed=int(random.episode_seeds(seed, episode[i], 0x5B3, n, 1)[i, 0]))[0] - shift_obs

    np.testing.assert_allclose(obs, [begin(i) for i in range(n)], rtol=1e-5, atol=1e-6)
    for _ in range(25):
        actions = np.stack(
            [env.action_space.sample() if shift_act.any() else rng.uniform(-0.5, 0.5, 2) for _ in range(n)]
        )
        actions = actions if shift_act.any() else actions.astype(np.float32)
        ages = [s.t if isinstance(family, Stops) else int(s._batch._elapsed) for s in singles]
        obs, reward, done, infos = env.step(actions)
        assert obs.dtype == env.observation_space.dtype and reward.dtype == np.float32
        for i in range(n):
            want, r, terminated, truncated, _ = singles[i].step(actions[i] + shift_act)
            truncated = not terminated and (truncated or ages[i] + 1 >= family.horizon)
            assert (bool(done[i]), infos[i]["TimeLimit.truncated"]) == (terminated or truncated, truncated)
            assert reward[i] == pytest.approx(r, rel=1e-5)
            want = want - shift_obs
            assert ("terminal_observation" in infos[i]) == bool(done[i])
            if done[i]:
                ends[truncated] += 1
                np.testing.assert_allclose(infos[i]["terminal_observation"], want, rtol=1e-5, atol=1e-6)
                episode[i] += 1
                want = begin(i)
            np.testing.assert_allclose(obs[i], want, rtol=1e-5, atol=1e-6)
            assert env.observation_space.contains(obs[i])
    assert sum(ends) > n
    env.close()


def trace(env: Any, steps: int) -> list[Any]:
    """What a VecEnv answers to random actions, its infos included, all of them numbers and arrays."""
    rng, out = np.random.default_rng(0), [env.reset()]
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)
        obs, reward, done, infos = env.step(actions)
        ends = [value for info in infos for _, value in sorted(info.items())]
        out += [obs, reward, done, *ends, *(x for task in env.get_attr("task") for x in task.values())]
    env.close()
    return out


@pytest.mark.parametrize("task", ["resample", "one"])
@pytest.mark.parametrize("id", ["HopperRandParams-v0", "AntVel-v0"])
def test_a_simulator_runs_at_its_own_speed_where_episodes_end_early(id, task):
    pytest.importorskip("mujoco")
    family: Any = make(id, horizon=50 if id.startswith("Hopper") else 15)
    task = task if task == "resample" else task_at(family.sample(1, np.random.default_rng(0)), 0)
    fast = as_vec_env(family, 4, task, seed=3)
    assert type(fast.vector).__name__ == "MujocoVectorEnv"
    a, b = trace(fast, 70), trace(as_vec_env(family, 4, task, seed=3, workers=0), 70)
    assert len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    if id.startswith("Hopper"):
        done = np.array([x for x in a if isinstance(x, np.ndarray) and x.dtype == bool])
        assert (done.any(1) & ~done.all(1)).any()  # some end before the others


@pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system")
@pytest.mark.parametrize("task", ["resample", "one"])
def test_worker_processes_change_no_number(task):
    family: Any = Noisy()
    task = task if task == "resample" else task_at(family.sample(1, np.random.default_rng(0)), 0)
    kinds = {workers: type(as_vec_env(family, 4, task, workers=workers).vector).__name__ for workers in (None, 0, 2)}
    assert kinds == {None: "LoopVectorEnv", 0: "LoopVectorEnv", 2: "ProcessVectorEnv"}
    a, b = (trace(as_vec_env(family, 4, task, seed=3, workers=workers), 25) for workers in (2, 0))
    assert len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    done = np.array([x for x in a if isinstance(x, np.ndarray) and x.dtype == bool])
    assert (done.any(1) & ~done.all(1)).any()


def test_both_kinds_of_end_and_single_resets_come_up():
    # Else the test above would show less than it says.
    env = as_vec_env(Short(), 4, seed=11, split="test")
    env.reset()
    steps = [env.step(np.zeros((4, 2), np.float32)) for _ in range(25)]
    done, cut = (
        np.array(x) for x in ([s[2] for s in steps], [[i["TimeLimit.truncated"] for i in s[3]] for s in steps])
    )
    assert (done & cut).any() and (done & ~cut).any() and (done.any(1) & ~done.all(1)).any()


def test_the_seed_determines_the_episodes():
    def first(env: Any) -> list[float]:
        return [*env.reset().ravel().tolist(), *(x for task in env.get_attr("task") for x in task["push"].tolist())]

    env = as_vec_env(Drift(), 3, seed=5)
    a, b = first(env), first(env)
    assert a != b  # another reset, other episodes
    assert first(as_vec_env(Drift(), 3, seed=5)) == a
    assert env.seed(6) == [6, 7, 8]
    assert first(env) == first(as_vec_env(Drift(), 3, seed=6)) != a
    env.seed(5)
    assert first(env) == a
    assert first(as_vec_env(Drift(), 3, seed=5, split="test")) != a


def test_attributes_and_methods():
    env = as_vec_env(Drift(), 3)
    env.reset()
    assert env.get_attr("horizon", [0, 2]) == [8, 8] and env.get_attr("render_mode") == [None] * 3
    assert env.env_is_wrapped(Monitor) == [False] * 3 and env.has_attr("task") and not env.has_attr("nothing")
    before = env.get_attr("task")
    env.set_attr("task", TASK, [1])
    assert env.get_attr("task", 1)[0]["steps"] == before[1]["steps"]  # not in the middle of an episode
    env.reset()
    assert env.get_attr("task", 1)[0]["push"].tolist() == TASK["push"].tolist()
    assert env.get_attr("task", 0)[0]["push"].tolist() != TASK["push"].tolist()
    env.set_attr("task", "resample")
    env.reset()
    assert env.get_attr("task", 1)[0]["push"].tolist() != TASK["push"].tolist()
    with pytest.raises(AttributeError, match=r"call 'jump'.*no single environments"):
        env.env_method("jump")
    with pytest.raises(ValueError, match="made for one task"):
        as_vec_env(Drift(), 3, TASK).set_attr("task", TASK, [0])
    one = as_vec_env(Drift(), 2, TASK)
    one.reset()
    one.set_attr("task", {**TASK, "steps": 3})
    one.reset()
    assert [t["steps"] for t in one.get_attr("task")] == [3, 3]


def test_a_new_task_is_taken_up_by_each_when_its_episode_ends():
    env = as_vec_env(Drift(), 2, [{**TASK, "steps": 3}, {**TASK, "steps": 5}])
    env.reset()
    env.set_attr("task", {**TASK, "steps": 8})
    steps = []
    for _ in range(5):
        env.step(np.zeros((2, 2), np.float32))
        steps.append([int(task["steps"]) for task in env.get_attr("task")])
    assert steps == [[3, 5], [3, 5], [8, 5], [8, 5], [8, 8]]


def test_single_environments_are_reached_where_there_are_any():
    env = as_vec_env(Stops(), 2)
    env.reset()
    env.step(np.zeros((2, 2), np.float32))
    assert env.get_attr("t", 1) == [1]
    env.set_attr("t", 3, 1)
    assert env.get_attr("t") == [0, 3]  # the first one's episode lasts one step: it has begun again
    env.env_method("reset", indices=1)
    assert env.get_attr("t") == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "other"}, "got 'other'"),
        ({"task": {"goal": [np.nan, 0.0]}}, "goal"),
        ({"task": [{"goal": [0.1, 0.0]}]}, "each of 2 environments, got 1"),
        ({"split": "valid"}, "has no split 'valid'"),
        ({"seed": -1}, "negative"),
        ({"workers": -1}, "workers must .*negative"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        as_vec_env("PointNavigation-v0", 2, **arguments)


def test_a_vector_environment_that_cannot_reset_single_ones_is_found_out():
    family = Drift()
    fast = family.make_vector(4, 1)

    def reset(*, seed: Any = None, options: Any = None) -> Any:
        return type(fast).reset(fast, seed=seed, options={k: v for k, v in options.items() if k != "reset_mask"})

    family.make_vector = lambda *_: SimpleNamespace(reset=reset, step=fast.step)  # type: ignore[method-assign]
    env = as_vec_env(family, 4)
    env.reset()
    with pytest.raises(ValueError, match="cannot reset single environments"):
        deque((env.step(np.zeros((4, 2), np.float32)) for _ in range(8)), maxlen=0)


def test_an_episode_with_a_success_in_any_step_is_one():
    family: Any = point(3)
    fast, flags = family.make_vector(2, 1), iter([[0, 1], [1, 0], [0, 0], [0, 0], [1, 0], [0, 0]])
    family.make_vector = lambda *_: SimpleNamespace(
        reset=fast.reset, step=lambda actions: (*fast.step(actions)[:4], {"success": np.array(next(flags))})
    )
    env = as_vec_env(family, 2)
    env.reset()
    infos = [env.step(np.zeros((2, 2), np.float32))[3] for _ in range(6)]
    assert [[info.get("is_success") for info in step] for step in infos[1:3]] == [[None, None], [True, True]]
    assert [info["is_success"] for info in infos[5]] == [True, False]


class Fake:
    """A vector environment of 2 that says what it is told to, in the memory that it said the last in."""

    def __init__(self, steps: list[tuple[list[int], list[int], list[int]]]):
        self.steps, self.obs, self.resets = iter(steps), np.zeros((2, 2), np.float32), []

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = options.get("reset_mask", np.ones(2, bool))
        self.resets.append(mask.tolist())
        self.obs[mask] = 0
        return self.obs, {}

    def step(self, actions: Any) -> Any:
        self.obs += 1
        terminated, truncated, success = (np.array(x, bool) for x in next(self.steps))
        return self.obs, np.ones(2), terminated, truncated, {"success": success}


def faked(steps: list[tuple[list[int], list[int], list[int]]]) -> Any:
    family: Any = point(9)
    family.make_vector = lambda *_: Fake(steps)
    env = as_vec_env(family, 2)
    env.reset()
    return env


def test_the_end_of_one_episode_is_nothing_to_the_others():
    # terminated, truncated, success in each step. Both at once is a termination.
    env = faked(
        [([0, 0], [0, 0], [0, 1]), ([1, 0], [1, 0], [1, 0]), ([0, 1], [0, 0], [0, 0]), ([0, 0], [1, 0], [0, 0])]
    )
    steps = [env.step(np.zeros((2, 2), np.float32)) for _ in range(4)]
    assert [done.tolist() for *_, done, _ in steps] == [[False, False], [True, False], [False, True], [True, False]]
    shown = [[(i, info["TimeLimit.truncated"], info["is_success"]) for i, info in enumerate(infos) if len(info) > 1]
             for *_, infos in steps]  # fmt: skip
    assert shown == [[], [(0, False, True)], [(1, False, True)], [(0, True, False)]]
    assert env.vector.resets[1:] == [[True, False], [False, True], [True, False]]


def test_what_was_returned_stays_where_the_environments_reuse_their_memory():
    env = faked([([0, 0], [0, 0], [0, 0]), ([0, 0], [1, 1], [0, 0])])
    first = env.reset()
    second = env.step(np.zeros((2, 2), np.float32))[0]
    third, _, _, infos = env.step(np.zeros((2, 2), np.float32))
    last = [info["terminal_observation"].tolist() for info in infos]
    assert (first.tolist(), second.tolist(), third.tolist()) == ([[0, 0]] * 2, [[1, 1]] * 2, [[0, 0]] * 2)
    assert last == [[2, 2]] * 2


def test_reset_options_are_refused():
    env = as_vec_env(point(), 2)
    env.set_options({"goal": [0.1, 0.1]})
    with pytest.raises(ValueError, match=r"PointNavigation-v0 take no reset options, got \[\{'goal'"):
        env.reset()


def test_their_wrappers_count_and_normalise():
    env = VecNormalize(VecMonitor(as_vec_env(point(5), 3, {"goal": [0.3, 0.0]})))
    env.reset()
    results = [env.step(np.zeros((3, 2), np.float32)) for _ in range(5)]
    episodes = [info["episode"] for info in results[-1][3]]
    assert [(e["l"], round(float(e["r"]), 4)) for e in episodes] == [(5, -1.5)] * 3
    assert env.obs_rms.count > 15


def test_their_ppo_learns_on_a_family():
    env = VecMonitor(as_vec_env(PointGoal(), 16, {"goal": [0.4, 0.3]}, seed=0))
    model = PPO("MlpPolicy", env, n_steps=20, batch_size=80, learning_rate=3e-3, gamma=0.9, seed=0, device="cpu",
                policy_kwargs={"net_arch": [16], "log_std_init": -2.3})  # fmt: skip
    before = evaluate_policy(model, env, 16)[0]
    model.learn(320 * 20)
    after = evaluate_policy(model, env, 16)[0]
    assert before < -8  # standing still: -20 * 0.5
    assert after > -4  # the best: -(0.4 + 0.3 + 0.2 + 0.1) and a bit
