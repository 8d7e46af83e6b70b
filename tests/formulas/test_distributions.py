"""Log-probabilities, KL, entropy and Fisher products against torch.distributions, closed forms and autograd."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, kl_divergence

from metarl.formulas import distributions as d

K, T, E, A = 2, 3, 4, 3


def gaussian(seed: int) -> d.Gaussian:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(K, T, E, A, generator=g, dtype=torch.float64)
    return d.Gaussian(mean, 0.5 * torch.randn(K, 1, 1, A, generator=g, dtype=torch.float64))


def categorical(seed: int) -> d.Categorical:
    g = torch.Generator().manual_seed(seed)
    return d.Categorical(2 * torch.randn(K, T, E, A, generator=g, dtype=torch.float64))


SIZES = (3, 1, 4, 2)


def several(seed: int, sizes: tuple[int, ...] = SIZES) -> d.MultiCategorical:
    g = torch.Generator().manual_seed(seed)
    return d.multi_categorical(sizes)(2 * torch.randn(K, T, E, sum(sizes), generator=g, dtype=torch.float64))


def alike(seed: int) -> d.MultiCategorical:
    return several(seed, (3, 3, 3))


class Product:
    """Independent choices, one torch distribution for each: what is independent adds up."""

    def __init__(self, dist: d.MultiCategorical):
        self.parts = [TorchCategorical(logits=x) for x in dist.logits.split(list(dist.sizes), -1)]

    def log_prob(self, action: Tensor) -> Tensor:
        return sum(part.log_prob(action[..., i]) for i, part in enumerate(self.parts))

    def entropy(self) -> Tensor:
        return sum(part.entropy() for part in self.parts)


def divergence(p, q) -> Tensor:
    if isinstance(p, Product):
        return sum(kl_divergence(a, b) for a, b in zip(p.parts, q.parts, strict=True))
    return kl_divergence(p, q)


def reference(dist: d.Distribution) -> torch.distributions.Distribution | Product:
    if isinstance(dist, d.MultiCategorical):
        return Product(dist)
    if isinstance(dist, d.Gaussian):
        return Independent(Normal(dist.mean, dist.log_std.exp().expand_as(dist.mean)), 1)
    return TorchCategorical(logits=dist.logits)


def actions(dist: d.Distribution) -> Tensor:
    g = torch.Generator().manual_seed(9)
    if isinstance(dist, d.Gaussian):
        return torch.randn(dist.mean.shape, generator=g, dtype=torch.float64)
    if isinstance(dist, d.MultiCategorical):
        return torch.stack([torch.randint(n, dist.logits.shape[:-1], generator=g) for n in dist.sizes], -1)
    return torch.randint(A, dist.logits.shape[:-1], generator=g)


every = pytest.mark.parametrize("make", [gaussian, categorical, several, alike])


@every
def test_log_prob_is_that_of_torch(make):
    dist = make(0)
    torch.testing.assert_close(d.log_prob(dist, actions(dist)), reference(dist).log_prob(actions(dist)))


@every
def test_kl_is_that_of_torch(make):
    p, q = make(0), make(1)
    torch.testing.assert_close(d.kl(p, q), divergence(reference(p), reference(q)))


@every
def test_kl_is_not_symmetric(make):
    p, q = make(0), make(1)
    assert (d.kl(p, q) - d.kl(q, p)).abs().median() > 0.1


@every
def test_kl_of_a_distribution_from_itself_is_zero(make):
    assert d.kl(make(0), make(0)).abs().max() < 1e-12


@every
def test_entropy_is_that_of_torch(make):
    torch.testing.assert_close(d.entropy(make(0)), reference(make(0)).entropy())


@every
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


@every
def test_fisher_product_is_the_hessian_of_the_weighted_kl(make):
    dist, tangent = make(0), make(2)
    weight = torch.rand(K, T, E, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def weighted_kl(*parameters: Tensor) -> Tensor:
        return (weight * d.kl(dist, type(dist)(*parameters))).sum()

    _, want = torch.autograd.functional.hvp(weighted_kl, tuple(dist), tuple(tangent))
    torch.testing.assert_close(tuple(d.fisher_product(dist, tangent, weight)), want, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    ("dist", "action"),
    [
        (gaussian(0), torch.zeros(K, T, E)),
        (categorical(0), torch.zeros(K, T, E, 1, dtype=torch.int64)),
        (several(0), torch.zeros(K, T, E, dtype=torch.int64)),
        (several(0), torch.zeros(K, T, E, 1, dtype=torch.int64)),
    ],
    ids=["gaussian", "categorical", "several", "several-one"],
)
def test_log_prob_refuses_to_broadcast(dist, action):
    with pytest.raises(AssertionError):
        d.log_prob(dist, action)


# ---------------------------------------------------------------------------------------------------------------------
# Several choices


def joint(dist: d.MultiCategorical) -> tuple[d.Categorical, list[tuple[int, ...]]]:
    """The same as one choice among all combinations, which are listed."""
    parts = dist.logits.split(list(dist.sizes), -1)
    combinations = list(itertools.product(*(range(n) for n in dist.sizes)))
    logits = [sum(part[..., i] for part, i in zip(parts, c, strict=True)) for c in combinations]
    return d.Categorical(torch.stack(logits, -1)), combinations


@pytest.mark.parametrize("make", [several, alike])
def test_several_choices_are_one_among_all_combinations(make):
    p, q = make(0), make(1)
    (one, combinations), (other, _) = joint(p), joint(q)
    torch.testing.assert_close(d.kl(p, q), d.kl(one, other))
    torch.testing.assert_close(d.entropy(p), d.entropy(one))
    for i, combination in enumerate(combinations):
        action = torch.tensor(combination).expand(K, T, E, -1)
        want = d.log_prob(one, torch.full((K, T, E), i))
        torch.testing.assert_close(d.log_prob(p, action), want)


def test_each_choice_is_drawn_with_its_own_number_and_its_probabilities():
    n, p = 100, [torch.tensor([0.3, 0.7]), torch.tensor([0.25, 0.5, 0.0, 0.25])]
    u = (torch.arange(n) + 0.5) / n
    noise = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1).reshape(-1, 2)
    dist = d.multi_categorical((2, 4))(torch.log(torch.cat(p)).clamp_min(-100).expand(n * n, 6))
    drawn = d.sample(dist, noise)
    found = torch.zeros(2, 4).index_put((drawn[:, 0], drawn[:, 1]), torch.ones(()), accumulate=True) / n**2
    torch.testing.assert_close(found, p[0][:, None] * p[1], atol=1e-6, rtol=0)


def test_the_extreme_uniform_numbers_give_each_choice_s_first_and_last():
    dist = d.multi_categorical(SIZES)(torch.randn(1000, sum(SIZES), generator=torch.Generator().manual_seed(0)))
    for u, want in ((0.0, [0] * len(SIZES)), (1 - 2.0**-24, [n - 1 for n in SIZES])):
        assert d.sample(dist, torch.full((1000, len(SIZES)), u)).unique(dim=0).tolist() == [want]


@pytest.mark.parametrize("make", [several, alike])
def test_several_choices_have_the_gradients_of_their_parts(make):
    # Differentiated twice, as through an inner step, the places that are not there included.
    dist, action, names = make(0), actions(make(0)), ("kl", "entropy", "log_prob")

    def value(logits: Tensor, name: str, own: bool) -> Tensor:
        here = type(dist)(logits)
        if name == "log_prob":
            return (d.log_prob(here, action) if own else Product(here).log_prob(action)).exp().sum()
        if name == "entropy":
            return (d.entropy(here) if own else Product(here).entropy()).sum()
        return (d.kl(dist, here) if own else divergence(Product(dist), Product(here))).sum()

    along = make(2).logits
    for name in names:
        got, want = (
            torch.autograd.functional.hvp(lambda x, o=own, n=name: value(x, n, o), make(1).logits, along)[1]
            for own in (True, False)
        )
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)


def test_the_sizes_stay_with_the_distribution():
    dist = several(0)
    for other in (type(dist)(*dist), pickle.loads(pickle.dumps(dist)), copy.deepcopy(dist)):
        assert isinstance(other, d.MultiCategorical)
        assert type(other) is type(dist) is d.multi_categorical(SIZES)
        assert other.sizes == SIZES
        assert torch.equal(other.logits, dist.logits)


def test_logits_of_another_length_are_refused():
    dist = d.multi_categorical((2, 3))(torch.zeros(4, 6))
    with pytest.raises(AssertionError):
        d.entropy(dist)


def test_distributions_of_other_sizes_are_not_compared():
    with pytest.raises(AssertionError):
        d.kl(several(0, (2, 4)), several(0, (4, 2)))


@pytest.mark.parametrize("sizes", [(), (2, 0)])
def test_choices_among_nothing_are_refused(sizes):
    with pytest.raises(AssertionError):
        d.multi_categorical(sizes)
