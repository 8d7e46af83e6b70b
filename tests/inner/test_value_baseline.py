"""The value network as baseline, the mean over time and none at all: by hand, against torch's Adam, and in training."""

import math
from dataclasses import replace

import pytest
import torch
from gymnasium.spaces import Box
from probes import Drift, PointGoal, ends, setup
from torch import Tensor

import metarl
from metarl.algorithms import maml_trpo, reptile
from metarl.formulas.distributions import Categorical
from metarl.formulas.losses import masked_mean
from metarl.formulas.returns import discounted_returns
from metarl.inner import value_baseline
from metarl.inner.advantages import FITS, estimate, fitted_values, over, usual_returns
from metarl.inner.baseline import inputs_of, num_inputs, time_baseline
from metarl.inner.loss import Batch, LossInput
from metarl.params import Params
from metarl.policies.spaces import Image, Spaces, spaces_of
from metarl.rollout.rollout import Rollout
from metarl.rollout.setup import Setup

SPACES = spaces_of(PointGoal())
GAMMA = 0.9


def rollout(K: int = 3, T: int = 6, E: int = 40, seed: int = 0, factor: float = 1.0, offset: float = 0.0) -> Rollout:
    """Rewards that the observation explains, and a little noise; episodes that end at different times."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, T + 1, (K, 1, E), generator=g) if not offset else torch.full((K, 1, E), T)
    mask = (torch.arange(T)[None, :, None] < lengths).float()
    obs = torch.randn(K, T, E, 2, generator=g)
    noise = torch.randn(K, T, E, generator=g)
    rew = (factor * (obs[..., 0] - 2 * obs[..., 1].abs() + 0.1 * noise) + offset) * mask
    blank = torch.zeros(K, T, E)
    return Rollout(obs, blank.long(), rew, mask, blank, Categorical(torch.zeros(K, T, E, 2)), **ends(obs, mask))


def network(stages: int = 1, hidden: tuple[int, ...] = (16,), seed: int = 0, spaces: Spaces = SPACES) -> Params:
    return value_baseline.start(spaces, stages, hidden, torch.Generator().manual_seed(seed))


def explained(values: Tensor, r: Rollout, gamma: float) -> float:
    """The share of the variance of returns, around what the task usually earns from that step on."""
    mask = r.mask.double()
    y = discounted_returns(r.rew.double(), gamma) - usual_returns(r, gamma)
    left = (y - (values - usual_returns(r, gamma))) * mask
    mean = (y * mask).sum() / mask.sum()
    return 1 - float((left**2).sum() / (((y - mean) * mask) ** 2).sum())


# ---------------------------------------------------------------------------------------------------------------------
# The network


def test_before_any_data_a_value_is_what_the_task_usually_earns():
    r = rollout()
    assert torch.equal(value_baseline.values(network(), r, GAMMA, 0), usual_returns(r, GAMMA))


def test_it_explains_returns_of_episodes_that_it_was_not_fitted_to():
    params = network(hidden=(32, 32))
    for i in range(20):
        params = value_baseline.fitted(params, [[rollout(seed=i)]], 0.0, 1e-2, 20, i)
    fresh = rollout(seed=1000)
    assert explained(value_baseline.values(params, fresh, 0.0, 0), fresh, 0.0) > 0.9
    assert explained(value_baseline.values(network(), fresh, 0.0, 0), fresh, 0.0) < 0.05


def test_fitting_is_torchs_adam_on_the_squared_error_of_standardised_returns():
    r, params = rollout(T=3, E=5), network(hidden=(4,), seed=3)
    params |= {"w1": torch.randn(1, 4, 1, generator=torch.Generator().manual_seed(1))}
    got = value_baseline.fitted(params, [[r]], GAMMA, 0.02, 7, 0)

    valid = r.mask.flatten() > 0
    x = inputs_of(r).flatten(0, 1)[valid].double()
    y = (discounted_returns(r.rew.double(), GAMMA) - usual_returns(r, GAMMA)).flatten()[valid]
    x = (x - x.mean(0)) / x.std(0, correction=0)
    mean, std = y.mean(), y.std(correction=0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    with torch.no_grad():  # in the units of this iteration's returns, the values as they were: 0 + 1 * output
        net[0].weight.copy_(params["w0"][0].T)
        net[0].bias.zero_()
        net[2].weight.copy_(params["w1"][0].T / std)
        net[2].bias.fill_(-mean / std)
    adam = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(7):
        adam.zero_grad()
        loss = 0.5 * ((net(x)[:, 0] - (y - mean) / std) ** 2).mean()
        loss.backward()
        adam.step()
    want = {"w0": net[0].weight.T, "b0": net[0].bias, "w1": net[2].weight.T, "b1": net[2].bias}
    for name, value in want.items():
        torch.testing.assert_close(got[name][0].double(), value.detach(), atol=2e-4, rtol=1e-3)
    assert float(got["shift"]) == pytest.approx(float(mean)) and float(got["unit"]) == pytest.approx(float(std))


def test_other_units_leave_the_values_as_they_were():
    own = {name: value[0] for name, value in network(hidden=(4,), seed=2).items()}
    own |= {"w1": torch.randn(4, 1), "b1": torch.tensor([0.3]), "shift": torch.tensor(2.0).double(),
            "unit": torch.tensor(3.0).double()}  # fmt: skip
    y = 50 + 7 * torch.randn(100).double()
    new, x = value_baseline._rescaled(own, y), torch.randn(9, 3)
    before, after = (
        one["shift"] + one["unit"] * value_baseline._forward(value_baseline._network(one), x) for one in (own, new)
    )
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-5)
    assert float(new["unit"]) == pytest.approx(float(y.std(correction=0)))


def test_returns_that_are_all_the_same_leave_the_unit_as_it_was():
    r = rollout()
    flat = replace(r, rew=torch.zeros_like(r.rew))
    got = value_baseline.fitted(network(), [[flat]], GAMMA, 1e-2, 3, 0)
    assert all(value.isfinite().all() for value in got.values())
    assert float(got["unit"]) == 1.0


def test_every_stage_has_a_network_of_its_own_and_later_ones_take_the_last():
    one, other = rollout(seed=1), rollout(seed=2)
    params = network(stages=2)
    a = value_baseline.fitted(params, [[one], [one]], GAMMA, 1e-2, 5, 0)
    b = value_baseline.fitted(params, [[one], [other]], GAMMA, 1e-2, 5, 0)
    first, second = (
        [torch.equal(value_baseline.values(x, one, GAMMA, s), value_baseline.values(y, one, GAMMA, s)) for s in (0, 1)]
        for x, y in ((a, a), (a, b))
    )
    assert first == [True, True] and second == [True, False]
    assert torch.equal(value_baseline.values(b, one, GAMMA, 1), value_baseline.values(b, one, GAMMA, 5))


def test_minibatches_follow_from_the_iteration_alone(monkeypatch):
    monkeypatch.setattr(value_baseline, "MINIBATCH", 8)
    runs = [value_baseline.fitted(network(), [[rollout()]], GAMMA, 1e-2, 5, i)["w0"] for i in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_every_step_comes_into_one_minibatch_before_any_does_again(monkeypatch):
    monkeypatch.setattr(value_baseline, "MINIBATCH", 50)
    r = rollout()
    count, seen = int(r.mask.sum()), []
    forward = value_baseline._forward
    monkeypatch.setattr(value_baseline, "_forward", lambda net, x: (seen.append(x), forward(net, x))[1])
    value_baseline.fitted(network(), [[r]], GAMMA, 1e-2, count // 50, 0)
    rows = torch.cat(seen)
    assert len(rows) == count // 50 * 50 == len(torch.unique(rows, dim=0))


def test_steps_after_an_end_are_no_part_of_the_fit():
    r = rollout()
    other = replace(r, obs=torch.where(r.mask[..., None] > 0, r.obs, 1e6))
    got, want = (value_baseline.fitted(network(), [[x]], GAMMA, 1e-2, 5, 0) for x in (other, r))
    assert all(torch.equal(value, want[name]) for name, value in got.items())


@pytest.mark.parametrize("factor", [1e-9, 1e15])
def test_values_come_in_the_unit_of_the_rewards(factor):
    def after(unit: float) -> Tensor:
        params = network()
        for i in range(2):
            params = value_baseline.fitted(params, [[rollout(factor=unit)]], GAMMA, 1e-2, 10, i)
        return value_baseline.values(params, rollout(factor=unit), GAMMA, 0)

    torch.testing.assert_close(after(factor) / factor, after(1.0), atol=1e-3, rtol=1e-3)


def test_a_number_added_to_all_rewards_leaves_the_advantages_as_they_are():
    def after(offset: float) -> Tensor:
        r = rollout(offset=offset)
        params = value_baseline.fitted(network(), [[r]], GAMMA, 1e-2, 10, 0)
        return over(r, value_baseline.values(params, r, GAMMA, 0), GAMMA, 1.0).advantage

    torch.testing.assert_close(after(1e4), after(1e-9), atol=0.05, rtol=0.01)


@pytest.mark.parametrize("observation", [Box(-1, 1, (3,)), Box(-1, 1, (5000,)), Box(0, 255, (12, 16, 3), "uint8")])
def test_its_inputs_are_observation_and_time_whatever_is_observed(observation):
    spaces = Spaces(observation, Box(-1, 1, (1,)))
    O = math.prod(observation.shape)
    r = rollout(K=2, T=3, E=2)
    image = None if observation.dtype != "uint8" else Image(12, 16, 3)
    r = replace(r, obs=torch.rand(2, 3, 2, O), image=image)
    x = inputs_of(r)
    assert x.shape == (2, 6, num_inputs(spaces)) and x.shape[-1] <= 1025
    assert x[0, :, -1].tolist() == pytest.approx([0, 0, 0.01, 0.01, 0.02, 0.02])
    alone = inputs_of(r[0:1])
    assert torch.equal(alone, x[0:1])


def test_values_do_not_depend_on_how_tasks_are_shared_out(monkeypatch):
    r = rollout(K=5)
    params = value_baseline.fitted(network(), [[r]], GAMMA, 1e-2, 5, 0)
    whole = value_baseline.values(params, r, GAMMA, 0)
    monkeypatch.setattr(value_baseline, "task_chunks", lambda *_: [slice(0, 2), slice(2, 5)])
    torch.testing.assert_close(value_baseline.values(params, r, GAMMA, 0), whole)


# ---------------------------------------------------------------------------------------------------------------------
# The mean over time, and nothing


def test_the_mean_at_each_time_by_hand():
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])[None]
    r = rollout(K=1, T=2, E=2)
    r = replace(r, mask=mask)
    targets = torch.tensor([[1.0, 3.0], [5.0, 100.0]]).double()[None]
    assert time_baseline(r, targets)[0].tolist() == [[2.0, 2.0], [5.0, 5.0]]


def test_over_the_mean_at_each_time_an_advantage_is_the_difference_from_it():
    r = rollout(E=4)
    returns, mask = discounted_returns(r.rew.double(), GAMMA), r.mask.double()
    raw = (returns - (returns * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp_min(1)) * mask
    scale = masked_mean(raw**2, mask).sqrt()
    got = estimate(r, GAMMA, 1.0, FITS["time"])
    torch.testing.assert_close(got.advantage.double(), raw / scale[:, None, None], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.scale, scale)


def test_over_nothing_an_advantage_is_the_normalised_return():
    r = rollout(E=4)
    returns, mask = discounted_returns(r.rew.double(), GAMMA), r.mask.double()
    raw = (returns - masked_mean(returns, mask)[:, None, None]) * mask
    got = estimate(r, GAMMA, 1.0, None).advantage
    want = raw / masked_mean(raw**2, mask).sqrt()[:, None, None]
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-4)
    assert not fitted_values(r, GAMMA, None).any()


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize("kind", ["linear", "time", "none"])
def test_the_setting_says_which_baseline_a_batch_has(kind):
    r, config = rollout(), maml_trpo.Config(baseline=kind, gamma=GAMMA)
    want = {name: estimate(r, GAMMA, 1.0, fit).baseline for name, fit in FITS.items()}
    got = Batch.of(config, r).baseline
    assert [name for name, value in want.items() if torch.equal(value, got)] == [kind]


@pytest.mark.parametrize("kind", ["linear", "time", "none"])
def test_a_learned_discount_is_of_advantages_over_the_same_baseline(kind):
    r = rollout()
    r = replace(r, log_prob=torch.zeros_like(r.rew), dist=Categorical(torch.randn(3, 6, 40, 2)))
    config = maml_trpo.Config(baseline=kind, gamma=GAMMA, learned_discount=True)
    batch = Batch.of(config, r)
    start = {"discount": torch.tensor(math.log(GAMMA / (1 - GAMMA)), dtype=torch.float64)}
    learned, fixed = (config.inner_loss(LossInput(batch, r.dist, learned=x)) for x in (start, {}))
    torch.testing.assert_close(learned, fixed, atol=1e-5, rtol=1e-4)
    assert learned.abs().min() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "mean"}, "baseline must be one of"),
        ({"baseline": "time", "episodes": 1}, "set episodes to at least 2"),
        ({"baseline": "value", "reward_baseline": 1.0}, "leave baseline='value' out"),
        ({"baseline": "value", "learned_discount": True}, "take baseline='linear', 'time' or 'none'"),
        ({"value_steps": 0}, "value_steps"),
        ({"value_lr": 0.0}, "value_lr"),
        ({"value_hidden": (8, 0)}, r"at least one unit in every layer, got \(8, 0\)"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        maml_trpo.Config(**settings)


def test_no_network_where_none_is_asked_for():
    assert setup(Drift(), maml_trpo.Config(hidden=(4,)))[2].baseline == {}


# ---------------------------------------------------------------------------------------------------------------------
# In training

SMALL = {"n_tasks": 3, "episodes": 4, "hidden": (4,), "device": "cpu", "baseline": "value", "value_hidden": (5,)}


def test_the_network_has_the_size_that_the_settings_say_and_one_slice_for_every_stage():
    one = metarl.MetaLearner("maml_trpo", Drift(), inner_steps=2, **SMALL)
    assert one.state.baseline["w0"].shape == (3, 3, 5) and one.state.baseline["w1"].shape == (3, 5, 1)


@pytest.mark.parametrize("settings", [{"value_lr": 1e-4}, {"value_steps": 3}])
def test_its_step_size_and_number_of_steps_are_those_of_the_settings(settings):
    found = []
    for more in ({}, settings):
        one = metarl.MetaLearner("maml_trpo", Drift(), **SMALL, **more)
        one.learn(1, eval_every=0)
        found.append(one.state.baseline)
    assert not torch.equal(found[0]["w0"], found[1]["w0"])
    assert float(found[0]["adam/count"][0]) == 20
    assert float(found[1]["adam/count"][0]) == settings.get("value_steps", 20)


@pytest.mark.parametrize("algorithm", ["maml_trpo", "promp", "reptile", "cavia", "meta_sgd"])
def test_advantages_of_the_second_iteration_are_over_what_was_fitted_in_the_first(algorithm):
    extra = {"context": 2} if algorithm == "cavia" else {}
    one, other = (metarl.MetaLearner(algorithm, Drift(), **SMALL, **extra) for _ in range(2))
    for learner in (one, other):
        learner.learn(1, eval_every=0)
    other.state = replace(other.state, baseline=metarl.MetaLearner(algorithm, Drift(), **SMALL, **extra).state.baseline)
    for learner in (one, other):
        learner.learn(1, eval_every=0)
    assert any(not torch.equal(x, other.state.params[name]) for name, x in one.state.params.items())


def test_with_tasks_one_after_the_other_every_stage_is_fitted_to_its_own_episodes(monkeypatch):
    config = reptile.Config(n_tasks=3, episodes=4, hidden=(4,), inner_steps=2, serial=True, baseline="value")
    sampler, policy, state = setup(Drift(), config)
    collected, seen = [], []
    collect = type(sampler).collect
    monkeypatch.setattr(
        type(sampler), "collect", lambda *args: (collected.append((args[7], collect(*args))), collected[-1][1])[1]
    )
    monkeypatch.setattr(value_baseline, "fitted", lambda params, stages, *_: (seen.extend(stages), params)[1])
    reptile.iteration(Setup(config, sampler, policy, 0), state)
    assert [len(stage) for stage in seen] == [3, 3, 3]
    for s, stage in enumerate(seen):
        want = [r for number, r in collected if number % 3 == s]
        assert all(a is b for a, b in zip(stage, want, strict=True))


def test_a_run_with_it_goes_on_where_it_was_broken_off(tmp_path):
    one = metarl.MetaLearner("maml_trpo", Drift(), **SMALL)
    one.learn(2, eval_every=0)
    two = metarl.MetaLearner("maml_trpo", Drift(), **SMALL)
    two.learn(1, run_dir=tmp_path / "run", eval_every=0)
    again = metarl.MetaLearner.load(tmp_path / "run", family=Drift())
    again.learn(1, run_dir=tmp_path / "run", eval_every=0)
    for name in ("params", "baseline"):
        want, got = getattr(one.state, name), getattr(again.state, name)
        assert list(got) == list(want) and all(torch.equal(got[key], x) for key, x in want.items())


def test_a_warm_start_with_another_baseline_begins_a_network_of_its_own():
    plain = metarl.MetaLearner("maml_trpo", Drift(), **{**SMALL, "baseline": "linear"})
    plain.learn(1, eval_every=0)
    one = metarl.MetaLearner("maml_trpo", Drift(), **SMALL)
    one.start_from(plain)
    assert torch.equal(one.state.params["w0"], plain.state.params["w0"])
    assert one.state.baseline["w0"].shape == (2, 3, 5)
    one.learn(1, eval_every=0)
