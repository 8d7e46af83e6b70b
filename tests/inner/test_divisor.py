"""Where episodes end early: what a loss has to be divided by to be unbiased. By summing over all trajectories.

One state for each time; action 0 ends the episode, action 1 goes on, for up to three steps. Rewards differ by time and
action. All expectations are exact, so is every comparison (to rounding).
"""

from itertools import product

import pytest
import torch
from probes import ends
from torch import Tensor

from metarl.algorithms import maml_trpo
from metarl.formulas import losses
from metarl.formulas.distributions import Categorical, log_prob
from metarl.formulas.returns import discounted_returns
from metarl.inner.advantages import estimate, over_number
from metarl.inner.loss import Batch, LossInput
from metarl.rollout.rollout import Rollout

T, GAMMA = 3, 0.9
REWARDS = torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.0, 1.5]]).double()  # by time and action
LOGITS = torch.tensor([[0.2, -0.4], [0.5, 0.1], [-0.3, 0.6]]).double()
PATHS = [[0], [1, 0], [1, 1, 0], [1, 1, 1]]


def chance(logits: Tensor, path: list[int]) -> Tensor:
    return torch.stack([torch.log_softmax(logits[t], -1)[a] for t, a in enumerate(path)]).sum().exp()


def value(logits: Tensor) -> Tensor:
    """The expected discounted return, divided by T."""
    returns = [sum(GAMMA**t * float(REWARDS[t, a]) for t, a in enumerate(path)) for path in PATHS]
    return torch.stack([chance(logits, path) * x for path, x in zip(PATHS, returns, strict=True)]).sum() / T


