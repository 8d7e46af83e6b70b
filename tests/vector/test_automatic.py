"""How many environments are run: as asked for, or whatever is faster; learners and commands pass the choice on."""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from probes import Drift
from process_episodes import E, K, assert_equal, play, tasks_of
from process_families import Closing, Noisy, Unpicklable
from processes import workers_of
from tiny_runs import same_params, tiny

from metarl import cli
from metarl.rollout import sampler
from metarl.rollout.sampler import Sampler
from metarl.vector import automatic
from metarl.vector.automatic import AutomaticVectorEnv
from metarl.vector.backends import make_vector
from metarl.vector.loop import LoopVectorEnv
from metarl.vector.process import ProcessVectorEnv
from metarl.vector.tensor import TensorVectorEnv

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system"),
    pytest.mark.usefixtures("no_process_left"),
]


# ---------------------------------------------------------------------------------------------------------------------
# The choice


def test_make_vector_takes_what_is_asked_for():
    kinds = {None: AutomaticVectorEnv, 0: LoopVectorEnv, 2: ProcessVectorEnv}
    assert {w: type(make_vector(Noisy(), K, E, workers=w)) for w in kinds} == kinds
    assert type(make_vector(Drift(), K, E)) is TensorVectorEnv
    assert type(make_vector(Drift(), K, E, workers=0)) is LoopVectorEnv
    with pytest.raises(ValueError, match=r"workers.*-1"):
        make_vector(Noisy(), K, E, workers=-1)
    with pytest.raises(ValueError, match=r"workers.*-1"):
        Sampler(Noisy(), workers=-1)


@pytest.fixture
def eager(monkeypatch):
    """Every rollout takes long enough, and there are two cores."""
    monkeypatch.setattr(automatic, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(automatic, "ROLLOUT_SECONDS", 0.0)
    monkeypatch.setattr(automatic, "cores", lambda: 2)


def test_the_automatic_choice_moves_between_rollouts_and_changes_no_number(eager):
    family, workers = Noisy(), []
    env, loop = AutomaticVectorEnv(family, K, E), LoopVectorEnv(family, K, E)
    for seed in range(3):
        case = [seed + i for i in range(6)], tasks_of(family, seed=seed)
        assert_equal(play(env, family, *case), play(loop, family, *case))
        workers.append(env.workers)
    assert workers == [0, 2, 2]
    env.close()
    assert workers_of(os.getpid()) == []


def test_the_automatic_choice_stays_where_only_a_rollout_without_new_tasks_follows(eager):
    family = Noisy()
    env = AutomaticVectorEnv(family, K, E)
    play(env, family, [0] * 6, tasks_of(family))
    play(env, family, [0] * 6, None)
    assert env.workers == 0


@pytest.mark.parametrize(
    ("step", "rollout", "cores", "want"), [(0, 0, 2, 2), (1e9, 0, 2, 0), (0, 1e9, 2, 0), (0, 0, 1, 0)]
)
def test_the_automatic_choice_follows_its_rule(step, rollout, cores, want, monkeypatch):
    monkeypatch.setattr(automatic, "STEP_SECONDS", float(step))
    monkeypatch.setattr(automatic, "ROLLOUT_SECONDS", float(rollout))
    monkeypatch.setattr(automatic, "cores", lambda: cores)
    family = Noisy()
    env = AutomaticVectorEnv(family, K, E)
    for _ in range(2):
        play(env, family, [0] * 6, tasks_of(family), steps=2)
    assert env.workers == want
    env.close()


def test_the_automatic_choice_closes_what_it_leaves_behind(eager, tmp_path):
    family: Any = Closing(str(tmp_path / "closed"))
    env = AutomaticVectorEnv(family, K, E)
    play(env, family, [0] * 6, tasks_of(family))
    assert (env.workers, family.closed()) == (0, 0)
    env.reset(options={"tasks": tasks_of(family)})
    assert (env.workers, family.closed()) == (2, 6)
    env.close()
    assert family.closed() == 12


@pytest.mark.parametrize(("steps", "resets", "want"), [(2, 0, 2), (9, 0, 0), (9, 2, 2)])
def test_the_automatic_choice_counts_the_time_of_every_step_and_reset(steps, resets, want, monkeypatch):
    # A clock by which each call takes a second: 1 + 2 seconds in 2 steps are more than 1.2 a step, 1 + 9 in 9 are not.
    ticks = iter(range(1000))
    monkeypatch.setattr(automatic, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(automatic, "STEP_SECONDS", 1.2)
    monkeypatch.setattr(automatic, "cores", lambda: 2)
    family = Noisy()
    env = AutomaticVectorEnv(family, K, E)
    env.reset(seed=0, options={"tasks": tasks_of(family)})
    for _ in range(steps):
        env.step(np.zeros((6, 2), np.float32))
    for _ in range(resets):
        env.reset(seed=0, options={"reset_mask": np.arange(K * E) == 1})
    env.reset(seed=0, options={"tasks": tasks_of(family)})
    assert env.workers == want
    env.close()


def test_the_automatic_choice_never_breaks_what_runs_one_by_one(eager):
    family = Unpicklable()
    env, loop = AutomaticVectorEnv(family, K, E), LoopVectorEnv(family, K, E)
    case = [0] * 6, tasks_of(family)
    play(env, family, *case)
    with pytest.warns(RuntimeWarning, match=r"one by one.*cannot be sent"):
        found = play(env, family, *case)
    assert_equal(found, play(loop, family, *case))
    assert_equal(play(env, family, *case), found)  # and does not warn again


def test_cores_are_at_most_pytorch_s_threads():
    assert automatic.cores() == 1  # tests have one thread
    torch.set_num_threads(64)
    assert automatic.cores() == len(os.sched_getaffinity(0))


# ---------------------------------------------------------------------------------------------------------------------
# Passed down


def test_a_learner_learns_the_same_with_and_without_processes():
    params = {}
    for workers in (0, 2):
        with tiny(Noisy(), workers=workers) as learner:
            learner.learn(2, eval_every=0)
            params[workers] = learner.state.params
            assert len(workers_of(os.getpid())) == workers
            assert learner.describe() == tiny(Noisy()).describe()
        assert workers_of(os.getpid()) == []
    assert same_params(params[0], params[2])
    learner.evaluate(2, steps=1)  # a closed learner can still be used
    learner.close()


def test_the_command_line_passes_workers_down(tmp_path, monkeypatch):
    asked = []

    def noting(family, n_tasks, episodes, device="cpu", workers=None):
        asked.append(workers)
        return make_vector(family, n_tasks, episodes, device)

    monkeypatch.setattr(sampler, "make_vector", noting)
    run = str(tmp_path / "run")
    small = ["--family-kwargs", "horizon=3", "--n-tasks", "2", "--episodes", "2", "--hidden", "4", "--threads", "1"]
    common = ["--iterations", "1", "--no-progress", "--eval-every", "0", *small]
    assert cli.run(["train", "maml_trpo", "PointNavigation-v0", *common, "--out", run, "--workers", "3"]) == 0
    assert cli.run(["train", "--resume", run, "--iterations", "2", "--no-progress", "--workers", "2"]) == 0
    assert cli.run(["evaluate", run, "--tasks", "2", "--no-figures", "--workers", "4", "--steps", "1"]) == 0
    assert asked == [3, 2, 4]
