"""Returns, generalised advantages, the baseline and the normalisation: by hand, limits and an independent solver."""

import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from probes import ends
from torch import Tensor

from metarl import parallel
from metarl.formulas.distributions import Categorical
from metarl.formulas.losses import masked_mean
from metarl.formulas.returns import discounted_returns, gae
from metarl.inner import baseline
from metarl.inner.advantages import (
    advantages,
    estimate,
    fitted_values,
    learned_advantages,
    linear_baseline,
    over_number,
)
from metarl.policies.spaces import Image
from metarl.rollout.rollout import Rollout


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rollout(K: int = 3, T: int = 12, E: int = 5, seed: int = 0, obs_scale: float = 3.0) -> Rollout:
    """Random numbers under a mask of episodes that end at different times."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(min(2, T), T + 1, (K, 1, E), generator=g)
    mask = (torch.arange(T)[None, :, None] < lengths).float()
    obs = obs_scale * torch.randn(K, T, E, 2, generator=g) * mask[..., None]
    rew = torch.randn(K, T, E, generator=g) * mask
    blank = torch.zeros(K, T, E)
    return Rollout(obs, blank.long(), rew, mask, blank, Categorical(torch.zeros(K, T, E, 2)), **ends(obs, mask))


def test_returns_by_hand():
    rew = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1)
    assert discounted_returns(rew, 0.5).flatten().tolist() == [3.0, 4.0, 4.0]


def test_returns_keep_tasks_and_episodes_apart():
    rew = random(0, 3, 7, 4)
    want = torch.stack([discounted_returns(rew[k : k + 1, :, e : e + 1], 0.9)[0, :, 0]
                        for k in range(3) for e in range(4)]).reshape(3, 4, 7).mT  # fmt: skip
    assert torch.equal(discounted_returns(rew, 0.9), want)


def test_gae_by_hand():
    # delta = (1 + .5 * 2 - 1, 3 + .5 * 0 - 2) = (1, 1); A_1 = 1, A_0 = 1 + .5 * .4 * 1.
    rew, values = torch.tensor([1.0, 3.0]).reshape(1, 2, 1), torch.tensor([1.0, 2.0, 0.0]).reshape(1, 3, 1)
    torch.testing.assert_close(gae(rew, values, 0.5, 0.4).flatten(), torch.tensor([1.2, 1.0]))


def test_gae_bootstraps_from_the_last_value():
    rew, values = torch.zeros(1, 1, 1), torch.tensor([0.0, 8.0]).reshape(1, 2, 1)
    assert gae(rew, values, 0.5, 1.0).item() == 4.0


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    rew, values = random(0, 2, 6, 3), random(1, 2, 7, 3)
    values[:, -1] = 0
    torch.testing.assert_close(gae(rew, values, 0.9, 1.0), discounted_returns(rew, 0.9) - values[:, :-1])


def test_gae_with_lambda_zero_is_the_one_step_error():
    rew, values = random(0, 2, 6, 3), random(1, 2, 7, 3)
    torch.testing.assert_close(gae(rew, values, 0.9, 0.0), rew + 0.9 * values[:, 1:] - values[:, :-1])


def test_gae_wants_one_value_more_than_rewards():
    with pytest.raises(AssertionError):
        gae(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), 0.9, 1.0)


def ridge_regression(x: np.ndarray, r: Rollout, targets: Tensor, k: int, strength: float = 3.0) -> np.ndarray:
    """The fitted values of task k's valid steps, with an orthogonal solver; x [n, F] standardised features."""
    valid = r.mask[k].bool().numpy()
    T, E = valid.shape
    step = (np.arange(T)[:, None] * np.ones((1, E)))[valid]
    t = 2 * step / max(1, step.max()) - 1
    features = np.concatenate([x, t[:, None] ** np.arange(4)], 1)
    n, F = len(step), int((x.std(0) > 0).sum())
    penalty = np.diag(np.sqrt([max(1, F) * strength] * x.shape[1] + [1e-8 * n] * 4))
    values = np.concatenate([targets[k].double().numpy()[valid], np.zeros(len(penalty))])
    return features @ np.linalg.lstsq(np.concatenate([features, penalty]), values, rcond=None)[0]


def standardised(x: np.ndarray) -> np.ndarray:
    std = x.std(0)
    return np.divide(x - x.mean(0), std, out=np.zeros_like(x), where=std > 1e-6 * np.abs(x.mean(0)))


