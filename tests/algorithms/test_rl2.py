"""RL²: its outer step by hand, runs that go on bit for bit, and what only a memory across episodes earns."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import DOCS, generalised
from probes import Drift, PointGoal, TwoArms, Wins, gru_params
from tiny_runs import rows_without_time, same_params
from torch import Tensor

import metarl
from metarl import MetaLearner, RecurrentPolicy, cli, random
from metarl.adapted.gradient_policy import AdaptedPolicy
from metarl.algorithms import rl2
from metarl.algorithms.rl2 import Config
from metarl.checkpoint import CheckpointError
from metarl.formulas import distributions, losses
from metarl.policies.gru import GRUPolicy, Memory
from metarl.policies.spaces import spaces_of
from metarl.recurrent import sequences as sequences_module
from metarl.recurrent.sequences import sequences
from metarl.recurrent.trials import collect_trials
from metarl.report import figures
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup
from metarl.training.train import RunDirectory

SMALL: dict[str, Any] = {"n_tasks": 4, "trials": 2, "trial_episodes": 3, "hidden": 6, "epochs": 2, "minibatches": 3}


def small(family: Any = None, seed: int = 0, **config: Any) -> MetaLearner:
    """A learner whose iterations take hundredths of a second."""
    return MetaLearner("rl2", family or TwoArms(), seed=seed, device="cpu", **(SMALL | config))


# ---------------------------------------------------------------------------------------------------------------------
# What only a memory across episodes earns


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


@cache
def trained_on_two_arms(kind: type[GRUPolicy] = GRUPolicy) -> tuple[MetaLearner, np.ndarray]:
    """A trained learner and its returns on test tasks, [4 episodes]."""
    learner = small(n_tasks=64, trials=1, trial_episodes=4, hidden=16, outer_lr=1e-2, epochs=5, minibatches=2)
    learner.policy = kind(learner.policy.spaces, 16)
    learner.learn(25, eval_every=0)
    return learner, learner.evaluate(100, episodes=4).mean


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


# ---------------------------------------------------------------------------------------------------------------------
# Advantages over a trial


def test_what_later_episodes_earn_counts_discounted():
    # Two episodes of two steps each, no value function, gamma 1/2: an episode's end cuts nothing, the trial's end does.
    rew, zero, one = torch.tensor([[1.0], [2.0], [4.0], [8.0]]), torch.zeros(4, 1), torch.ones(4, 1)
    found = rl2.trial_advantages(Config(gamma=0.5, gae_lambda=1.0), rew, zero, one)
    assert found[:, 0].tolist() == [1 + 1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8]


def test_advantages_with_values_by_hand():
    # delta_t = r_t + gamma V_{t+1} - V_t with V = 0 after the trial; A_t = delta_t + gamma lambda A_{t+1}.
    rew, values = torch.tensor([[1.0], [0.0], [2.0]]), torch.tensor([[3.0], [-1.0], [0.5]])
    found = rl2.trial_advantages(Config(gamma=0.5, gae_lambda=0.4), rew, values, torch.ones(3, 1))
    deltas = [1 - 0.5 - 3, 0 + 0.25 + 1, 2 - 0.5]
    by_hand = [deltas[0] + 0.2 * (deltas[1] + 0.2 * deltas[2]), deltas[1] + 0.2 * deltas[2], deltas[2]]
    assert found[:, 0].tolist() == pytest.approx(by_hand)


def test_the_values_of_steps_that_do_not_count_do_not_count():
    rew, values = torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0], [100.0]])
    found = rl2.trial_advantages(Config(gamma=0.5, gae_lambda=0.4), rew, values, torch.tensor([[1.0], [0.0]]))
    assert found[:, 0].tolist() == [-2.0, 0.0]


def test_an_early_end_costs_no_discount():
    # Drift's episodes end early, and lie padded in the rollout. The discount counts steps taken, not steps of padding.
    learner = small(Drift(), trial_episodes=3)
    tasks = learner.sampler.tasks(4, 0, 0)
    trials = collect_trials(learner.sampler, tasks, 2, 3, learner.policy, learner.state.params, 0, 0)
    data, config = sequences(trials), Config(gamma=0.9, gae_lambda=1.0)
    found = rl2.trial_advantages(config, data.rew, torch.zeros_like(data.rew), data.mask)
    for k in range(4):
        for e in range(2):
            earned = trials.rew[k, :, e][trials.mask[k, :, e] > 0].tolist()
            assert float(found[0, 2 * k + e]) == pytest.approx(sum(0.9**i * r for i, r in enumerate(earned)), rel=1e-4)
    assert data.mask.shape[0] < 3 * Drift.horizon  # the control: there was padding


def batch_of(learner: MetaLearner, dtype: torch.dtype = torch.float32) -> rl2.Batch:
    """One iteration's batch, in units that are not 0 and 1."""
    config, state = learner.config, learner.state
    tasks = learner.sampler.tasks(config.n_tasks, 0, 0)
    trials = collect_trials(
        learner.sampler, tasks, config.trials, config.trial_episodes, learner.policy, state.params, 0, 0
    )
    data = sequences(trials)
    batch = rl2.make_batch(config, data, torch.tensor([2.0, 3.0]), torch.tensor([-1.0, 0.5]))
    if dtype == torch.float32:
        return batch
    wide = {n: v.to(dtype) if v.is_floating_point() else v for n, v in vars(data).items()}
    return rl2.Batch(type(data)(**wide), batch.advantage.to(dtype), batch.target.to(dtype))


