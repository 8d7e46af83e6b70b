"""Log-probabilities, KL, entropy and Fisher products against torch.distributions, closed forms and autograd."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from metarl import distributions as d

K, T, E, A = 2, 3, 4, 3


def gaussian(seed: int) -> d.Gaussian:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(K, T, E, A, generator=g, dtype=torch.float64)
    return d.Gaussian(mean, 0.5 * torch.randn(K, 1, 1, A, generator=g, dtype=torch.float64))


def categorical(seed: int) -> d.Categorical:
    g = torch.Generator().manual_seed(seed)
    return d.Categorical(2 * torch.randn(K, T, E, A, generator=g, dtype=torch.float64))


def reference(dist: d.Distribution) -> torch.distributions.Distribution:
    if isinstance(dist, d.Gaussian):
        return Independent(Normal(dist.mean, dist.log_std.exp().expand_as(dist.mean)), 1)
    return TorchCategorical(logits=dist.logits)


def actions(dist: d.Distribution) -> Tensor:
    g = torch.Generator().manual_seed(9)
    if isinstance(dist, d.Gaussian):
        return torch.randn(dist.mean.shape, generator=g, dtype=torch.float64)
    return torch.randint(A, dist.logits.shape[:-1], generator=g)


both = pytest.mark.parametrize("make", [gaussian, categorical])


@both
def test_log_prob_is_that_of_torch(make):
    dist = make(0)
    torch.testing.assert_close(d.log_prob(dist, actions(dist)), reference(dist).log_prob(actions(dist)))


@both
def test_kl_is_that_of_torch(make):
    p, q = make(0), make(1)
    torch.testing.assert_close(d.kl(p, q), kl_divergence(reference(p), reference(q)))


@both
def test_kl_is_not_symmetric(make):
    p, q = make(0), make(1)
    assert (d.kl(p, q) - d.kl(q, p)).abs().median() > 0.1


@both
def test_kl_of_a_distribution_from_itself_is_zero(make):
    assert d.kl(make(0), make(0)).abs().max() < 1e-12


@both
def test_entropy_is_that_of_torch(make):
    torch.testing.assert_close(d.entropy(make(0)), reference(make(0)).entropy())


@both
def test_mode_has_the_highest_log_prob(make):
    dist = make(0)
    assert (d.log_prob(dist, d.mode(dist)) >= d.log_prob(dist, actions(dist))).all()


def test_log_prob_by_hand_sums_over_the_action_dimensions():
    # Two standard normals at zero: 2 * -log(sqrt(2 pi)). Their mean would be half of it.
    dist = d.Gaussian(torch.zeros(1, 2), torch.zeros(1, 2))
    assert d.log_prob(dist, torch.zeros(1, 2)).item() == pytest.approx(-1.8378770664)


def test_kl_by_hand_sums_over_the_action_dimensions():
    p, q = d.Gaussian(torch.ones(1, 3), torch.zeros(1, 3)), d.Gaussian(torch.zeros(1, 3), torch.zeros(1, 3))
    assert d.kl(p, q).item() == pytest.approx(1.5)  # three times 1/2


def test_entropy_of_the_uniform_choice_is_the_log_of_its_size():
    assert d.entropy(d.Categorical(torch.full((1, 5), 7.0))).item() == pytest.approx(1.6094379)


def test_adding_a_constant_to_the_logits_changes_nothing():
    logits = categorical(0).logits
    other = d.Categorical(logits + 50)
    torch.testing.assert_close(
        d.log_prob(other, actions(other)), d.log_prob(d.Categorical(logits), actions(other)), atol=1e-12, rtol=0
    )


def test_gaussian_sample_by_hand():
    dist = d.Gaussian(torch.tensor([[1.0, -2.0]]), torch.log(torch.tensor([[0.5, 3.0]])))
    torch.testing.assert_close(d.sample(dist, torch.tensor([[2.0, -1.0]])), torch.tensor([[2.0, -5.0]]))


def test_categorical_sample_frequencies_are_the_probabilities():
    p, n = torch.tensor([0.1, 0.0, 0.55, 0.35]), 20_000
    u = (torch.arange(n)[:, None] + 0.5) / n
    drawn = d.sample(d.Categorical(torch.log(p).expand(n, 4)), u)
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / n, p, atol=2 / n, rtol=0)


@pytest.mark.parametrize(("u", "want"), [(0.0, 0), (1 - 2.0**-24, 6)])
def test_the_extreme_uniform_numbers_give_the_first_and_the_last_choice(u, want):
    dist = d.Categorical(torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)))
    assert d.sample(dist, torch.full((1000, 1), u)).unique().tolist() == [want]


def test_a_choice_of_probability_zero_is_not_drawn_by_the_uniform_number_zero():
    dist = d.Categorical(torch.tensor([[-torch.inf, 0.0]]))
    assert d.sample(dist, torch.zeros(1, 1)).tolist() == [1]


@both
def test_fisher_product_is_the_hessian_of_the_weighted_kl(make):
    dist, tangent = make(0), make(2)
    weight = torch.rand(K, T, E, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def weighted_kl(*parameters: Tensor) -> Tensor:
        return (weight * d.kl(dist, type(dist)(*parameters))).sum()

    _, want = torch.autograd.functional.hvp(weighted_kl, tuple(dist), tuple(tangent))
    torch.testing.assert_close(tuple(d.fisher_product(dist, tangent, weight)), want, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    ("dist", "action"),
    [(gaussian(0), torch.zeros(K, T, E)), (categorical(0), torch.zeros(K, T, E, 1, dtype=torch.int64))],
    ids=["gaussian", "categorical"],
)
def test_log_prob_refuses_to_broadcast(dist, action):
    with pytest.raises(AssertionError):
        d.log_prob(dist, action)
