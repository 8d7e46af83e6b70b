"""Gradient transformations: torch's own optimisers step by step; what they remember; derivatives where none is easy."""

from functools import partial

import pytest
import torch
from torch import Tensor

from metarl.formulas.optimizers import COUNT, adam, adam_start, clip_norm, momentum

START = {"w": torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double(), "b": torch.tensor([0.3, -0.1]).double()}


def gradients(step: int) -> dict[str, Tensor]:
    """Another one at every step, of numbers between 0.1 and a few."""
    g = torch.Generator().manual_seed(step)
    draws = {name: torch.randn(value.shape, generator=g).double() for name, value in START.items()}
    return {name: x + 0.1 * x.sign() for name, x in draws.items()}


def ours(direction, lr: float, steps: int, memory: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    params, memory = dict(START), {} if memory is None else memory
    for i in range(steps):
        found, memory = direction(gradients(i), memory)
        params = {name: value - lr * found[name] for name, value in params.items()}
    return params


def torchs(kind, steps: int, **settings) -> dict[str, Tensor]:
    params = {name: value.clone().requires_grad_() for name, value in START.items()}
    optimizer = kind(list(params.values()), **settings)
    for i in range(steps):
        for name, gradient in gradients(i).items():
            params[name].grad = gradient
        optimizer.step()
    return {name: value.detach() for name, value in params.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], **tolerance)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_momentum_is_that_of_torch(steps, beta):
    want = torchs(torch.optim.SGD, steps, lr=0.1, momentum=beta)
    assert_same(ours(partial(momentum, beta=beta), 0.1, steps), want)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.8), 1e-3)])
def test_adam_is_that_of_torch(steps, betas, eps):
    # What keeps the root differentiable adds eps^2 / 100 below it: with gradients of at least 0.1, less than 1e-7.
    want = torchs(torch.optim.Adam, steps, lr=0.1, betas=betas, eps=eps)
    assert_same(ours(partial(adam, betas=betas, eps=eps), 0.1, steps), want, atol=1e-8, rtol=1e-8)


def test_adam_goes_on_from_where_it_was():
    _, memory = adam(gradients(0), {})
    _, memory = adam(gradients(1), memory)
    whole = {}
    for i in range(3):
        found, whole = adam(gradients(i), whole)
    assert_same(adam(gradients(2), memory)[0], found, atol=0, rtol=0)
    assert float(memory[COUNT]) == 2


def test_the_start_of_adam_is_an_empty_memory_with_all_its_entries():
    empty, memory = adam(gradients(0), {})
    started, again = adam(gradients(0), adam_start(START))
    assert_same(started, empty, atol=0, rtol=0)
    assert list(adam_start(START)) == list(memory) == list(again)
    assert all(adam_start(START)[name].shape == value.shape for name, value in memory.items())
    assert all(adam_start(START)[name].dtype == value.dtype for name, value in memory.items())


@pytest.mark.parametrize("direction", [momentum, adam])
def test_what_is_given_is_not_changed(direction):
    given = gradients(0)
    _, memory = direction(given, {})
    before = {name: value.clone() for name, value in memory.items()}
    direction(gradients(1), memory)
    assert_same(memory, before, atol=0, rtol=0)
    assert_same(given, gradients(0), atol=0, rtol=0)
    found, memory = direction(given, {})
    found.clear()  # the caller's own
    assert_same(memory, before, atol=0, rtol=0)


def test_adam_of_a_gradient_of_zero_stays_and_can_be_differentiated():
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    found, _ = adam({"x": zero}, {}, eps=1e-3)
    (slope,) = torch.autograd.grad(found["x"].sum(), zero)
    assert not found["x"].any()
    # (1 - b1) g / (1 - b1) / (0.1 eps + eps): the slope at zero.
    torch.testing.assert_close(slope, torch.full_like(slope, 1 / 1.1e-3))


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_what_keeps_adams_root_differentiable_is_as_small_as_it_is_said_to_be(eps):
    small = {"x": torch.logspace(-4, 4, 50, dtype=torch.float64) * eps}
    root = small["x"]  # after one step the corrected second moment is the square
    added = root / adam(small, {}, eps=eps)[0]["x"] - (root + eps)
    assert (added <= 0.1 * eps).all()
    assert (added[root >= eps] <= 0.01 * eps).all()
    assert added.max() > 0.05 * eps  # the control: it is there


@pytest.mark.parametrize("most", [0.5, 3.0, float("inf")])
def test_the_joint_norm_is_cut_to_its_most(most):
    given = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    clipped, norm = clip_norm(given, most)
    assert float(norm) == 5.0
    factor = min(1.0, most / 5.0)
    assert_same(clipped, {name: factor * value for name, value in given.items()}, atol=1e-5, rtol=1e-6)


def test_a_norm_below_the_most_is_left_alone():
    given = {"a": torch.tensor([3.0, 4.0])}
    assert torch.equal(clip_norm(given, 5.1)[0]["a"], given["a"])