def test_a_batch_is_normalised_over_its_valid_steps():
    batch = batch_of(small(Drift()))
    on = batch.data.mask > 0
    assert (~on).any() and not batch.advantage[~on].any() and not batch.target[~on].any()
    assert float(batch.advantage[on].mean()) == pytest.approx(0, abs=1e-5)
    assert float(batch.advantage[on].std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_targets_are_what_the_values_should_have_been():
    learner = small(Drift(), gamma=0.9, gae_lambda=0.7)
    batch = batch_of(learner)
    values = (2 + 3 * batch.data.value) * batch.data.mask
    advantage = rl2.trial_advantages(learner.config, batch.data.rew, values, batch.data.mask)
    expected = (values + advantage + 1) / 0.5 * batch.data.mask
    assert torch.allclose(batch.target, expected, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# The loss and its gradient


def test_squared_error_by_hand():
    value, target = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[[3.0], [2.5], [0.0]]])
    found = losses.squared_error(value, target, torch.tensor([[[1.0], [1.0], [0.0]]]))
    assert found.tolist() == pytest.approx([0.5 * (4 + 0.25) / 2])


def test_the_loss_by_hand():
    learner = small(Drift(), clip=0.1, value_coef=0.7, entropy_coef=0.3)
    policy, batch, params = learner.policy, batch_of(learner, torch.float64), gru_params(learner.policy)
    loss, parts = rl2.ppo_loss(learner.config, policy, params, batch)
    total = {name: 0.0 for name in ("actor", "critic", "entropy", "clipped")}
    L, B = batch.advantage.shape
    for b in range(B):
        hidden = torch.zeros(6, dtype=torch.float64)
        for t in range(int(batch.data.mask[:, b].sum())):
            hidden = policy.step(params, batch.data.x[t, b], hidden)
            dist, value = policy.heads(params, hidden)
            ratio = float((distributions.log_prob(dist, batch.data.act[t, b]) - batch.data.log_prob[t, b]).exp())
            a = float(batch.advantage[t, b])
            total["actor"] -= min(ratio * a, min(max(ratio, 0.9), 1.1) * a)
            total["critic"] += 0.5 * float(value - batch.target[t, b]) ** 2
            total["entropy"] += float(distributions.entropy(dist))
            total["clipped"] += abs(ratio - 1) > 0.1
    n = float(batch.data.mask.sum())
    assert n < L * B
    by_hand = total["actor"] + 0.7 * total["critic"] - 0.3 * total["entropy"]
    assert float(loss) == pytest.approx(by_hand / n, rel=1e-9)
    assert float(parts["clip_fraction"]) == pytest.approx(total["clipped"] / n)
    assert 0.1 < total["clipped"] / n < 1


def test_gradient_against_finite_differences():
    learner = small(Drift())
    policy, batch, params = learner.policy, batch_of(learner, torch.float64), gru_params(learner.policy)
    grads, _ = rl2.gradient(learner.config, policy, params, batch)
    g = torch.Generator().manual_seed(0)
    for name, value in params.items():
        v = torch.randn(value.shape, generator=g, dtype=torch.float64)
        up, down = (
            rl2.ppo_loss(learner.config, policy, params | {name: value + h * v}, batch)[0] for h in (1e-6, -1e-6)
        )
        assert float(up - down) / 2e-6 == pytest.approx(float((grads[name] * v).sum()), rel=1e-5, abs=1e-8), name


