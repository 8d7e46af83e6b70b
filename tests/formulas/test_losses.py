"""Masked means and policy losses: by hand, and by what must not change them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarl.formulas import losses


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_of(K: int, T: int, E: int, seed: int = 0) -> torch.Tensor:
    """Episodes of random length, at least one step each."""
    lengths = torch.randint(1, T + 1, (K, 1, E), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(T)[None, :, None] < lengths).double()


def test_masked_mean_by_hand():
    x, mask = torch.tensor([[[1.0], [3.0], [100.0]]]), torch.tensor([[[1.0], [1.0], [0.0]]])
    assert losses.masked_mean(x, mask).tolist() == [2.0]


def test_masked_mean_counts_steps_not_episodes():
    # An episode of three steps and one of a single step: the mean over four steps, not over two episodes' means.
    x = torch.tensor([[[4.0, 0.0], [4.0, 9.0], [4.0, 9.0]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    assert losses.masked_mean(x, mask).item() == 3.0


def test_policy_gradient_by_hand():
    log_prob, advantage = torch.tensor([[[-1.0], [-2.0], [9.0]]]), torch.tensor([[[3.0], [-1.0], [9.0]]])
    mask = torch.tensor([[[1.0], [1.0], [0.0]]])
    assert losses.policy_gradient(log_prob, advantage, mask).item() == 0.5  # -(-3 + 2) / 2


def test_descending_the_policy_gradient_raises_the_log_prob_of_a_good_action():
    log_prob = torch.zeros(1, 1, 2, requires_grad=True)
    loss = losses.policy_gradient(log_prob, torch.tensor([[[1.0, -1.0]]]), torch.ones(1, 1, 2))
    assert torch.autograd.grad(loss.sum(), log_prob)[0].flatten().tolist() == [-0.5, 0.5]


def test_surrogate_by_hand():
    new, old = torch.log(torch.tensor([[[0.6], [0.1]]])), torch.log(torch.tensor([[[0.3], [0.2]]]))
    loss = losses.surrogate(new, old, torch.tensor([[[1.0], [4.0]]]), torch.ones(1, 2, 1))
    assert loss.item() == pytest.approx(-2.0)  # ratios 2 and 1/2: -(2 + 2) / 2


def test_surrogate_has_the_policy_gradient_at_the_acting_policy():
    log_prob, advantage, mask = random(0, 2, 4, 3).requires_grad_(), random(1, 2, 4, 3), mask_of(2, 4, 3)
    surrogate = losses.surrogate(log_prob, log_prob.detach(), advantage, mask).sum()
    score = losses.policy_gradient(log_prob, advantage, mask).sum()
    torch.testing.assert_close(torch.autograd.grad(surrogate, log_prob), torch.autograd.grad(score, log_prob))


def test_clipped_surrogate_by_hand():
    # Ratios of 2 and 1/2 for a good action and for a bad one: whichever of the plain and the cut ratio earns less.
    ratio, advantage = torch.tensor([2.0, 0.5, 2.0, 0.5]).double(), torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    log_prob = ratio.log().reshape(1, 4, 1).requires_grad_()
    old, mask = torch.zeros_like(log_prob), torch.ones_like(log_prob)
    loss = losses.clipped_surrogate(log_prob, old, advantage.reshape(1, 4, 1), mask, clip=0.25)
    assert loss.item() == pytest.approx(-(1.25 + 0.5 - 2.0 - 0.75) / 4)
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    assert gradient.flatten().tolist() == pytest.approx([0.0, -0.125, 0.5, 0.0])  # what earns too much pulls no more


def test_a_wide_clip_cuts_nothing():
    new, old, advantage, mask = *(random(s, 2, 4, 3) for s in range(3)), mask_of(2, 4, 3)
    wide = losses.clipped_surrogate(new, old, advantage, mask, clip=1e6)
    torch.testing.assert_close(wide, losses.surrogate(new, old, advantage, mask))


# ---------------------------------------------------------------------------------------------------------------------
# Losses that are differentiated twice


def derivatives(loss, log_prob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Value, gradient [n] and Hessian [n, n] of the summed loss in the n log-probabilities."""
    x = log_prob.flatten().clone().requires_grad_()
    value = loss(x.reshape(log_prob.shape)).sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    if not gradient.requires_grad:  # linear: policy_gradient
        return value.detach(), gradient, torch.zeros(len(x), len(x), dtype=x.dtype)
    hessian = [torch.autograd.grad(g, x, retain_graph=True)[0] for g in gradient]
    return value.detach(), gradient.detach(), torch.stack(hessian)


def episode(*numbers: float) -> torch.Tensor:
    """[1, T, 1]"""
    return torch.tensor(numbers, dtype=torch.float64)[None, :, None]