def vector_features(r: Rollout, k: int) -> np.ndarray:
    x = standardised(r.obs[k][r.mask[k].bool()].double().numpy()).clip(-10, 10)
    return np.concatenate([x, standardised(x**2)], 1)


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("E", [1, 2, 5, 40])
@pytest.mark.parametrize("outlier", [1.0, 1e4])
def test_baseline_is_each_task_own_ridge_regression_on_standardised_features(outlier, E, k):
    r = rollout(E=E)
    r.obs[:, 0, 0] *= outlier  # cut off at ten standard deviations, if there are enough steps for one to be so far away
    targets = discounted_returns(r.rew, 0.9)
    got = linear_baseline(r, targets)[k][r.mask[k].bool()]
    np.testing.assert_allclose(got.numpy(), ridge_regression(vector_features(r, k), r, targets, k), atol=1e-6)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_baseline_does_not_depend_on_the_units_of_the_observations(unit):
    r = rollout()
    targets = discounted_returns(r.rew, 0.9)
    torch.testing.assert_close(
        linear_baseline(replace(r, obs=r.obs * unit + 5 * unit), targets), linear_baseline(r, targets),
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_a_fit_that_could_take_up_everything_does_not():
    # 40 entries and their squares in 24 to 60 steps: without the ridge, returns and baseline would be the same.
    g = torch.Generator().manual_seed(3)
    r = rollout()
    r = replace(r, obs=torch.randn(3, 12, 5, 40, generator=g) * r.mask[..., None])
    left = {s: (r.rew - linear_baseline(r, r.rew, s)).mul(r.mask).norm() / r.rew.norm() for s in (1e-9, 3.0)}
    assert left[1e-9] < 1e-3
    assert left[3.0] > 0.4


def test_what_returns_do_owe_to_the_observation_is_taken_up():
    r = rollout(T=50, E=20)
    targets = 3 + 2 * r.obs[..., 0] - r.obs[..., 1] ** 2
    fit = linear_baseline(r, targets)
    assert (fit - targets).mul(r.mask).norm() < 0.03 * targets.mul(r.mask).norm()


def test_by_steps_and_by_features_it_is_the_same_fit(monkeypatch):
    r = rollout()
    mask, y = (x.double().flatten(1)[..., None] for x in (r.mask, r.rew))
    obs, time = r.obs.flatten(1, 2), baseline._time(r.mask)
    monkeypatch.setattr(baseline, "_BLOCK", 3 * 60)  # one entry at a time
    one, other = (f(obs, mask, time, y, 3.0, True) * mask for f in (baseline._of_steps, baseline._of_features))
    torch.testing.assert_close(one, other, atol=1e-7, rtol=0)


def test_long_observations_take_memory_by_steps_not_by_features():
    # 20,000 entries: normal equations for features would be 12.8 GB a task, all features of a task 8 MB.
    r = rollout()
    r = replace(r, obs=torch.randn(3, 12, 5, 20_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fit = linear_baseline(r, r.rew)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
    assert fit.isfinite().all()
    assert (r.rew - fit).mul(r.mask).norm() > 0.3 * r.rew.norm()


def test_neighbours_are_averaged_where_steps_and_entries_are_too_many(monkeypatch):
    r = rollout()
    blocks = replace(r, obs=r.obs.repeat_interleave(32, -1))
    monkeypatch.setattr(baseline, "WIDE", 2)
    torch.testing.assert_close(linear_baseline(blocks, r.rew), linear_baseline(r, r.rew), atol=1e-6, rtol=0)


def test_baseline_is_not_fitted_across_tasks():
    r = rollout()
    targets = discounted_returns(r.rew, 0.9)
    other = targets.clone()
    other[0] += 100
    torch.testing.assert_close(linear_baseline(r, other)[1:], linear_baseline(r, targets)[1:])


def test_baseline_leaves_no_residual_where_the_targets_are_a_cubic_of_time():
    r = rollout(T=200)
    t = torch.arange(200.0)[None, :, None].expand(3, 200, 5) / 100
    targets = 5 - 3 * t + 2 * t**2 + 40 * t**3
    torch.testing.assert_close(linear_baseline(r, targets).float() * r.mask, targets * r.mask, atol=2e-4, rtol=0)


def test_advantages_have_mean_zero_in_every_task():
    r = rollout()
    torch.testing.assert_close(masked_mean(advantages(r, 0.99, 1.0), r.mask), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_advantages_have_standard_deviation_one_at_any_reward_scale(scale):
    # Divided by the variance instead, they would have 1 / scale.
    r = rollout()
    a = advantages(replace(r, rew=scale * r.rew), 0.99, 1.0)
    torch.testing.assert_close(masked_mean(a**2, r.mask), torch.ones(3), atol=1e-3, rtol=0)


def test_advantages_from_their_parts():
    r, gamma, lam = rollout(), 0.9, 0.7
    values = fitted_values(r, gamma).float() * r.mask
    raw = gae(r.rew, torch.cat([values, torch.zeros(3, 1, 5)], 1), gamma, lam)
    for k in range(3):
        valid = r.mask[k].bool()
        want = (raw[k][valid] - raw[k][valid].mean()) / raw[k][valid].std(correction=0)
        torch.testing.assert_close(advantages(r, gamma, lam)[k][valid], want, atol=1e-4, rtol=1e-4)


def test_advantages_are_zero_after_the_end():
    r = rollout()
    assert not advantages(r, 0.99, 0.9)[r.mask == 0].any()


def test_what_was_observed_after_the_end_does_not_matter():
    r = rollout()
    garbage = torch.where(r.mask[..., None] == 0, torch.full_like(r.obs, 7.0), r.obs)
    torch.testing.assert_close(advantages(replace(r, obs=garbage), 0.99, 0.9), advantages(r, 0.99, 0.9))


def test_an_episode_that_ends_early_equals_a_short_one():
    # The same two-step episodes, stored in two steps and in six.
    r = rollout(T=2)
    longer = {name: torch.cat([x, torch.zeros(3, 4, *x.shape[2:], dtype=x.dtype)], 1)
              for name, x in vars(r).items() if isinstance(x, Tensor) and name != "last_obs"}  # fmt: skip
    padded = advantages(replace(r, **longer, dist=Categorical(torch.zeros(3, 6, 5, 2))), 0.9, 0.8)
    torch.testing.assert_close(padded[:, :2], advantages(r, 0.9, 0.8), atol=1e-5, rtol=1e-5)


def test_a_task_has_the_same_advantages_alone_and_among_others():
    r = rollout()
    alone = torch.cat([advantages(r[k : k + 1], 0.99, 1.0) for k in range(3)])
    torch.testing.assert_close(advantages(r, 0.99, 1.0), alone, atol=1e-5, rtol=1e-5)


def test_chunks_and_threads_give_the_same_advantages(monkeypatch):
    r = rollout()
    whole = advantages(r, 0.99, 1.0)
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 12 * 5)
    torch.set_num_threads(2)
    torch.testing.assert_close(advantages(r, 0.99, 1.0), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 5.0])
def test_nothing_to_prefer_gives_zeros_not_nan(reward):
    r = rollout(T=1)
    r = replace(r, rew=torch.full_like(r.rew, reward), mask=torch.ones_like(r.mask), obs=torch.ones_like(r.obs))
    assert not advantages(r, 0.99, 1.0).any()


def test_rewards_against_a_given_number_by_hand():
    """Rewards 1 and 4, and then the end, against 0.5 in all three steps, discounted by 0.5 (0.8 * 0.625) a step."""
    one = rollout(1, 3, 1)
    r = replace(
        one, rew=torch.tensor([1.0, 4.0, 0.0]).reshape(1, 3, 1), mask=torch.tensor([1.0, 1, 0]).reshape(1, 3, 1)
    )
    with pytest.warns(UserWarning, match=r"reward_baseline=0\.5 where episodes end early"):
        found = over_number(r, 0.5, 0.8, 0.625)
    torch.testing.assert_close(found.advantage.flatten(), torch.tensor([2.125, 3.25, 0.0]))
    torch.testing.assert_close(found.baseline.flatten(), torch.tensor([0.875, 0.75, 0.0]).double())
    assert found.scale.tolist() == [1.0]


@pytest.mark.parametrize("sign", [1, -1])
def test_against_a_given_number_too_rewards_that_add_up_to_no_number_are_refused(sign):
    r = rollout()
    huge = replace(r, rew=sign * 1e38 * r.mask)
    with pytest.raises(ValueError, match="scale the rewards down"):
        over_number(huge, 0.5, 1.0, 1.0)
    assert over_number(replace(r, rew=sign * 1e36 * r.mask), 0.5, 1.0, 1.0).advantage.isfinite().all()


def test_a_single_episode_says_something_only_against_a_given_number():
    one = replace(rollout(3, 1, 1), rew=torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1))
    assert over_number(one, 0.5, 1.0, 1.0).advantage.flatten().tolist() == [0.5, -0.5, 0.5]
    assert not advantages(one, 1.0, 1.0).any()


def test_advantages_are_data():
    r = rollout()
    assert not advantages(replace(r, rew=r.rew.requires_grad_()), 0.99, 1.0).requires_grad


def test_an_advantage_is_the_return_minus_the_baseline_in_units_of_the_scale():
    r, gamma = rollout(), 0.9
    found = estimate(r, gamma, 1.0)
    want = (discounted_returns(r.rew, gamma) - found.baseline) / found.scale[:, None, None] * r.mask
    torch.testing.assert_close(found.advantage.double(), want, atol=1e-5, rtol=1e-4)
    assert not found.baseline[r.mask == 0].any()


def test_learned_advantages_are_those_of_the_same_discount_and_lambda():
    r = rollout()
    got = learned_advantages(r, torch.tensor(0.9, requires_grad=True), torch.tensor(0.7, requires_grad=True))
    torch.testing.assert_close(got, advantages(r, 0.9, 0.7), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("which", ["discount", "lambda"])
def test_learned_advantages_have_the_derivatives_of_finite_differences_with_the_baseline_held(which):
    r = rollout()
    r = replace(r, rew=r.rew.double(), mask=r.mask.double())
    longest = r.mask.amax(2, keepdim=True)
    usual = masked_mean(r.rew, r.mask)[:, None, None] * longest  # the part that is no fit: it has a derivative
    fit = fitted_values(r, 0.9) - discounted_returns(usual, 0.9)
    weight = random(5, *r.rew.shape).double()

    def written_out(gamma: float, lam: float) -> Tensor:
        values = (fit + discounted_returns(usual, gamma)) * r.mask
        raw, total = gae(r.rew, torch.cat([values, torch.zeros_like(values[:, :1])], 1), gamma, lam), 0
        for k in range(3):
            valid = r.mask[k].bool()
            own = (raw[k] - raw[k][valid].mean()) / raw[k][valid].std(correction=0)
            total = total + (own * weight[k])[valid].sum()
        return total

    h = 1e-6
    shift = (h, 0.0) if which == "discount" else (0.0, h)
    want = (written_out(0.9 + shift[0], 0.7 + shift[1]) - written_out(0.9 - shift[0], 0.7 - shift[1])) / (2 * h)
    at = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.9, 0.7)]
    got = torch.autograd.grad((learned_advantages(r, *at) * weight).sum(), at)[0 if which == "discount" else 1]
    assert float(got) == pytest.approx(float(want), rel=1e-5)


