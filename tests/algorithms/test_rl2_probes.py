"""RL² on families where only a memory across episodes earns."""

import pytest
import torch
from rl2_runs import small, trained_on_two_arms
from torch import Tensor

import metarl
from metarl.policies.gru import GRUPolicy, Memory


class Forgetful(GRUPolicy):
    """The same policy, except that an episode's start takes away what was remembered."""

    def inputs(self, obs: Tensor, memory: Memory, first: Tensor | float) -> Tensor:
        kept = 1 - torch.as_tensor(first, dtype=obs.dtype).expand(obs.shape[:-1])
        less = memory._replace(action=memory.action * kept[..., None], reward=memory.reward * kept)
        return super().inputs(obs, less, first)

    def step(self, params: dict[str, Tensor], x: Tensor, hidden: Tensor) -> Tensor:
        return super().step(params, x, hidden * (1 - x[..., -1:]))

    def unroll(self, params: dict[str, Tensor], x: Tensor, hidden: Tensor) -> Tensor:
        out = []
        for now in x:
            hidden = self.step(params, now, hidden)
            out.append(hidden)
        return torch.stack(out)


def test_two_arms_are_told_apart_after_one_pull():
    _, mean = trained_on_two_arms()
    assert abs(mean[0] - 0.5) < 0.1  # the first pull is a guess
    assert (mean[1:] > 0.95).all()


def test_without_memory_from_episode_to_episode_it_stays_a_guess():
    # The negative control: the same training, with a policy that forgets at the start of every episode.
    _, mean = trained_on_two_arms(Forgetful)
    assert (abs(mean - 0.5) < 0.1).all()


def test_memory_within_a_long_episode_serves_as_well():
    family = metarl.make("BernoulliBandit-v0", arms=2, horizon=6)
    learner = small(family, n_tasks=100, trials=1, trial_episodes=1, hidden=16, outer_lr=1e-2, epochs=4, minibatches=2)
    learner.learn(30, eval_every=0)
    mean = learner.evaluate(2000).mean
    # Six blind pulls earn 3; the best that can be done, by dynamic programming, is 3.508.
    assert mean.shape == (1,) and 3.25 < mean[0] < 3.6


@pytest.mark.slow
def test_bernoulli_bandit_is_nearly_solved():
    # The Bayes-optimal value of 5 arms and 10 pulls is 6.660 (dynamic programming, experiments/rl2).
    family = metarl.make("BernoulliBandit-v0", arms=5)
    learner = small(
        family, n_tasks=1000, trials=1, trial_episodes=10, hidden=64, outer_lr=3e-3, epochs=5, minibatches=4
    )
    learner.learn(150, eval_every=0)
    assert learner.evaluate(20_000).returns.sum(1).mean() > 6.5
