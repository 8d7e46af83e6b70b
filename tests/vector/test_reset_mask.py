"""Resetting some of the environments: every backend equals the loop, and the others notice nothing."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from probes import Drift, Stops
from process_families import Failing, Noisy

import metarl
from metarl import random, visible
from metarl.tasks import task_at
from metarl.vector import automatic
from metarl.vector import tensor as tensor_module
from metarl.vector.automatic import AutomaticVectorEnv
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv, WorkerError

K, E, STEPS = 3, 2, 20
N = K * E


def play(
    env: Any, family: Any, masks: dict[int, np.ndarray], new_tasks: bool, steps: int = STEPS
) -> list[tuple[np.ndarray, ...]]:
    """Observations, rewards and flags of so many steps; before step t the environments in masks[t] are reset."""
    rng, out = np.random.default_rng(3), []
    actions = rng.uniform(-0.5, 0.5, (steps, N, *family.action_space.shape)).astype(np.float32)
    env.reset(seed=list(range(N)), options={"tasks": family.sample(K, np.random.default_rng(0))})
    for t in range(steps):
        if t in masks:
            options: dict[str, Any] = {"reset_mask": masks[t]}
            if new_tasks:
                options["tasks"] = family.sample(K, np.random.default_rng(t))
            obs, _ = env.reset(seed=[1000 * t + i for i in range(N)], options=options)
            out.append((np.asarray(obs),))
        out.append(tuple(np.asarray(x) for x in env.step(actions[t])[:4]))
    return out


MASKS = {t: np.random.default_rng(t).random(N) < 0.4 for t in (1, 2, 5, 6, 11, 12, 17)}
MASKS[9] = np.ones(N, bool)


@pytest.mark.parametrize("new_tasks", [False, True])
@pytest.mark.parametrize("block", [None, N * 3 * 3])  # all draws at once, and three steps at a time
def test_the_tensor_backend_equals_the_loop(new_tasks, block, monkeypatch):
    if block is not None:
        monkeypatch.setattr(tensor_module, "_DRAW_BLOCK", block)
    family: Any = Drift()
    family.horizon = 5  # some episodes end, others are cut off
    fast = play(make_vector(family, K, E), family, MASKS, new_tasks)
    slow = play(LoopVectorEnv(family, K, E), family, MASKS, new_tasks)
    assert len(fast) == len(slow) == STEPS + len(MASKS)
    for a, b in zip(fast, slow, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    ends = np.array([step[2] | step[3] for step in fast if len(step) == 4])
    assert ends[:-1].any() and not ends.all() and (ends[:-1] & ~ends[1:]).any()  # some ended, and began again


def test_the_others_keep_their_visible_tasks():
    family: Any = visible(Drift())
    fast = play(make_vector(family, K, E), family, MASKS, True)
    slow = play(LoopVectorEnv(family, K, E), family, MASKS, True)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-6, atol=1e-6)


def assert_same_bits(fast: list[tuple[np.ndarray, ...]], slow: list[tuple[np.ndarray, ...]]) -> None:
    assert len(fast) == len(slow)
    for a, b in zip(fast, slow, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("new_tasks", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
def test_worker_processes_equal_the_loop(new_tasks, workers):
    family: Any = Noisy()
    family.horizon = 5
    fast = ProcessVectorEnv(family, K, E, workers)
    slow = play(LoopVectorEnv(family, K, E), family, MASKS, new_tasks)
    assert_same_bits(play(fast, family, MASKS, new_tasks), slow)
    fast.close()
    terminated, truncated = (np.array([step[i] for step in slow if len(step) == 4]) for i in (2, 3))
    for over in (terminated, truncated):
        assert over.any() and (over[:-1] & ~over[1:]).any()  # some ended, and began again


@pytest.mark.parametrize("new_tasks", [False, True])
@pytest.mark.parametrize("id", ["HopperRandParams-v0", "AntVel-v0", "AntGoal-v0"])
def test_the_simulators_threads_equal_the_loop(id, new_tasks):
    """Episodes that end early, models that differ from task to task, fields beside the state, tasks in positions."""
    mujoco = pytest.importorskip("metarl.vector.mujoco")
    pytest.importorskip("mujoco")
    family: Any = metarl.make(id, horizon=7)
    slow = play(LoopVectorEnv(family, K, E), family, MASKS, new_tasks)
    assert_same_bits(play(mujoco.MujocoVectorEnv(family, K, E, threads=2), family, MASKS, new_tasks), slow)
    over = np.array([step[2] | step[3] for step in slow if len(step) == 4])
    assert (over[:-1] & ~over[1:]).any() and (over.any(1) & ~over.all(1)).any()


def test_who_fell_over_gets_up_again():
    mujoco = pytest.importorskip("metarl.vector.mujoco")
    pytest.importorskip("mujoco")
    family: Any = metarl.make("HopperRandParams-v0", horizon=60)
    masks = {t: np.random.default_rng(t).random(N) < 0.5 for t in (5, 40, 50, 60, 70)}
    slow = play(LoopVectorEnv(family, K, E), family, masks, True, 75)
    assert_same_bits(play(mujoco.MujocoVectorEnv(family, K, E, threads=2), family, masks, True, 75), slow)
    terminated = np.array([step[2] for step in slow if len(step) == 4])
    assert (terminated[:-1] & ~terminated[1:]).any()


def test_a_worker_that_fails_after_such_a_reset_names_the_episodes_own_step_and_task():
    family: Any = Failing("step", "raise")
    env = ProcessVectorEnv(family, K, E, 2)
    tasks = family.sample(K, np.random.default_rng(0))
    env.reset(seed=0, options={"tasks": {**tasks, "shift": tasks["shift"] * 0}})
    for _ in range(2):
        env.step(np.zeros((N, 2), np.float32))
    env.reset(seed=100, options={"reset_mask": np.arange(N) == 3, "tasks": tasks})  # the bad one
    for _ in range(2):
        env.step(np.zeros((N, 2), np.float32))
    words = re.escape(f"raised in step 2 of episode 1 of task 1 = {task_at(tasks, 1)}")
    with pytest.raises(WorkerError, match=words):
        env.step(np.zeros((N, 2), np.float32))
    with pytest.raises(ValueError, match="after an error, is one of all"):
        env.reset(options={"reset_mask": np.arange(N) == 3, "tasks": tasks})
    env.close()


def test_environments_move_into_processes_only_when_all_begin_anew(monkeypatch):
    monkeypatch.setattr(automatic, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(automatic, "ROLLOUT_SECONDS", 0.0)
    monkeypatch.setattr(automatic, "cores", lambda: 2)
    family: Any = Noisy()
    family.horizon = 5
    env = AutomaticVectorEnv(family, K, E)
    some = {t: mask for t, mask in MASKS.items() if not mask.all()}
    fast, slow = (play(e, family, some, True) for e in (env, LoopVectorEnv(family, K, E)))
    assert all(np.array_equal(x, y) for a, b in zip(fast, slow, strict=True) for x, y in zip(a, b, strict=True))
    assert env.workers == 0
    env.reset(options={"tasks": family.sample(K, np.random.default_rng(0))})
    assert env.workers == 2
    env.close()


@pytest.mark.parametrize("backend", [make_vector, LoopVectorEnv])
def test_the_others_notice_nothing(backend):
    family: Any = Drift()
    mask = np.array([False, True, False, True, False, False])
    with_reset = [step for step in play(backend(family, K, E), family, {3: mask, 4: mask}, True) if len(step) == 4]
    without = play(backend(family, K, E), family, {}, True)
    same = [np.array_equal(a[0][~mask], b[0][~mask]) and np.array_equal(a[1][~mask], b[1][~mask])
            for a, b in zip(with_reset, without, strict=True)]  # fmt: skip
    assert all(same)
    assert not np.array_equal(with_reset[3][0][mask], without[3][0][mask])


def test_a_reset_episode_has_its_whole_horizon_again():
    family: Any = Stops()
    family.sample = lambda n, rng, split="train": {"steps": np.full(n, 6)}
    family.horizon = 5
    env = LoopVectorEnv(family, K, E)
    env.reset(options={"tasks": family.sample(K, None)})
    mask = np.arange(N) == 2
    for t in range(7):
        if t == 2:
            env.reset(options={"reset_mask": mask})
        truncated = env.step(np.zeros((N, 2)))[3]
        assert truncated.tolist() == [t >= 4 if i != 2 else t >= 6 for i in range(N)]


@pytest.mark.parametrize("backend", [make_vector, LoopVectorEnv])
@pytest.mark.parametrize(
    ("mask", "message"),
    [(np.ones(N - 1, bool), r"bool \[6\]"), (np.ones(N), "float64"), (np.zeros(N, bool), "names no environment")],
)
def test_wrong_masks_are_refused(backend, mask, message):
    family: Any = Drift()
    env = backend(family, K, E)
    env.reset(options={"tasks": family.sample(K, np.random.default_rng(0))})
    with pytest.raises(ValueError, match=message):
        env.reset(options={"reset_mask": mask})


@pytest.mark.parametrize("backend", [make_vector, LoopVectorEnv])
def test_the_first_reset_is_one_of_all(backend):
    family: Any = Drift()
    options = {"tasks": family.sample(K, np.random.default_rng(0)), "reset_mask": np.arange(N) == 0}
    with pytest.raises(ValueError, match="leave reset_mask out"):
        backend(family, K, E).reset(options=options)


def test_numbers_from_a_place_of_ones_own_are_those_of_that_place():
    seeds = random.episode_seeds(1, 0, 0, 3, 4)
    start = torch.arange(12).reshape(3, 4) * 5 + 2
    got = random.uniform(seeds, start, 7, random.ENVIRONMENT)
    for k in range(3):
        for e in range(4):
            want = random.uniform(seeds[k, e], int(start[k, e]), 7, random.ENVIRONMENT)
            assert torch.equal(got[k, e], want)
