"""A policy adapted by its memory: where it goes on, what it learns from rewards, what it takes, its file."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from probes import Drift, PointGoal, gru_params
from rl2_runs import small, trained_on_two_arms

from metarl import RecurrentPolicy
from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.checkpoint import CheckpointError
from metarl.policies.gru import Memory

STATS = {"count": torch.tensor(4.0, dtype=torch.float64), "mean": torch.tensor([0.1, -0.2], dtype=torch.float64),
         "m2": torch.tensor([1.0, 0.2], dtype=torch.float64)}  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"last_obs": True}, {"last_obs": True, "products": True, "normalize_obs": True}]
)
def test_an_adapted_policy_goes_on_where_the_trial_ended(options):
    """Trials of 3 and of 4 episodes begin alike: what the policy remembers after 3 makes the 4th's first step."""
    learner = small(PointGoal(), n_tasks=1, trials=1, minibatches=1, **options)
    learner.state = replace(learner.state, params=gru_params(learner.policy, dtype=torch.float32))
    if "normalize_obs" in options:
        learner.state = replace(learner.state, obs_stats=STATS)
    task = {"goal": np.array([0.3, -0.2], np.float32)}
    policy = learner.adapt(task, steps=2, episodes=1, seed=4)
    longer = learner.evaluate(tasks={"goal": task["goal"][None]}, steps=3, episodes=1, seed=4, details=True)
    fourth, trials = longer.details.rollouts[3], longer.details.trials
    assert isinstance(policy, RecurrentPolicy)
    assert policy.returns == pytest.approx(longer.returns[0, :3], rel=1e-5)
    T, state, start = PointGoal.horizon, None, True
    for t in range(T):
        mean, state = policy.predict(trials.raw_obs[0, 3 * T + t, 0].numpy(), state, start, deterministic=True)
        assert torch.allclose(torch.from_numpy(mean), (0.1 * fourth.dist[0][0, t, 0]).clamp(-0.1, 0.1), atol=1e-5)
        # What the trial did is put in the place of what was predicted.
        state = policy.observe((*state[:-1], fourth.act[0, t].numpy()), float(fourth.rew[0, t, 0]))
        start = False
    assert np.allclose(state[0][0], trials.memory.hidden[0, 0], atol=1e-4)


def test_an_adapted_policy_starts_from_what_the_first_of_its_trials_left():
    learner = small(Drift())
    task = {"steps": 5, "push": np.array([0.5, -0.5], np.float32)}
    one, three = (learner.adapt(task, episodes=n, seed=2).memory for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    tasks = {"steps": np.array([5]), "push": np.array([[0.5, -0.5]], np.float32)}
    left = learner.evaluate(tasks=tasks, episodes=3, seed=2, details=True).details.memory.hidden[0]
    assert torch.allclose(three.hidden, left[0], atol=1e-6)
    assert not any(torch.allclose(three.hidden, other, atol=1e-2) for other in left[1:])


def test_a_step_without_a_state_is_the_first_of_an_episode_and_one_with_a_state_is_not():
    policy = RecurrentPolicy(
        small(Drift()).policy, {n: p.float() for n, p in gru_params(small(Drift()).policy).items()}
    )
    obs = np.array([0.3, -0.7], np.float32)

    def hidden(state: Any, *start: Any) -> np.ndarray:
        return policy.predict(obs, state, *start, deterministic=True)[1][len(Memory._fields)]

    state = policy.observe(policy.predict(obs)[1], 1.0)
    for given, usual in ((None, True), (state, False)):
        assert np.array_equal(hidden(given), hidden(given, usual))
        assert not np.allclose(hidden(given), hidden(given, not usual), atol=1e-3)


def test_memory_is_frozen_until_the_reward_is_told():
    learner, _ = trained_on_two_arms()
    policy = learner.adapt({"good": 1}, episodes=1)
    first, state = policy.predict(np.ones(1, np.float32), deterministic=True)
    for _ in range(3):
        again, state = policy.predict(np.ones(1, np.float32), state, True, deterministic=True)
        assert again == first == 1 and np.array_equal(state[0][0], policy.memory.hidden.numpy())
    assert not np.array_equal(policy.observe(state, 1.0)[0], state[0])


def test_a_fresh_memory_learns_from_the_rewards_that_it_is_told():
    learner, _ = trained_on_two_arms()
    policy, obs = learner.adapt({"good": 0}, episodes=1, steps=0).fresh(), np.ones(1, np.float32)
    state, good, right = None, 1, []
    for _ in range(4):
        action, state = policy.predict(obs, state, True, deterministic=True)
        right.append(int(action) == good)
        state = policy.observe(state, float(action == good))
    assert all(right[1:])


def test_predict_takes_batches_and_refuses_what_does_not_fit():
    policy = small(Drift()).adapt(Drift().make({"steps": 4, "push": np.zeros(2, np.float32)}))
    action, state = policy.predict(np.zeros((5, 2), np.float32))
    assert action.shape == (5, 2) and state[0].shape == (5, 6)
    assert policy.predict(np.zeros(2, np.float32))[0].shape == (2,)
    assert policy.observe(state, np.arange(5.0))[2].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(
        ValueError, match=re.escape("observations have the shape (2,) or are a batch of such, got (3,)")
    ):
        policy.predict(np.zeros(3))
    with pytest.raises(ValueError, match="the state belongs to 5 observations, got 2"):
        policy.predict(np.zeros((2, 2)), state)


@pytest.mark.parametrize("options", [{}, {"last_obs": True}, {"last_obs": True, "products": True}, {"head_hidden": 5}])
def test_an_adapted_policy_is_saved_with_its_memory(tmp_path, options):
    learner = small(Drift(), normalize_obs=True, **options).learn(1, eval_every=0)
    policy = learner.adapt({"steps": 5, "push": np.zeros(2, np.float32)})
    again = RecurrentPolicy.load(policy.save(tmp_path / "policy"))
    obs = np.array([0.3, -0.7], np.float32)
    for a, b in zip(policy.predict(obs, deterministic=True)[1], again.predict(obs, deterministic=True)[1], strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-6)
    assert again.returns == pytest.approx(policy.returns) and again.memory.hidden.any()
    assert not np.array_equal(again.fresh().predict(obs)[1][4], again.predict(obs)[1][4])
    # The memory is gone, the statistics of the observations are not.
    fresh = RecurrentPolicy(learner.policy, learner.state.params, obs_stats=learner.state.obs_stats)
    plain = RecurrentPolicy(learner.policy, learner.state.params)
    hidden = [p.predict(obs, deterministic=True)[1][4] for p in (policy.fresh(), fresh, plain)]
    assert np.array_equal(hidden[0], hidden[1]) and not np.allclose(hidden[0], hidden[2], atol=1e-4)
    with pytest.raises(CheckpointError, match="holds a recurrent policy, not a policy: use RecurrentPolicy"):
        AdaptedPolicy.load(tmp_path / "policy")
    learner.save(tmp_path / "learner.safetensors")
    with pytest.raises(CheckpointError, match="holds a learner, not a recurrent policy"):
        RecurrentPolicy.load(tmp_path / "learner")
