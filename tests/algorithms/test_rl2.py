"""RL²: runs that go on bit for bit, settings, logs, evaluation."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from documents import DOCS, generalised
from probes import Drift, TwoArms, Wins
from rl2_runs import SMALL, small, trained_on_two_arms
from tiny_runs import rows_without_time, same_params

import metarl
from metarl import MetaLearner, RecurrentPolicy, random
from metarl.algorithms import rl2
from metarl.algorithms.rl2 import Config
from metarl.policies.gru import GRUPolicy
from metarl.policies.spaces import spaces_of
from metarl.recurrent.trials import collect_trials
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup
from metarl.training.train import RunDirectory

# ---------------------------------------------------------------------------------------------------------------------
# Minibatches, annealing, resuming


def parts_of(seed: int, iteration: int, epoch: int) -> list[list[int]]:
    found = rl2.minibatches(Config(minibatches=3), 20, seed, iteration, epoch, torch.device("cpu"))
    return [part.tolist() for part in found]


def test_an_epoch_has_every_trial_once_in_an_order_of_its_own():
    found = parts_of(1, 2, 0)
    assert sorted(i for part in found for i in part) == list(range(20)) and [len(part) for part in found] == [7, 7, 6]
    torch.manual_seed(3)
    assert parts_of(1, 2, 0) == found
    others = [parts_of(1, 2, 1), parts_of(1, 3, 0), parts_of(2, 2, 0)]
    assert all(other != found for other in others)


def test_a_run_resumed_equals_one_that_never_stopped(tmp_path):
    whole = small(Drift(), normalize_obs=True, anneal_over=5)
    whole.learn(4, run_dir=tmp_path / "whole", eval_every=2, eval_tasks=2)
    half = small(Drift(), normalize_obs=True, anneal_over=5)
    half.learn(2, run_dir=tmp_path / "half", eval_every=2, eval_tasks=2)
    torch.manual_seed(123)  # nothing hangs on a generator's state
    again = MetaLearner.load(tmp_path / "half", Drift(), device="cpu")
    again.learn(2, run_dir=tmp_path / "half", eval_every=2, eval_tasks=2)
    for field in ("params", "optimizer", "obs_stats"):
        assert same_params(getattr(again.state, field), getattr(whole.state, field)), field
    assert torch.equal(again.state.value_units, whole.state.value_units)
    assert rows_without_time(tmp_path / "half") == rows_without_time(tmp_path / "whole")
    assert float(whole.state.optimizer["count"]) == 4 * SMALL["epochs"] * SMALL["minibatches"]


def test_without_adams_memory_it_would_not_be_the_same():
    # The control of the test above: Adam's memory matters.
    learner = small(Drift()).learn(2, eval_every=0)
    cleared = {name: torch.zeros_like(value) for name, value in learner.state.optimizer.items()}
    step = [rl2.iteration(Setup(learner.config, learner.sampler, learner.policy, 0), state)[0].params["w_in"]
            for state in (learner.state, replace(learner.state, optimizer=cleared))]  # fmt: skip
    assert not torch.allclose(*step, atol=1e-4)


def test_threads_do_not_change_the_numbers():
    alone = small(Drift()).learn(2, eval_every=0).state.params
    torch.set_num_threads(2)
    assert same_params(small(Drift()).learn(2, eval_every=0).state.params, alone)


def test_the_step_size_falls():
    learner, seen = small(outer_lr=0.01, anneal_over=4, anneal_to=0.5), []
    learner.learn(5, eval_every=0, callback=lambda stats: seen.append(stats["outer/lr"]))
    assert seen == pytest.approx([0.01, 0.005 + 0.005 * (1 + 2**-0.5) / 2, 0.0075, 0.005 + 0.005 * (1 - 2**-0.5) / 2,
                                  0.005])  # fmt: skip


def test_nonsense_is_refused():
    for setting, message in (
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"trial_episodes": 1.5}, "trial_episodes must be a whole number, got 1.5"),
        ({"outer_lr": 0}, "outer_lr must be positive and finite, got 0"),
        ({"clip": -1}, "clip must be positive and finite, got -1"),
        ({"network": "mlp"}, "network must be one of"),
        ({"channels": (0,)}, "convolutions need at least one channel each"),
        ({"network": "flat", "channels": (4,)}, "has no meaning for network='flat'"),
        ({"head_hidden": -1}, "head_hidden must be at least 0, got -1"),
        ({"input_gain": 0}, "input_gain must be positive and finite, got 0"),
        ({"memory_steps": 0.5}, "memory_steps must be at least 1, got 0.5"),
        ({"gae_lambda": 1.2}, "gae_lambda must lie in [0, 1], got 1.2"),
        ({"entropy_coef": -0.1}, "entropy_coef must not be negative, and finite, got -0.1"),
        ({"n_tasks": 3, "minibatches": 4}, "minibatches=4 is more than there are trials: n_tasks x trials = 3"),
        ({"min_std": 2.0}, "0 < min_std < init_std, got 2.0 and 1.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            MetaLearner("rl2", TwoArms(), **setting)
    with pytest.raises(ValueError, match="rl2 has no setting 'episodes'"):
        MetaLearner("rl2", TwoArms(), episodes=3)
    with pytest.raises(ValueError, match="its own recurrent policy and cannot train a Linear"):
        MetaLearner("rl2", TwoArms(), policy=torch.nn.Linear(1, 2))


def test_parameters_that_are_not_finite_are_the_policys_fault():
    learner = small()
    learner.state.params["w_act"].fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the policy's own output .* is not finite"):
        learner.learn(1, eval_every=0)


# ---------------------------------------------------------------------------------------------------------------------
# Logs, evaluation, adaptation


def documented() -> set[str]:
    """The names in the tables of docs/logging.md."""
    lines = (DOCS / "logging.md").read_text().splitlines()
    return {name for line in lines if line.startswith("|") for name in re.findall(r"`([a-z_/]+)`", line.split("|")[1])}


def test_every_logged_number_is_documented(tmp_path):
    small(Wins()).learn(1, run_dir=tmp_path, eval_every=1, eval_tasks=2)
    names = {generalised(name) for name in RunDirectory(tmp_path).metrics()[0]}
    assert names <= documented()
    assert {"return/trial", "return/step_k", "success/step_k", "eval/success_k", "outer/clip_fraction"} <= names


def test_logs_are_about_the_episodes_of_the_trial():
    seen: list[dict[str, Any]] = []
    learner = small(metarl.make("BernoulliBandit-v0"), trial_episodes=30, n_tasks=2, minibatches=1)
    learner.learn(1, eval_every=1, eval_tasks=2, callback=seen.append)
    tasks = learner.sampler.tasks(2, 0, 0)
    fresh = small(metarl.make("BernoulliBandit-v0"), trial_episodes=30, n_tasks=2, minibatches=1)
    setup = Setup(None, Sampler(learner.family), fresh.policy, 0)
    returns = collect_trials(setup, tasks, 2, 30, fresh.state.params, 0).returns
    for k in (0, 1, 2, 5, 10, 20, 29):
        assert seen[0][f"return/step_{k}"] == pytest.approx(float(returns[:, k].mean()))
        assert f"eval/step_{k}" in seen[0]
    assert "return/step_3" not in seen[0] and "eval/step_3" not in seen[0]
    assert seen[0]["return/trial"] == pytest.approx(float(returns.sum(1).mean()))
    found = rl2.evaluate(
        Setup(learner.config, learner.sampler, learner.policy, 1), learner.state, tasks, 2, [None] * 29
    )
    assert found.score == pytest.approx(float(found.returns.sum(1).mean()))


def test_evaluation_counts_episodes_of_the_trial():
    learner, _ = trained_on_two_arms()
    found = learner.evaluate(6, steps=5, episodes=3, details=True)
    assert found.returns.shape == (6, 6) and found.step_sizes == (None,) * 5 and found.episodes == 3
    assert (found.returns[:, 1:] > 0.9).mean() > 0.9
    assert np.allclose(found.returns, [[r.returns[k].mean() for r in found.details.rollouts] for k in range(6)])
    assert learner.evaluate(2).returns.shape == (2, 4)  # as many as in training
    assert np.array_equal(found.returns, learner.evaluate(6, steps=5, episodes=3).returns)


def test_step_sizes_are_refused():
    learner = small()
    for call in (
        lambda: learner.evaluate(2, step_sizes=[0.1]),
        lambda: learner.adapt({"good": 0}, step_sizes=[0.1]),
        lambda: learner.learn(1, eval_step_sizes=[0.1]),
    ):
        with pytest.raises(ValueError, match=re.escape("rl2 has no inner step sizes, got [0.1]: leave them out")):
            call()
    with pytest.raises(ValueError, match="rl2 adapts through its memory"):
        rl2.evaluate(
            Setup(learner.config, learner.sampler, learner.policy, 0), learner.state, {"good": np.zeros(1)}, 1, [0.1]
        )


def test_every_setting_of_the_network_reaches_it():
    own = {"hidden": 7, "init_std": 0.5, "min_std": 0.1, "output_gain": 0.3, "last_obs": True, "head_hidden": 3,
           "input_gain": 2.0, "memory_steps": 9.0, "channels": (4,)}  # fmt: skip
    spaces = spaces_of(metarl.make("PointNavigationPixels-v0"))
    policy, plain = (rl2.Config(**x).policy(spaces) for x in (own, {}))
    assert {name: getattr(policy, name) for name in own} == own
    assert all(getattr(plain, name) != value for name, value in own.items())  # the control
    assert not policy.products and rl2.Config(last_obs=True, products=True, network="flat").policy(spaces).products
    with pytest.raises(ValueError, match="products=True needs last_obs=True"):
        rl2.Config(products=True)


@pytest.mark.parametrize("last_obs", [False, True])
def test_images_go_through_convolutions(tmp_path, last_obs):
    family = metarl.make("PointNavigationPixels-v0", horizon=3, size=9)
    learner = small(family, last_obs=last_obs, epochs=1).learn(1, eval_every=0, run_dir=tmp_path / "run")
    assert learner.policy.channels == (16, 16) and learner.state.optimizer.keys() >= {"mean/conv1"}
    before = learner.policy.init(torch.Generator().manual_seed(random.generator_seed(0, 0)))
    assert all(not torch.equal(learner.state.params[n], before[n]) for n in ("conv0", "conv_bias1", "w_in"))
    again = MetaLearner.load(tmp_path / "run", device="cpu")
    goals = {"goal": np.array([[0.3, -0.2]], np.float32)}
    assert np.array_equal(again.evaluate(tasks=goals, episodes=2, seed=1).returns,
                          learner.evaluate(tasks=goals, episodes=2, seed=1).returns)  # fmt: skip
    policy = learner.adapt({"goal": goals["goal"][0]})
    loaded = RecurrentPolicy.load(policy.save(tmp_path / "policy"))
    obs, _ = family.make({"goal": goals["goal"][0]}).reset(seed=3)
    found = [p.predict(obs, deterministic=True) for p in (policy, loaded)]
    assert np.allclose(found[0][0], found[1][0], atol=1e-6)
    assert small(family, network="flat").policy.channels == () and small(family, channels=[5]).policy.channels == (5,)
    with pytest.raises(ValueError, match="takes images"):
        small(network="cnn")


def test_an_iteration_on_every_device(device):
    learner, alone = (MetaLearner("rl2", TwoArms(), device=where, **SMALL) for where in (device, "cpu"))
    state, stats = rl2.iteration(Setup(learner.config, learner.sampler, learner.policy, 0), learner.state)
    _, expected = rl2.iteration(Setup(alone.config, alone.sampler, alone.policy, 0), alone.state)
    assert {value.device.type for value in (*state.params.values(), *state.optimizer.values())} == {device}
    assert stats["return/trial"] == expected["return/trial"]
    assert stats["outer/value_loss"] == pytest.approx(expected["outer/value_loss"], rel=1e-3)


def test_a_plain_environment_is_adapted_to():
    family = Drift()
    policy = small(family).adapt(family.make({"steps": 5, "push": np.zeros(2, np.float32)}), steps=1, episodes=2)
    assert policy.returns.shape == (2,) and policy.memory.hidden.any()


def test_spaces_come_from_the_family():
    assert small(Drift()).policy == GRUPolicy(spaces_of(Drift()), 6)
