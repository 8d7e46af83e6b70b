"""Masked means and policy losses: by hand, and by what must not change them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarl import losses


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


calls = pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, mask: losses.masked_mean(x, mask),
        losses.policy_gradient,
        lambda x, y, mask: losses.surrogate(x, x - 0.1 * y, y, mask),
    ],
    ids=["masked_mean", "policy_gradient", "surrogate"],
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


@given(seed=st.integers(0, 2**30))
def test_masked_mean_is_the_mean_of_the_valid_numbers(seed):
    x, mask = random(seed, 2, 5, 3), mask_of(2, 5, 3, seed)
    want = torch.stack([x[k][mask[k].bool()].mean() for k in range(2)])
    torch.testing.assert_close(losses.masked_mean(x, mask), want)
