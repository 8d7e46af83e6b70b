"""Training runs that are interrupted, killed and resumed: no number changes."""

import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import SCHEDULE, TOTAL, iterations_logged, rows_without_time, same_params, tiny

from metarl import MetaLearner, parallel
from metarl.inner import loop
from metarl.rollout.sampler import Sampler
from metarl.training.train import BEST, LATEST, RunDirectory, in_one_piece

# ---------------------------------------------------------------------------------------------------------------------
# Resuming


def assert_same_run(run: Path, whole: Path) -> None:
    a, b = MetaLearner.load(run), MetaLearner.load(whole)
    assert same_params(a.state.params, b.state.params)
    assert a.state.env_steps == b.state.env_steps
    assert rows_without_time(run) == rows_without_time(whole)
    for name in (LATEST, BEST):  # the best score stands in them
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def finish(run: Path) -> MetaLearner:
    learner = MetaLearner.load(run, device="cpu")
    return learner.learn(TOTAL - learner.state.iteration, run_dir=run, **SCHEDULE)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, stop):
    tiny().learn(TOTAL, run_dir=tmp_path, callback=lambda stats: stats["iteration"] < stop, **SCHEDULE)
    assert MetaLearner.load(tmp_path).state.iteration == stop
    finish(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_learner_goes_on_in_its_own_directory(tmp_path, whole):
    learner = tiny()
    learner.learn(TOTAL, run_dir=tmp_path, callback=lambda stats: stats["iteration"] < 3, **SCHEDULE)
    learner.learn(TOTAL - 3, run_dir=tmp_path, **SCHEDULE)
    assert_same_run(tmp_path, whole)
    assert same_params(learner.state.params, MetaLearner.load(whole).state.params)


def interrupt(monkeypatch: pytest.MonkeyPatch, rollout: int) -> None:
    """Ctrl-C in the rollout of that number."""
    collect, count = Sampler.collect, [0]

    def broken(*args: Any) -> Any:
        count[0] += 1
        if count[0] == rollout:
            raise KeyboardInterrupt
        return collect(*args)

    monkeypatch.setattr(Sampler, "collect", broken)


# Iterations 1 to 3 take the rollouts 1-2, 3-4 (with an evaluation in 5-6) and 7-8.
@pytest.mark.parametrize(("rollout", "done"), [(1, 0), (2, 0), (4, 1), (5, 1), (6, 1), (8, 2)])
def test_a_run_interrupted_in_the_middle_of_an_iteration_equals_an_uninterrupted_one(
    tmp_path, whole, monkeypatch, rollout, done
):
    learner = tiny()
    with monkeypatch.context() as patch:
        interrupt(patch, rollout)
        with pytest.raises(KeyboardInterrupt):
            learner.learn(TOTAL, run_dir=tmp_path, **SCHEDULE)
    assert learner.state.iteration == done
    assert same_params(MetaLearner.load(tmp_path).state.params, learner.state.params)
    finish(tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(("kill", "latest"), [(1, 0), (3, 2)])
def test_a_run_killed_hard_goes_on_from_the_latest_checkpoint(tmp_path, whole, kill, latest):
    run, killed = tmp_path / "run", tmp_path / "killed"

    def copy(stats: dict[str, Any]) -> None:  # what a kill at this moment would leave
        if stats["iteration"] == kill:
            shutil.copytree(run, killed)

    tiny().learn(TOTAL, run_dir=run, callback=copy, **SCHEDULE)
    assert (iterations_logged(killed), MetaLearner.load(killed).state.iteration) == (kill, latest)
    finish(killed)
    assert_same_run(killed, whole)


def test_the_best_state_is_the_best_after_adaptation_to_tasks_that_are_not_trained_on(tmp_path, monkeypatch):
    learner, step = tiny(), MetaLearner._step
    by_iteration = {1: (9.0, 1.0), 2: (8.0, 3.0), 3: (7.0, 2.0)}  # before and after: the second is the best

    def trained(self, state):
        new, stats = step(self, state)
        return new, stats | {"return/step_0": -1.0, "return/step_1": float(new.iteration)}  # the third would be

    def evaluated(self, state, *args, **kwargs):
        returns = torch.tensor(by_iteration[state.iteration]).reshape(1, 2, 1)
        return SimpleNamespace(returns=returns, success_rates=None, score=returns[0, -1, 0].item())

    monkeypatch.setattr(MetaLearner, "_step", trained)
    monkeypatch.setattr(MetaLearner, "_evaluate", evaluated)
    learner.learn(3, run_dir=tmp_path, eval_every=1)
    assert MetaLearner.load(tmp_path / BEST).state.iteration == 2
    assert [row["eval/score"] for row in RunDirectory(tmp_path).metrics()] == [1, 3, 2]


@pytest.mark.parametrize(("score", "replaced"), [(1e9, False), (-1e9, True)])
def test_a_resumed_run_remembers_its_best_score(tmp_path, score, replaced):
    learner = tiny().learn(1, run_dir=tmp_path, **SCHEDULE)
    before = (tmp_path / BEST).read_bytes()
    learner._best_score = score
    learner.save(tmp_path / LATEST)
    finish(tmp_path)
    assert ((tmp_path / BEST).read_bytes() != before) == replaced


def test_another_seed_gives_another_run(tmp_path, whole):
    learner = tiny(seed=1).learn(TOTAL, run_dir=tmp_path, **SCHEDULE)
    assert not same_params(learner.state.params, MetaLearner.load(whole).state.params)


def test_the_run_directory_changes_no_number(whole):
    assert same_params(tiny().learn(TOTAL, eval_every=0).state.params, MetaLearner.load(whole).state.params)


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 10)  # one task of 5 steps and 2 episodes
    pooled: list[int] = []
    thread_map = parallel.thread_map
    monkeypatch.setattr(loop, "thread_map", lambda f, xs: (pooled.append(len(xs)), thread_map(f, xs))[1])
    params = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        params.append(tiny(n_tasks=4).learn(3, eval_every=0).state.params)
    assert set(pooled) == {4}
    assert same_params(*params)


# ---------------------------------------------------------------------------------------------------------------------
# What is written


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_in_one_piece_is_interrupted_when_it_is_done(number):
    before = signal.signal(number, signal.default_int_handler)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
            with in_one_piece():
                signal.raise_signal(number)
                done.append("first")
                signal.raise_signal(number)
                done.append("second")
        assert done == ["first", "second"]
        assert signal.getsignal(number) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)


def test_one_piece_without_interruption_changes_nothing_not_even_in_a_thread():
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    done = []

    def work():
        with in_one_piece():
            done.append(1)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1, 1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