def test_dice_by_hand():
    # Two valid steps, gamma 1/2: -(box(a) 3 + box(a + b) 4 / 2) / 2.
    log_prob, reward, mask = episode(-1.0, -2.0, 9.0), episode(3.0, 4.0, 9.0), episode(1.0, 1.0, 0.0)
    value, gradient, hessian = derivatives(lambda x: losses.dice(x, reward, None, mask, 0.5), log_prob)
    assert value.item() == -2.5
    assert gradient.tolist() == [-2.5, -1.0, 0.0]
    assert hessian.tolist() == [[-2.5, -1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_baseline_of_dice_by_hand():
    # It adds -((1 - box(a)) 6 + (1 - box(b)) 8 / 2) / 2: nothing to the value.
    log_prob, reward, mask = episode(-1.0, -2.0, 9.0), episode(3.0, 4.0, 9.0), episode(1.0, 1.0, 0.0)
    baseline = episode(6.0, 8.0, 9.0)
    value, gradient, hessian = derivatives(lambda x: losses.dice(x, reward, baseline, mask, 0.5), log_prob)
    assert value.item() == -2.5
    assert gradient.tolist() == [-2.5 + 3.0, -1.0 + 2.0, 0.0]
    assert hessian.tolist() == [[0.5, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_no_baseline_is_a_baseline_of_zero():
    log_prob, reward, mask = random(0, 2, 4, 3), random(1, 2, 4, 3), mask_of(2, 4, 3)
    with_zeros = derivatives(lambda x: losses.dice(x, reward, torch.zeros_like(reward), mask, 0.9), log_prob)
    torch.testing.assert_close(derivatives(lambda x: losses.dice(x, reward, None, mask, 0.9), log_prob), with_zeros)


def returns(reward: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """Sums of gamma^t r_t, t counted from the episode's start, from each step on; the slow way."""
    T = reward.shape[1]
    steps = [sum(gamma**u * (reward * mask)[:, u] for u in range(t, T)) for t in range(T)]
    return torch.stack(steps, 1)  # type: ignore[arg-type]


def test_dice_has_the_policy_gradient():
    log_prob, reward, baseline, mask = *(random(s, 2, 4, 3) for s in range(3)), mask_of(2, 4, 3)
    advantage = returns(reward, mask, 0.9) - 0.9 ** torch.arange(4)[:, None] * baseline
    _, gradient, hessian = derivatives(lambda x: losses.dice(x, reward, baseline, mask, 0.9), log_prob)
    _, want, zero = derivatives(lambda x: losses.policy_gradient(x, advantage, mask), log_prob)
    torch.testing.assert_close(gradient, want)
    assert zero.abs().max() == 0 < hessian.abs().max()  # the control: nothing is left of it in the second


def test_loaded_dice_by_hand():
    # lambda 1/2: box(a) - 1, and box(a/2 + b) - box(a/2), over two valid steps.
    log_prob, advantage, mask = episode(-1.0, -2.0, 9.0), episode(3.0, 8.0, 9.0), episode(1.0, 1.0, 0.0)
    value, gradient, hessian = derivatives(lambda x: losses.loaded_dice(x, advantage, mask, 0.5), log_prob)
    assert value.item() == 0.0
    assert gradient.tolist() == [-1.5, -4.0, 0.0]
    assert hessian.tolist() == [[-1.5, -2.0, 0.0], [-2.0, -4.0, 0.0], [0.0, 0.0, 0.0]]


def test_loaded_dice_forgets_by_lambda_at_every_step():
    # Third row of the loads: lambda^2, lambda, 1. The Hessian's last column is -A_2 / 3 times it.
    advantage = episode(0.0, 0.0, 3.0)
    loss = lambda x: losses.loaded_dice(x, advantage, torch.ones_like(x), 0.5)  # noqa: E731
    _, _, hessian = derivatives(loss, episode(-1.0, -2.0, -3.0))
    assert hessian[2].tolist() == [-0.25, -0.5, -1.0]


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_loaded_dice_has_the_policy_gradient_whatever_its_lambda(lam):
    log_prob, advantage, mask = random(0, 2, 4, 3), random(1, 2, 4, 3), mask_of(2, 4, 3)
    value, gradient, _ = derivatives(lambda x: losses.loaded_dice(x, advantage, mask, lam), log_prob)
    want = derivatives(lambda x: losses.policy_gradient(x, advantage, mask), log_prob)[1]
    assert value == 0
    torch.testing.assert_close(gradient, want)


def test_loaded_dice_is_dice_or_lvc_at_the_ends_and_neither_between():
    log_prob, reward, mask = random(0, 2, 4, 3), random(1, 2, 4, 3), mask_of(2, 4, 3)
    advantage = returns(reward, mask)
    none, half, all_ = (
        derivatives(lambda x, lam=lam: losses.loaded_dice(x, advantage, mask, lam), log_prob)[2] for lam in (0, 0.5, 1)
    )
    lvc = derivatives(lambda x: losses.surrogate(x, log_prob, advantage, mask), log_prob)[2]
    dice = derivatives(lambda x: losses.dice(x, reward, None, mask, 1.0), log_prob)[2]
    torch.testing.assert_close(none, lvc)
    torch.testing.assert_close(all_, dice)
    assert (half - lvc).abs().max() > 0.1 and (half - dice).abs().max() > 0.1


def test_exploration_by_hand():
    # The score of all valid steps of all episodes, a sum: not the mean that would make it three times smaller.
    old = torch.tensor([[[-1.0, -2.0], [-3.0, 9.0]]], dtype=torch.float64)
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    score = torch.tensor([5.0], dtype=torch.float64)
    value, gradient, _ = derivatives(lambda x: losses.exploration(x, old, score, mask), old)
    assert value.item() == 0.0
    assert gradient.tolist() == [-5.0, -5.0, -5.0, 0.0]
    doubled = losses.exploration(old + torch.log(torch.tensor(2.0)).double(), old, score, mask)
    assert doubled.item() == pytest.approx(-15.0)  # three ratios of 2


def test_exploration_grows_with_the_number_of_episodes():
    log_prob = random(0, 2, 4, 3)
    score, mask = random(1, 2), mask_of(2, 4, 3)
    once = losses.exploration(log_prob, log_prob - 0.1, score, mask)
    twice = losses.exploration(*(torch.cat([x, x], 2) for x in (log_prob, log_prob - 0.1)), score, mask.repeat(1, 1, 2))
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("shape", [(2, 1), (1,), ()])
def test_exploration_refuses_a_score_that_is_not_one_per_task(shape):
    x = random(0, 2, 4, 3)
    with pytest.raises(AssertionError, match="one score per task"):
        losses.exploration(x, x, torch.zeros(shape), torch.ones_like(x))


calls = pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, mask: losses.masked_mean(x, mask),
        losses.policy_gradient,
        lambda x, y, mask: losses.surrogate(x, x - 0.1 * y, y, mask),
        lambda x, y, mask: losses.clipped_surrogate(x, x - 0.1 * y, y, mask),
        lambda x, y, mask: losses.dice(x, y, x, mask, 0.9),
        lambda x, y, mask: losses.dice(x, y, None, mask, 0.9),
        lambda x, y, mask: losses.loaded_dice(x, y, mask, 0.5),
        lambda x, y, mask: losses.exploration(x, x - 0.1 * y, y.flatten(1).sum(1), mask),
    ],
    ids=["masked_mean", "policy_gradient", "surrogate", "clipped", "dice", "dice_alone", "loaded_dice", "exploration"],
)


twice = pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, mask: losses.dice(x, y, y, mask, 0.9),
        lambda x, y, mask: losses.loaded_dice(x, y, mask, 0.5),
    ],
    ids=["dice", "loaded_dice"],
)


@calls
def test_a_trailing_axis_is_refused_not_broadcast(loss):
    with pytest.raises(AssertionError, match="equal shapes"):
        loss(random(0, 2, 4, 3), random(1, 2, 4, 3), torch.ones(2, 4, 3, 1, dtype=torch.float64))


@calls
def test_tensors_without_all_three_axes_are_refused(loss):
    with pytest.raises(AssertionError, match=r"\[K, T, E\]"):
        loss(random(0, 4, 3), random(1, 4, 3), torch.ones(4, 3, dtype=torch.float64))


@calls
def test_a_task_has_the_same_loss_alone_and_among_others(loss):
    x, y, mask = random(0, 5, 4, 3), random(1, 5, 4, 3), mask_of(5, 4, 3)
    alone = torch.cat([loss(x[k : k + 1], y[k : k + 1], mask[k : k + 1]) for k in range(5)])
    torch.testing.assert_close(loss(x, y, mask), alone)


@calls
@given(seed=st.integers(0, 2**30), garbage=st.floats(-1e30, 1e30))
def test_masked_steps_never_matter(loss, seed, garbage):
    x, y, mask = random(seed, 2, 5, 3), random(seed + 1, 2, 5, 3), mask_of(2, 5, 3, seed)
    # An exponential of the garbage would be infinite; the surrogate's ratio sees the difference of two of them.
    dirty = torch.where(mask.bool(), x, torch.full_like(x, garbage))
    torch.testing.assert_close(loss(dirty, y * mask, mask), loss(x, y * mask, mask))


@twice
@given(seed=st.integers(0, 2**30), garbage=st.floats(-1e30, 1e30))
def test_masked_steps_never_matter_to_derivatives(loss, seed, garbage):
    # Masked steps amid valid ones: behind an episode's end, where they belong, later steps could not show a mistake.
    x, y, mask = random(seed, 1, 4, 2), random(seed + 1, 1, 4, 2), (random(seed + 2, 1, 4, 2) > 0).double()
    mask[:, -1] = 1
    dirty = torch.where(mask.bool(), y, torch.full_like(y, garbage))
    want = derivatives(lambda x: loss(x, y, mask), x)
    torch.testing.assert_close(derivatives(lambda x: loss(x, dirty, mask), x), want)
    out = 1 - mask.flatten()
    assert (want[1] * out).abs().max() == 0 and (want[2] * out).abs().max() == 0


@given(seed=st.integers(0, 2**30))
def test_masked_mean_is_the_mean_of_the_valid_numbers(seed):
    x, mask = random(seed, 2, 5, 3), mask_of(2, 5, 3, seed)
    want = torch.stack([x[k][mask[k].bool()].mean() for k in range(2)])
    torch.testing.assert_close(losses.masked_mean(x, mask), want)