def test_chunks_of_trials_add_up(monkeypatch):
    learner = small(Drift())
    batch, params = batch_of(learner, torch.float64), gru_params(learner.policy)
    whole = rl2.gradient(learner.config, learner.policy, params, batch)
    assert len(sequences_module.trial_chunks(*batch.advantage.shape, torch.device("cpu"))) == 1
    monkeypatch.setattr(sequences_module, "trial_chunks", lambda L, B, _: [slice(0, 1), slice(1, 5), slice(5, B)])
    parts = rl2.gradient(learner.config, learner.policy, params, batch)
    for a, b in zip(whole, parts, strict=True):
        assert all(torch.allclose(a[name], b[name], rtol=1e-9) for name in a)


def test_chunks_are_wide_and_have_every_trial_once():
    cpu = torch.device("cpu")
    assert sequences_module.trial_chunks(1000, 300, cpu) == [slice(0, 128), slice(128, 256), slice(256, 300)]
    assert sequences_module.trial_chunks(10, 1500, cpu) == [slice(0, 1000), slice(1000, 1500)]
    assert sequences_module.trial_chunks(1000, 300, torch.device("cuda")) == [slice(0, 300)]


def test_before_the_first_step_the_ratio_is_one():
    learner = small(Drift())
    _, parts = rl2.ppo_loss(learner.config, learner.policy, learner.state.params, batch_of(learner))
    assert abs(float(parts["kl"])) < 1e-8 and float(parts["clip_fraction"]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_an_iteration_is_torchs_adam_on_clipped_gradients(seed, monkeypatch):
    # With gradients of a norm of 1e-4, which is so small that Adam's eps counts. Every step starts from where the
    # iteration took it, so that what rounding makes of the steps before does not matter.
    learner = small(Drift(), seed, max_grad_norm=1e-4, outer_lr=0.1)
    config, policy, state = learner.config, learner.policy, learner.state
    tasks = learner.sampler.tasks(config.n_tasks, seed, 0)
    data = sequences(collect_trials(
        learner.sampler, tasks, config.trials, config.trial_episodes, policy, state.params, seed, 0
    ))  # fmt: skip
    batch = rl2.make_batch(config, data, *[rl2.value_units(config, state, data)] * 2)
    starts: list[dict[str, Tensor]] = []
    step = rl2.adam_step
    monkeypatch.setattr(rl2, "adam_step", lambda params, *rest: starts.append(params) or step(params, *rest))
    found, _ = rl2.iteration(Setup(config, learner.sampler, policy, seed), state)
    parts = [
        part for epoch in range(config.epochs)
        for part in rl2.minibatches(config, data.mask.shape[1], seed, 0, epoch, torch.device("cpu"))
    ]  # fmt: skip
    assert len(parts) == len(starts) == 6
    apart = {}
    for eps in (1e-5, 1e-8):
        params = {name: value.clone().requires_grad_() for name, value in starts[0].items()}
        optimizer = torch.optim.Adam(params.values(), lr=0.1, eps=eps)
        apart[eps] = 0.0
        for part, start, end in zip(parts, starts, [*starts[1:], found.params], strict=True):
            for name, value in params.items():
                value.data.copy_(start[name])
            optimizer.zero_grad()
            rl2.ppo_loss(config, policy, params, batch[part])[0].backward()
            torch.nn.utils.clip_grad_norm_(params.values(), 1e-4)
            optimizer.step()
            steps = [float((end[name] - value).detach().abs().max()) for name, value in params.items()]
            apart[eps] = max(apart[eps], *steps)
    # `optimizers.adam` takes the root of the second moment plus (eps / 10)^2, which changes a step of up to 0.1 by
    # less than 0.4% of that.
    assert apart[1e-5] < 5e-4
    assert apart[1e-8] > 2e-2


# ---------------------------------------------------------------------------------------------------------------------
# Units of the value head


def test_new_units_leave_the_values_as_they_are():
    policy = small(Drift()).policy
    params, hidden = gru_params(policy), torch.randn(50, 6, dtype=torch.float64)
    old, new = torch.tensor([[3.0, 2.0], [-10.0, 0.25]], dtype=torch.float64)
    before = old[0] + old[1] * policy.heads(params, hidden)[1]
    changed = rl2.in_units(params, old, new)
    assert torch.allclose(new[0] + new[1] * policy.heads(changed, hidden)[1], before)
    assert not torch.allclose(policy.heads(changed, hidden)[1], policy.heads(params, hidden)[1])


def test_units_are_mean_and_deviation_of_the_returns():
    learner = small(gamma=0.5, n_tasks=1, trials=2, trial_episodes=2, minibatches=1)
    data = batch_of(learner).data
    data = replace(data, rew=torch.tensor([[1.0, 5.0], [2.0, 7.0]]), mask=torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    data = replace(data, rew=data.rew * data.mask)
    returns = np.array([2.0, 2.0, 5.0])  # 1 + 2/2 and 2 of the first trial, 5 of the second
    first = rl2.value_units(learner.config, learner.state, data)
    assert first.tolist() == pytest.approx([returns.mean(), returns.std()])
    later = replace(learner.state, value_units=torch.tensor([1.0, 0.5], dtype=torch.float64))
    running = rl2.value_units(learner.config, later, data)
    assert running.tolist() == pytest.approx([0.9 + 0.1 * returns.mean(), 0.45 + 0.1 * returns.std()])


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_scale_of_rewards_does_not_change_the_updates(scale, monkeypatch):
    # Rewards are inputs too, so only what is earned is scaled here.
    monkeypatch.setattr(rl2, "sequences", lambda t: (lambda d: replace(d, rew=d.rew * scale))(sequences(t)))
    learner = small(Drift()).learn(3, eval_every=0)
    plain = small(Drift())
    monkeypatch.undo()
    plain.learn(3, eval_every=0)
    for name, value in plain.state.params.items():
        assert torch.allclose(value, learner.state.params[name], atol=1e-3), name


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
    with pytest.raises(ValueError, match="recurrent policy of its own and cannot train a Linear"):
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
    returns = collect_trials(Sampler(learner.family), tasks, 2, 30, fresh.policy, fresh.state.params, 0, 0).returns
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
    with pytest.raises(ValueError, match="rl2 adapts by remembering"):
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


def test_it_is_not_for_stable_baselines3_nor_to_start_from():
    sb3 = pytest.importorskip("metarl.sb3")
    learner = small()
    policy = learner.adapt({"good": 0})
    for one in (learner, policy):
        with pytest.raises(ValueError, match="a recurrent policy cannot be converted"):
            sb3.to_sb3(one)
    with pytest.raises(ValueError, match="a learner cannot start from a RecurrentPolicy"):
        MetaLearner("rl2", TwoArms(), policy=policy)


def test_stable_baselines3_evaluates_it():
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    learner, _ = trained_on_two_arms()
    policy: Any = learner.adapt({"good": 1}, episodes=1)
    mean, _ = evaluate_policy(policy, Monitor(learner.family.make({"good": np.int64(1)})), 20)
    assert mean == 1.0


def test_callbacks_of_stable_baselines3_can_ask_the_meta_policy():
    from stable_baselines3.common.callbacks import BaseCallback

    class Asks(BaseCallback):
        actions = None

        def _on_step(self) -> bool:
            self.actions = self.model.predict(np.zeros((3, 2), np.float32), deterministic=True)[0]
            return True

    asks, learner = Asks(), small(Drift())
    learner.learn(1, eval_every=0, callback=asks)
    fresh = RecurrentPolicy(learner.policy, learner.state.params)
    assert np.array_equal(asks.actions, fresh.predict(np.zeros((3, 2), np.float32), deterministic=True)[0])


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--n-tasks", "4", "--trial-episodes", "3", "--hidden", "4", "--iterations", "2", "--no-progress"]
    assert cli.run(["train", "rl2", "BernoulliBandit-v0", *size, "--eval-tasks", "2", "--out", "run"]) == 0
    assert "4 tasks, 1 trials of 3 episodes" in capsys.readouterr().out
    assert cli.run(["evaluate", "run", "--tasks", "5", "--no-figures"]) == 0
    assert "return of a whole trial of 3 episodes: " in capsys.readouterr().out
    assert len((tmp_path / "run/evaluation/adaptation.csv").read_text().splitlines()) == 1 + 3
    with pytest.raises(ValueError, match="rl2 has no inner step sizes"):
        cli.run(["evaluate", "run", "--tasks", "5", "--step-sizes", "0.1"])
    assert cli.run(["adapt", "run", "--task", "p=0.1,0.2,0.3,0.4,0.9", "--steps", "1", "--out", "policy"]) == 0
    out = capsys.readouterr().out
    assert "return after 1 episode:" in out and "metarl.RecurrentPolicy.load" in out
    assert isinstance(RecurrentPolicy.load(Path("policy")), RecurrentPolicy)


def test_films_show_it_before_its_first_episode(tmp_path, monkeypatch):
    from metarl.report import render

    learner, seen = small(metarl.make("PointNavigation-v0", horizon=3)), {}
    learner.save(tmp_path / "learner.safetensors")
    monkeypatch.setattr(render, "film", lambda family, task, policies, path, **_: seen.update(policies) or path)
    assert cli.run(["render", str(tmp_path / "learner.safetensors"), "--task", "goal=0.1,0.2"]) == 0
    before, after = seen.values()
    assert list(seen) == ["before", "after 3 episodes"]
    assert not before.memory.hidden.any() and after.memory.hidden.any()
    env = learner.family.make({"goal": np.full(2, 0.4, np.float32)})
    monkeypatch.setattr(render, "_image", lambda env: np.zeros((2, 2, 3), np.uint8))
    observe, told = RecurrentPolicy.observe, []
    monkeypatch.setattr(RecurrentPolicy, "observe", lambda self, *x: (told.append(x[1]), observe(self, *x))[1])
    _, returns = render._play(env, after, 3, 0, True)
    assert np.allclose(np.cumsum(told), returns[1:]) and len(told) == 3


def test_the_documented_example_runs():
    text = (DOCS / "algorithms" / "rl2.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert code.count("learner.learn(300") == code.count("evaluate(1000)") == 1
    names: dict[str, Any] = {}
    code = code.replace("learner.learn(300", "learner.learn(1").replace("evaluate(1000)", "evaluate(10)")
    exec(compile(code.replace("n_tasks=1000", "n_tasks=10"), "rl2.md", "exec"), names)
    assert names["learner"].state.iteration == 1 and len(names["policy"].returns) == 10
    assert not np.array_equal(names["state"][0][0], names["policy"].memory.hidden)


def test_an_iteration_on_every_device(device):
    learner, alone = (MetaLearner("rl2", TwoArms(), device=where, **SMALL) for where in (device, "cpu"))
    state, stats = rl2.iteration(Setup(learner.config, learner.sampler, learner.policy, 0), learner.state)
    _, expected = rl2.iteration(Setup(alone.config, alone.sampler, alone.policy, 0), alone.state)
    assert {value.device.type for value in (*state.params.values(), *state.optimizer.values())} == {device}
    assert stats["return/trial"] == expected["return/trial"]
    assert stats["outer/value_loss"] == pytest.approx(expected["outer/value_loss"], rel=1e-3)


def test_pictures_count_episodes():
    pytest.importorskip("matplotlib")
    learner = small(metarl.make("BernoulliBandit-v0"), trial_episodes=30)
    found = learner.evaluate(3, details=True)
    figure = figures.evaluation_figure(
        learner.family, found, [{"iteration": 1, "return/step_0": 0.5, "return/step_5": 1}]
    )
    training, curve = figure.axes
    assert [text.get_text() for text in training.get_legend().get_texts()] == ["before adaptation", "after 5 episodes"]
    assert curve.get_xlabel() == "episodes" and len(curve.get_xticks()) < 12
    assert curve.lines[0].get_ydata().tolist() == pytest.approx(found.mean.tolist())


def test_a_plain_environment_is_adapted_to():
    family = Drift()
    policy = small(family).adapt(family.make({"steps": 5, "push": np.zeros(2, np.float32)}), steps=1, episodes=2)
    assert policy.returns.shape == (2,) and policy.memory.hidden.any()


def test_spaces_come_from_the_family():
    assert small(Drift()).policy == GRUPolicy(spaces_of(Drift()), 6)
