"""The inner step: closed forms, finite differences, and what it must not depend on."""

from dataclasses import replace

import pytest
import torch
from probes import Drift, Locks, TwoArms, double, random_params, setup, stages

from metarl.algorithms import maml_trpo
from metarl.inner import loop
from metarl.inner.step import sgd_step
from metarl.params import expand

# One quadratic per task: loss_k = c_k |x_k - a_k|^2 / 2, with gradient c_k (x_k - a_k) and Hessian c_k.
C = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
TARGET = torch.tensor([[1.0, -1.0], [0.0, 2.0], [3.0, 0.5]], dtype=torch.float64)


def quadratic(params):
    return C[: len(params["x"])] * ((params["x"] - TARGET[: len(params["x"])]) ** 2).sum(-1) / 2


def start(n_tasks: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([[0.5, 0.25]], dtype=torch.float64).repeat(n_tasks, 1)}


def test_step_on_quadratics_by_hand():
    want = start()["x"] - 0.1 * C[:, None] * (start()["x"] - TARGET)
    torch.testing.assert_close(sgd_step(start(), quadratic, 0.1)["x"], want)


def test_a_step_lowers_every_task_loss():
    assert (quadratic(sgd_step(start(), quadratic, 0.1)) < quadratic(start())).all()


def test_the_step_is_proportional_to_the_step_size():
    one, three = (sgd_step(start(), quadratic, lr)["x"] - start()["x"] for lr in (0.1, 0.3))
    torch.testing.assert_close(three, 3 * one)


def test_the_step_does_not_depend_on_how_many_tasks_there_are():
    # The step size divided by the size of the meta-batch is the mistake this is about.
    torch.testing.assert_close(sgd_step(start(3), quadratic, 0.1)["x"][:1], sgd_step(start(1), quadratic, 0.1)["x"])


def test_the_given_parameters_are_not_changed():
    params = start()
    sgd_step(params, quadratic, 0.1)
    assert torch.equal(params["x"], start()["x"])


@pytest.mark.parametrize("create_graph", [False, True])
def test_detached_in_detached_out(create_graph):
    assert not sgd_step(start(), quadratic, 0.1, create_graph)["x"].requires_grad


def test_it_steps_under_no_grad_too():
    with torch.no_grad():
        stepped = sgd_step(start(), quadratic, 0.1)
    assert torch.equal(stepped["x"], sgd_step(start(), quadratic, 0.1)["x"])


def jacobian(create_graph: bool) -> torch.Tensor:
    """Of the first task's stepped parameters in its parameters, [2, 2]."""
    return torch.autograd.functional.jacobian(
        lambda x: sgd_step({"x": x.expand(3, 2)}, quadratic, 0.1, create_graph)["x"][2], start(1)["x"][0]
    )


def test_the_jacobian_of_a_first_order_step_is_the_identity():
    torch.testing.assert_close(jacobian(False), torch.eye(2, dtype=torch.float64))


def test_the_jacobian_of_a_second_order_step_has_the_hessian():
    torch.testing.assert_close(jacobian(True), (1 - 0.1 * 5) * torch.eye(2, dtype=torch.float64))


def test_two_second_order_steps_multiply_their_jacobians():
    def twice(x):
        params = {"x": x.expand(3, 2)}
        for _ in range(2):
            params = sgd_step(params, quadratic, 0.1, create_graph=True)
        return params["x"][2]

    j = torch.autograd.functional.jacobian(twice, start(1)["x"][0])
    torch.testing.assert_close(j, 0.25 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("create_graph", [False, True])
def test_frozen_parameters_stay_and_the_others_step_as_before(create_graph):
    params = start() | {"y": TARGET}

    def loss(p):
        return quadratic(p) * (p["y"] ** 2).sum(-1)

    free, frozen = (sgd_step(params, loss, 0.1, create_graph, names) for names in ((), ("y",)))
    assert torch.equal(frozen["y"], TARGET)
    assert torch.equal(frozen["x"], free["x"])
    assert not torch.equal(free["y"], TARGET)


def test_a_loss_that_is_not_one_number_per_task_is_refused():
    with pytest.raises(AssertionError, match=r"\[K\]"):
        sgd_step(start(), lambda p: quadratic(p).mean(), 0.1)


def test_expand_gives_every_task_the_same_parameters():
    assert torch.equal(expand({"x": TARGET}, 4)["x"], torch.stack([TARGET] * 4))


def test_the_gradient_of_expanded_parameters_is_the_sum_over_tasks():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(quadratic(expand({"x": x}, 3)).sum(), x)
    torch.testing.assert_close(gradient, -(C[:, None] * TARGET).sum(0))


# ---------------------------------------------------------------------------------------------------------------------
# On real data

families = pytest.mark.parametrize("family", [Drift(), TwoArms(), Locks()], ids=["gaussian", "categorical", "several"])
CONFIG = maml_trpo.Config(n_tasks=4, episodes=5, hidden=(6,), inner_lr=0.3, adapt_std=True)


@families
def test_batched_adaptation_equals_task_by_task(family):
    sampler, policy, state = setup(family, CONFIG)
    batch, params = stages(CONFIG, sampler, policy, state.params)[0], random_params(policy, 4)
    both = loop.detached_step(CONFIG, policy, params, loop.InnerStep(batch, 0.3))[0]
    for k in range(4):
        own = {name: value[k : k + 1] for name, value in params.items()}
        alone = loop.detached_step(CONFIG, policy, own, loop.InnerStep(batch[k : k + 1], 0.3))[0]
        for name, value in both.items():
            torch.testing.assert_close(value[k : k + 1], alone[name], atol=1e-6, rtol=1e-5)


@families
def test_adaptation_moves_down_the_finite_difference_gradient_of_the_inner_loss(family):
    sampler, policy, state = setup(family, CONFIG)
    batch, params = stages(CONFIG, sampler, policy, state.params)[0], random_params(policy, 4)
    params = {name: value.double() for name, value in params.items()}
    (data,) = double([batch])
    stepped = loop.detached_step(CONFIG, policy, params, loop.InnerStep(data, 0.3))[0]
    for name, value in params.items():
        # One direction per tensor and task: all tasks at once, because each loss depends on its own slice only.
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        up, down = (
            loop.inner_loss(CONFIG, policy, loop.InnerStep(data, 0.0), params | {name: value + h * direction})
            for h in (1e-5, -1e-5)
        )  # fmt: skip
        want = -0.3 * (up - down) / 2e-5
        torch.testing.assert_close(((stepped[name] - value) * direction).flatten(1).sum(1), want, atol=1e-8, rtol=1e-6)


def test_the_std_adapts_only_where_it_is_asked_to():
    sampler, policy, state = setup(Drift(), CONFIG)
    batch, params = stages(CONFIG, sampler, policy, state.params)[0], random_params(policy, 4)
    for adapt_std in (False, True):
        stepped = loop.detached_step(replace(CONFIG, adapt_std=adapt_std), policy, params, loop.InnerStep(batch, 0.3))[
            0
        ]
        assert torch.equal(stepped["log_std"], params["log_std"]) != adapt_std
