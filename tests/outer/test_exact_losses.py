"""What each inner loss estimates in each order of derivative, summed over all trajectories of small tabular MDPs."""

from functools import partial

import pytest
import torch
from exact import MDP, Loss, expected_loss
from exact_cases import case, dice, dice_with_baseline, loaded_dice, lvc, policy_gradient
from torch import Tensor
from torch.autograd.functional import hessian


def exact_advantages(mdp: MDP, logits: Tensor) -> Tensor:
    """Of every trajectory as a task of one episode, [N, T, 1]."""
    return mdp.advantages(logits)[..., None].detach()


def derivatives(function, x: Tensor, orders: int) -> list[float]:
    """Along one direction, as many orders as are asked for."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    along = lambda e: function(x + e * direction)  # noqa: E731
    out = []
    for _ in range(orders):
        along = torch.func.grad(along)
        out.append(along(torch.zeros((), dtype=x.dtype)).item())
    return out


def derivatives_of_a_loss(loss: Loss, mdp: MDP, logits: Tensor, orders: int) -> list[float]:
    """Of its expectation, uphill."""
    expectation = expected_loss(mdp, logits, loss)
    return derivatives(lambda x: -expectation(x), logits, orders)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("loss", [dice, dice_with_baseline])
def test_dice_is_unbiased_in_four_orders(loss, gamma):
    mdp, logits = case(gamma=gamma)
    got = derivatives_of_a_loss(partial(loss, gamma=gamma), mdp, logits, 4)
    assert got == pytest.approx(derivatives(mdp.value, logits, 4), rel=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_loaded_dice_with_exact_advantages_is_unbiased_in_four_orders(gamma):
    mdp, logits = case(gamma=gamma)
    loss = loaded_dice(exact_advantages(mdp, logits), 1.0)
    assert derivatives_of_a_loss(loss, mdp, logits, 4) == pytest.approx(derivatives(mdp.value, logits, 4), rel=1e-9)


@pytest.mark.parametrize("loss", [policy_gradient, lvc])
def test_the_policy_gradient_and_lvc_are_unbiased_in_the_first_order_only(loss):
    mdp, logits = case()
    got, want = derivatives_of_a_loss(loss, mdp, logits, 2), derivatives(mdp.value, logits, 2)
    assert got[0] == pytest.approx(want[0], rel=1e-9)
    assert abs(got[1] - want[1]) > 0.05 * abs(want[1])


def hessian_error(loss: Loss, mdp: MDP, logits: Tensor) -> Tensor:
    return -hessian(expected_loss(mdp, logits, loss), logits) - hessian(mdp.value, logits)


def test_what_lvc_leaves_out_is_how_future_values_change():
    # Rothfuss et al. 2019, section 5 and appendix: the Hessian has terms grad log pi_t (grad Q_t)^T and their
    # transposes, and those are what LVC lacks.
    mdp, logits = case(seed=2, horizon=4)
    states, actions, _ = mdp.paths
    score = torch.eye(2).double()[actions] - torch.softmax(logits, -1)[states]
    score = torch.einsum("nts,nta->ntsa", torch.eye(2).double()[states], score)
    change = torch.autograd.functional.jacobian(lambda x: mdp.recursion(x)[1], logits)  # [T, S, A, S, A]
    change = change[torch.arange(4), states, actions]
    cross = torch.einsum("n,ntij,ntkl->ijkl", mdp.probabilities(logits), score, change) / 4
    torch.testing.assert_close(hessian_error(lvc, mdp, logits), -cross - cross.permute(2, 3, 0, 1))


def test_in_two_steps_loaded_dice_forgets_in_proportion():
    # Between two steps there is one load, lambda, so the bias is 1 - lambda times that of LVC.
    mdp, logits = case(horizon=2)
    advantage = exact_advantages(mdp, logits)
    none, most = (hessian_error(loaded_dice(advantage, lam), mdp, logits) for lam in (0.0, 0.75))
    torch.testing.assert_close(hessian_error(lvc, mdp, logits), none)
    torch.testing.assert_close(most, none / 4)
    assert none.norm() > 0.1 * hessian(mdp.value, logits).norm()