def test_learned_advantages_of_equal_rewards_have_a_derivative():
    r = rollout(T=1)
    r = replace(r, rew=torch.full_like(r.rew, 5.0), mask=torch.ones_like(r.mask), obs=torch.ones_like(r.obs))
    gamma = torch.tensor(0.9, requires_grad=True)
    (slope,) = torch.autograd.grad(learned_advantages(r, gamma, torch.tensor(0.9)).sum(), gamma)
    assert slope.isfinite()


# ---------------------------------------------------------------------------------------------------------------------
# Images


def images(K: int = 2, T: int = 10, E: int = 8, channels_first: bool = False) -> Rollout:
    g = torch.Generator().manual_seed(0)
    shape = Image(8, 12, 2, channels_first)
    blank = torch.zeros(K, T, E)
    obs = torch.rand(K, T, E, 8 * 12 * 2, generator=g)
    mask = (torch.rand(K, T, E, generator=g) < 0.9).float()
    dist = Categorical(torch.zeros(K, T, E, 2))
    return Rollout(obs, blank.long(), blank, mask, blank, dist, **ends(obs, mask), image=shape)


@pytest.mark.parametrize("channels_first", [False, True])
def test_the_baseline_of_images_is_the_least_squares_fit_on_the_brightness_of_their_fields(channels_first):
    r = images(channels_first=channels_first)
    targets = random(3, 2, 10, 8)
    shape = (2, 4, 2, 4, 3) if channels_first else (4, 2, 4, 3, 2)
    axes = (2, 4) if channels_first else (1, 3)
    got = linear_baseline(r, targets)
    for k in range(2):
        x = r.obs[k].reshape(80, -1).double().numpy().reshape(80, *shape)
        fields = x.mean(tuple(1 + a for a in axes)).reshape(80, 32)
        valid = r.mask[k].bool()
        want = ridge_regression(standardised(fields[valid.flatten().numpy()]), r, targets, k)
        np.testing.assert_allclose(got[k][valid].numpy(), want, atol=1e-6)


def test_the_baseline_of_images_does_not_fit_everything():
    r, targets = images(), random(3, 2, 10, 8)
    assert (targets - linear_baseline(r, targets)).std() > 0.5
