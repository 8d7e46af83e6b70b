"""RL²'s advantages, loss, gradient and outer step by hand, and the units of its value head."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from probes import Drift, gru_params
from rl2_runs import small
from torch import Tensor

from metarl import MetaLearner
from metarl.algorithms import rl2
from metarl.algorithms.rl2 import Config
from metarl.formulas import distributions, losses
from metarl.recurrent import sequences as sequences_module
from metarl.recurrent.sequences import sequences
from metarl.recurrent.trials import collect_trials
from metarl.rollout.setup import Setup

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
    trials = collect_trials(Setup(None, learner.sampler, learner.policy, 0), tasks, 2, 3, learner.state.params, 0)
    data, config = sequences(trials), Config(gamma=0.9, gae_lambda=1.0)
    found = rl2.trial_advantages(config, data.rew, torch.zeros_like(data.rew), data.mask)
    for k in range(4):
        for e in range(2):
            earned = trials.rew[k, :, e][trials.mask[k, :, e] > 0].tolist()
            assert float(found[0, 2 * k + e]) == pytest.approx(sum(0.9**i * r for i, r in enumerate(earned)), rel=1e-4)
    assert data.mask.shape[0] < 3 * Drift.horizon  # the control: there was padding


def batch_of(learner: MetaLearner, dtype: torch.dtype = torch.float32) -> rl2.TrialBatch:
    """One iteration's batch, in units that are not 0 and 1."""
    config, state = learner.config, learner.state
    tasks = learner.sampler.tasks(config.n_tasks, 0, 0)
    trials = collect_trials(
        Setup(None, learner.sampler, learner.policy, 0), tasks, config.trials, config.trial_episodes, state.params, 0
    )
    data = sequences(trials)
    batch = rl2.make_batch(config, data, torch.tensor([2.0, 3.0]), torch.tensor([-1.0, 0.5]))
    if dtype == torch.float32:
        return batch
    wide = {n: v.to(dtype) if v.is_floating_point() else v for n, v in vars(data).items()}
    return rl2.TrialBatch(type(data)(**wide), batch.advantage.to(dtype), batch.target.to(dtype))


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
    trials = collect_trials(
        Setup(None, learner.sampler, policy, seed), tasks, config.trials, config.trial_episodes, state.params, 0
    )
    data = sequences(trials)
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