def data(paths: tuple[list[int], ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Actions, rewards and mask of these episodes, [1, T, E]."""
    act = torch.tensor([[path[t] if t < len(path) else 0 for path in paths] for t in range(T)])[None]
    mask = torch.tensor([[float(t < len(path)) for path in paths] for t in range(T)]).double()[None]
    return act, REWARDS[torch.arange(T)[:, None], act[0]][None] * mask, mask


def baseline() -> Tensor:
    """The expected return from each time on, while the episode goes on, [T]."""
    out, after = [], torch.zeros(()).double()
    for t in reversed(range(T)):
        p = torch.softmax(LOGITS[t], -1)
        after = p[0] * REWARDS[t, 0] + p[1] * (REWARDS[t, 1] + GAMMA * after)
        out.insert(0, after)
    return torch.stack(out)


def loss(kind: str, per: str, logits: Tensor, paths: tuple[list[int], ...]) -> Tensor:
    act, rew, mask = data(paths)
    taken = log_prob(Categorical(logits[None, :, None].expand(1, T, len(paths), 2)), act)
    base = baseline()[None, :, None].expand_as(rew) * mask
    discount = GAMMA ** torch.arange(T).double()[:, None]
    advantage = discount * (discounted_returns(rew, GAMMA) - base) * mask
    found = {
        "dice": lambda: losses.dice(taken, rew, None, mask, GAMMA),
        "dice with a baseline": lambda: losses.dice(taken, rew, base, mask, GAMMA),
        "loaded dice": lambda: losses.loaded_dice(taken, advantage, mask, 1.0),
        "policy gradient": lambda: losses.policy_gradient(taken, advantage, mask),
        "surrogate": lambda: losses.surrogate(taken, taken.detach(), advantage, mask),
    }[kind]()
    return (losses.per_episode(found, mask) if per == "episode" else found)[0]


def expected(kind: str, per: str, episodes: int, order: int) -> Tensor:
    """The expectation of a derivative of the loss over all outcomes of this many episodes."""
    total = torch.zeros(())
    for paths in product(PATHS, repeat=episodes):
        weight = torch.stack([chance(LOGITS, path) for path in paths]).prod()
        derivative = torch.autograd.functional.jacobian if order == 1 else torch.autograd.functional.hessian
        found = derivative(lambda x, paths=paths: loss(kind, per, x, paths), LOGITS)
        total = total + weight * found.detach()
    return -total


KINDS = ["dice", "dice with a baseline", "loaded dice", "policy gradient", "surrogate"]


@pytest.mark.parametrize("episodes", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_per_episode_is_that_of_the_expected_return(kind, episodes):
    at = LOGITS.clone().requires_grad_()
    (want,) = torch.autograd.grad(value(at), at)
    torch.testing.assert_close(expected(kind, "episode", episodes, 1), want, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("episodes", [1, 2])
@pytest.mark.parametrize("kind", ["dice", "dice with a baseline", "loaded dice"])
def test_the_second_derivative_per_episode_is_that_of_the_expected_return(kind, episodes):
    want = torch.autograd.functional.hessian(value, LOGITS)
    torch.testing.assert_close(expected(kind, "episode", episodes, 2), want, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_per_step_is_biased_and_the_less_the_more_episodes_there_are(kind):
    at = LOGITS.clone().requires_grad_()
    (want,) = torch.autograd.grad(value(at), at)
    off = [float(1 - torch.cosine_similarity(expected(kind, "step", n, 1).flatten(), want.flatten(), 0))
           for n in (1, 4)]  # fmt: skip
    assert off[0] > 0.01
    assert off[1] < off[0] / 2


def test_where_no_episode_ends_early_there_is_no_difference():
    act, rew, mask = data(([1, 1, 0], [1, 1, 1]))
    taken = log_prob(Categorical(LOGITS[None, :, None].expand(1, T, 2, 2)), act)
    one = losses.policy_gradient(taken, rew, mask)
    assert torch.equal(losses.per_episode(one, mask), one)


@pytest.mark.parametrize("kind", ["policy_gradient", "lvc", "dice", "loaded_dice"])
def test_the_setting_reaches_the_inner_loss(kind):
    act, rew, mask = data(([0], [1, 1, 1]))
    dist = Categorical(LOGITS[None, :, None].expand(1, T, 2, 2))
    obs = torch.zeros(1, T, 2, 1).double()
    rollout = Rollout(obs, act, rew, mask, log_prob(dist, act), dist, **ends(obs, mask))
    found = estimate(rollout, GAMMA, 1.0)
    batch = Batch(rollout, found.advantage, found.baseline, found.scale)
    own, other = (
        (maml_trpo.Config(inner_gradient=kind, loss_per=per).inner_loss(LossInput(batch, Categorical(logits))), logits)
        for per, logits in ((per, dist.logits.clone().requires_grad_()) for per in ("episode", "step"))
    )
    slope, other_slope = (torch.autograd.grad(x[0], logits)[0] for x, logits in (own, other))
    torch.testing.assert_close(slope, other_slope * 4 / 6, atol=1e-12, rtol=1e-9)
    assert other_slope.norm() > 0.01


@pytest.mark.parametrize("number", [-3.0, 0.5, 10.0])
def test_a_given_number_to_compare_rewards_with_does_not_change_the_gradient_where_episodes_end_early(number):
    at = LOGITS.clone().requires_grad_()
    total: Tensor = torch.zeros(())
    for path in PATHS:
        act, rew, mask = data((path,))
        dist = Categorical(at[None, :, None].expand(1, T, 1, 2))
        obs = torch.zeros(1, T, 1, 1).double()
        rollout = Rollout(obs, act, rew, mask, log_prob(dist, act).detach(), dist, **ends(obs, mask))
        advantage = over_number(rollout, number, 1.0, 1.0).advantage
        found = losses.per_episode(losses.policy_gradient(log_prob(dist, act), advantage, mask), mask)
        total = total + chance(LOGITS, path) * found[0]
    (got,) = torch.autograd.grad(-total, at)
    plain = torch.stack([chance(at, p) * sum(float(REWARDS[t, a]) for t, a in enumerate(p)) for p in PATHS]).sum() / T
    torch.testing.assert_close(got, torch.autograd.grad(plain, at)[0], atol=1e-12, rtol=1e-9)
