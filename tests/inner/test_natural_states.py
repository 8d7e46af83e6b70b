"""metarl.inner.natural_gradient takes every state once: the same Fisher matrix as from the states as they came."""

import pytest
import torch
from torch import Tensor

import metarl
from metarl.inner.natural_gradient import distinct, fisher_matrix
from metarl.params import Params
from metarl.policies.mlp import MLPPolicy
from metarl.policies.spaces import spaces_of


def problem(id: str, hidden: tuple[int, ...]) -> tuple[MLPPolicy, Params, Tensor, Tensor]:
    """A policy with other parameters in each of 3 tasks, states [3, 4, 6, O] that repeat, and a mask with holes."""
    policy, g = MLPPolicy(spaces_of(metarl.make(id)), hidden), torch.Generator().manual_seed(0)
    params = {n: torch.randn(3, *v.shape, generator=g) for n, v in policy.init(g).items()}
    which = torch.randint(policy.spaces.obs_dim, (3, 4, 6), generator=g)
    obs = torch.nn.functional.one_hot(which, policy.spaces.obs_dim).float()
    return policy, params, obs, (torch.rand(3, 4, 6, generator=g) < 0.7).float()


def double(*values: Tensor) -> list[Tensor]:
    return [x.double() for x in values]


@pytest.mark.parametrize("id", ["TabularMDP-v0", "BernoulliBandit-v0"])
@pytest.mark.parametrize("hidden", [(), (3,)])
def test_the_fisher_matrix_is_the_same(id, hidden):
    policy, params, obs, mask = problem(id, hidden)
    params = {name: value.double() for name, value in params.items()}
    obs, mask = double(obs, mask)
    once, visits = distinct(obs, mask)
    assert once.shape == (3, 1, policy.spaces.obs_dim, policy.spaces.obs_dim)
    want = fisher_matrix(policy, params, obs, mask, list(params))
    torch.testing.assert_close(fisher_matrix(policy, params, once, visits, list(params)), want)
    # Without the numbers of visits it is another one, unless there is one state only.
    if policy.spaces.obs_dim > 1:
        other = fisher_matrix(policy, params, once, torch.ones_like(visits), list(params))
        assert (other - want).abs().max() > 1e-3


def test_visits_are_those_of_each_task_and_hidden_steps_do_not_count():
    obs = torch.tensor([0.0, 0, 0, 7, 7, 0, 7, 7]).reshape(2, 2, 2, 1)
    mask = torch.tensor([1.0, 1, 0, 1, 1, 1, 1, 1]).reshape(2, 2, 2)
    states, visits = distinct(obs, mask)
    assert states[:, 0, :, 0].tolist() == [[0, 7], [0, 7]]
    assert visits[:, 0].tolist() == [[2, 1], [1, 3]]


def test_states_that_hardly_repeat_stay_as_they_came():
    obs, mask = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 4)
    once, visits = distinct(obs, mask)
    assert once is obs and visits is mask


def test_the_fisher_matrix_of_a_softmax_by_hand():
    """Two arms with probability p and 1 - p, one logit each by weight and by bias: p (1 - p) [[1, -1], [-1, 1]]."""
    policy = MLPPolicy(spaces_of(metarl.make("BernoulliBandit-v0", arms=2)), ())
    params = {"w0": torch.zeros(1, 1, 2), "b0": torch.tensor([[0.0, 1.0]])}
    p = torch.sigmoid(torch.tensor(1.0))
    block = p * (1 - p) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    found = fisher_matrix(policy, params, torch.ones(1, 1, 5, 1), torch.ones(1, 1, 5), ["w0", "b0"])
    torch.testing.assert_close(found[0], block.repeat(2, 2))
