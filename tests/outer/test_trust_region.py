"""The TRPO step: linear algebra against dense solvers, the step against its closed form, the line search's refusals."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from probes import Drift, Locks, TwoArms, double, linearise, setup, stages
from torch import Tensor

from metarl.algorithms import maml_trpo
from metarl.formulas.distributions import Gaussian, kl
from metarl.outer import objective as outer
from metarl.outer.trust_region import (
    Objective,
    Surrogate,
    TrustRegion,
    autograd_jacobian,
    conjugate_gradient,
    flatten,
    trpo_step,
    unflatten,
)
from metarl.params import Params

torch64 = {"dtype": torch.float64}


def spd(n: int, seed: int = 0) -> Tensor:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), **torch64)
    return a @ a.T + torch.eye(n, **torch64)


def vector(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), **torch64)


# ---------------------------------------------------------------------------------------------------------------------
# Linear algebra


def test_flatten_and_unflatten_are_inverse():
    params = {"b": torch.randn(3), "a": torch.randn(2, 4), "c": torch.randn(())}
    back = unflatten(flatten(params), params)
    assert list(back) == list(params)
    assert all(torch.equal(back[name], value) for name, value in params.items())


def test_conjugate_gradient_solves():
    x, _, _ = conjugate_gradient(lambda v: spd(8) @ v, vector(8), 20, 1e-12)
    torch.testing.assert_close(x, torch.linalg.solve(spd(8), vector(8)))


@pytest.mark.parametrize("iterations", [0, 1, 3, 8])
def test_the_residual_is_the_one_of_the_returned_solution(iterations):
    x, residual, _ = conjugate_gradient(lambda v: spd(8) @ v, vector(8), iterations, 0.0)
    torch.testing.assert_close(residual, vector(8) - spd(8) @ x)


def test_one_iteration_is_the_exact_step_down_the_gradient():
    b, a = vector(8), spd(8)
    x, _, _ = conjugate_gradient(lambda v: a @ v, b, 1)
    torch.testing.assert_close(x, b * (b @ b) / (b @ a @ b))


def products_until(tolerance: float, size: float = 1.0) -> int:
    """How many products it takes for a matrix with three different eigenvalues, where three suffice."""
    eigenvalues = torch.tensor([1.0, 1, 1, 2, 2, 3], **torch64)
    return conjugate_gradient(lambda v: eigenvalues * v, size * vector(6), 6, tolerance)[2]


def test_conjugate_gradient_stops_once_it_is_there():
    assert (products_until(1e-6), products_until(0.5)) == (3, 1)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e9])
def test_the_size_of_the_right_hand_side_changes_no_direction(size):
    assert products_until(1e-6, size) == 3
    x, small = (conjugate_gradient(lambda v: spd(8) @ v, s * vector(8), 5)[0] for s in (1.0, size))
    torch.testing.assert_close(small / size, x)


def ill_conditioned() -> tuple[Tensor, Tensor]:
    """A matrix with eigenvalues from 100 to 1e-4, and a right-hand side with a share of each."""
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0), **torch64))[0]
    return rotation * torch.logspace(2, -4, 12, **torch64) @ rotation.T, vector(12)


def rounded(limit: float) -> tuple[float, int]:
    """The cosine of twelve products' direction in float32 with the same number's in float64, and that number."""
    a, b = ill_conditioned()
    x, _, taken = conjugate_gradient(lambda v: (a.float() @ v.float()).double(), b, 12, orthogonality=limit)
    exact, _, _ = conjugate_gradient(lambda v: a @ v, b, taken, orthogonality=math.inf)
    return float(torch.cosine_similarity(x, exact, 0)), taken


def test_conjugate_gradient_stops_before_rounding_decides_its_direction():
    cosine, taken = rounded(0.001)
    assert 4 < taken < 12 and cosine > 0.999
    assert rounded(math.inf)[0] < 0.99, "without the stop the direction is another one"


def test_conjugate_gradient_keeps_what_it_has_where_a_curvature_is_not_positive():
    x, residual, taken = conjugate_gradient(lambda v: torch.tensor([-1.0, -2.0], **torch64) * v, vector(2), 5)
    assert taken == 1 and not x.any() and torch.equal(residual, vector(2))


def test_conjugate_gradient_of_nothing_is_nothing():
    x, _, _ = conjugate_gradient(lambda v: spd(3) @ v, torch.zeros(3, **torch64), 10)
    assert not x.any()


# ---------------------------------------------------------------------------------------------------------------------
# Fisher products of real meta-objectives


def meta_objective(family, by_hand: bool = False, **settings) -> tuple[Objective, Params]:
    """In float64, with the acting distributions recomputed at the very parameters, so that the KL's gradient there is
    zero and not merely small."""
    config = maml_trpo.Config(**{"n_tasks": 3, "episodes": 4, "hidden": (4,), "inner_lr": 0.3, **settings})
    sampler, policy, state = setup(family, config)
    data = double(stages(config, sampler, policy, state.params))
    g = torch.Generator().manual_seed(4)
    learned = {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in state.learned.items()}
    params = {name: value.double() for name, value in (state.params | learned).items()}
    fixed = outer.Constants(held={name: params.pop(name) for name in outer.held(config, state)})
    here = outer.objective(config, policy, data, 3, constants=fixed)(params, False)
    data[-1] = replace(data[-1], rollout=replace(data[-1].rollout, dist=type(here.dist)(*here.dist)))
    return outer.objective(config, policy, data, 3, outer.Outer(by_hand=by_hand), fixed), params


families = pytest.mark.parametrize("family", [Drift(), TwoArms(), Locks()], ids=["gaussian", "categorical", "several"])
orders = pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])


def fisher_by_differentiating_twice(objective: Objective, params: Params, v: Tensor) -> Tensor:
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    gradient = torch.autograd.grad(objective(leaves, True).kl, list(leaves.values()), create_graph=True)
    along = torch.cat([g.reshape(-1) for g in gradient]) @ v
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(along, list(leaves.values()))])


@families
@orders
@pytest.mark.parametrize("adapt_std", [False, True], ids=["std-stays", "std-adapts"])
@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_fisher_product_is_the_kl_differentiated_twice(family, first_order, adapt_std, inner_steps):
    objective, params = meta_objective(family, first_order=first_order, inner_steps=inner_steps, adapt_std=adapt_std)
    v = vector(flatten(params).numel())
    want = fisher_by_differentiating_twice(objective, params, v)
    torch.testing.assert_close(linearise(objective, params, v)[1], want, atol=1e-9, rtol=1e-7)


def assert_same_derivatives(hand: Objective, automatic: Objective, params: Params) -> None:
    """J v, J^T w, the gradient and the Fisher product."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    ours, v = hand(leaves, True), vector(flatten(params).numel())
    assert ours.jacobian is not None
    twin = autograd_jacobian(list(automatic(leaves, True).dist), list(leaves.values()))
    w = [vector(x.numel(), 3).reshape(x.shape) for x in ours.dist]
    close = {"atol": 1e-11, "rtol": 1e-8}
    torch.testing.assert_close(tuple(ours.jacobian.jvp(v)), tuple(twin.jvp(v)), **close)
    torch.testing.assert_close(ours.jacobian.vjp(w), twin.vjp(w), **close)
    torch.testing.assert_close(linearise(hand, params, v), linearise(automatic, params, v), **close)


@families
@orders
@pytest.mark.parametrize(
    "settings",
    [
        {"inner_steps": 0},
        {"inner_steps": 1},
        {"inner_steps": 2, "adapt_std": True},
        {"hidden": ()},
        {"hidden": (4, 5), "activation": "relu"},
        {"hidden": (4, 5), "activation": "elu", "adapt_std": True},
        {"hidden": (4, 5), "inner_steps": 3},
        {"hidden": (12, 10), "inner_steps": 2},  # narrow layers are multiplied in another layout than wide ones
        {"hidden": (12, 5), "activation": "relu"},
        {"hidden": (12,), "activation": "elu"},
        {"learned_lr": "scalar", "inner_steps": 2},
        {"learned_lr": "per_layer_and_step", "inner_steps": 2, "adapt_std": True},
        {"learned_lr": "per_parameter", "inner_steps": 3},
        {"learned_lr": "per_parameter", "learned_mask": True},
        {"learned_mask": True, "inner_steps": 2},
        {"adapts": "head", "inner_steps": 2, "hidden": (4, 5)},
        {"learned_std": False, "inner_steps": 2, "learned_lr": "per_layer_and_step", "adapt_std": True},
        {"inner_gradient": "lvc", "inner_steps": 2},
        {"inner_gradient": "dice", "inner_steps": 2},
        {"inner_gradient": "loaded_dice", "dice_lambda": 0.5},
        {"lr_schedule": (1.0, 0.5), "inner_steps": 3},
    ],
    ids=str,
)
def test_derivatives_by_hand_are_the_automatic_ones(family, first_order, settings):
    hand, params = meta_objective(family, by_hand=True, first_order=first_order, **settings)
    automatic, _ = meta_objective(family, by_hand=False, first_order=first_order, **settings)
    assert_same_derivatives(hand, automatic, params)


@orders
@pytest.mark.parametrize(
    "settings",
    [{"inner_steps": 2}, {"learned_lr": "scalar", "adapt_std": True}, {"inner_steps": 0}, {"learned_std": False}],
    ids=str,
)
def test_derivatives_by_hand_are_the_automatic_ones_where_the_noise_is_learned(first_order, settings):
    settings = {"learned_noise": True, "first_order": first_order, **settings}
    hand, params = meta_objective(Drift(), by_hand=True, **settings)
    assert "noise" in params
    assert_same_derivatives(hand, meta_objective(Drift(), by_hand=False, **settings)[0], params)


@pytest.mark.parametrize("adapt_std", [False, True])
@pytest.mark.parametrize("log_std", [[-1.0, -5.0], [-5.0, -5.0]], ids=["one", "both"])
def test_derivatives_by_hand_are_the_automatic_ones_below_the_floor_of_the_std(log_std, adapt_std):
    hand, automatic = (
        meta_objective(Drift(), by_hand=by_hand, min_std=0.1, init_std=0.2, adapt_std=adapt_std)
        for by_hand in (True, False)
    )
    assert_same_derivatives(hand[0], automatic[0], hand[1] | {"log_std": torch.tensor(log_std, **torch64)})


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_std_below_its_floor_has_the_derivatives_of_one_on_it(by_hand):
    objective, params = meta_objective(Drift(), by_hand=by_hand, min_std=0.1, init_std=0.2)
    below, on = (params | {"log_std": torch.tensor([-1.0, x], **torch64)} for x in (-5.0, math.log(0.1)))
    v = vector(flatten(params).numel())
    for low, floor in zip(linearise(objective, below, v), linearise(objective, on, v), strict=True):
        torch.testing.assert_close(low, floor, rtol=1e-9, atol=1e-12)
        assert (unflatten(low, params)["log_std"] != 0).all()


@pytest.mark.parametrize("by_hand", [True, False])
def test_the_inner_step_is_part_of_the_fisher_matrix(by_hand):
    # Negative control of the tests above: without the inner gradient's own derivative the product is another one.
    objectives = [meta_objective(Drift(), by_hand=by_hand, first_order=first_order) for first_order in (False, True)]
    v = vector(flatten(objectives[0][1]).numel())
    second, first = (linearise(objective, params, v)[1] for objective, params in objectives)
    assert (second - first).norm() > 0.01 * second.norm()


# ---------------------------------------------------------------------------------------------------------------------
# The step, on objectives whose KL is exactly a quadratic

D, T, A = 3, 4, 2  # parameters, states, action dimensions
START = {"x": vector(D, 7), "log_std": torch.tensor([0.3, -0.2], **torch64)}


def linear(seed: int, bend: Callable[[Tensor], Tensor] = lambda x: x, extra: float = 0.0) -> Objective:
    """A Gaussian whose mean is linear in x (unless `bend` bends it) and a loss g.x + extra * |x - start|^2."""
    w, g, weight = vector(T * A * D, seed).reshape(T * A, D), vector(D, seed + 1), vector(T, seed + 2).abs()

    def evaluate(params: Params, differentiable: bool) -> Surrogate:
        dx = params["x"] - START["x"]
        dist = Gaussian((w @ bend(dx)).reshape(1, T, 1, A), params["log_std"].reshape(1, 1, 1, A))
        old = Gaussian(torch.zeros_like(dist.mean), START["log_std"].reshape(1, 1, 1, A))
        weights = weight.reshape(1, T, 1)
        loss = g @ params["x"] + extra * dx @ dx + 0 * params["log_std"].sum()
        return Surrogate(loss, (weights * kl(old, dist)).sum(), dist, weights)

    return evaluate


def dense(seed: int) -> tuple[Tensor, Tensor]:
    """The gradient and the Fisher matrix in x, of `linear(seed)`."""
    w, g, weight = vector(T * A * D, seed).reshape(T, A, D), vector(D, seed + 1), vector(T, seed + 2).abs()
    return g, torch.einsum("t,a,tad,tae->de", weight, (-2 * START["log_std"]).exp(), w, w)


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("seeds", [(0,), (0, 10, 20)], ids=["one-chunk", "three-chunks"])
def test_the_step_hits_the_closed_form(seeds, damping):
    # min g.x on x'Fx / 2 <= max_kl: x = -sqrt(2 max_kl / g'F^-1 g) F^-1 g, with the damped F in the place of F.
    new, stats = trpo_step(START, [linear(s) for s in seeds], TrustRegion(0.02, damping, cg_iterations=20))
    g, f = (torch.stack(parts).sum(0) for parts in zip(*map(dense, seeds), strict=True))
    f = f + damping * torch.eye(D, **torch64)
    direction = torch.linalg.solve(f, g)
    want = -torch.sqrt(2 * 0.02 / (g @ direction)) * direction * 0.8 ** stats["backtracks"]
    torch.testing.assert_close(new["x"] - START["x"], want, rtol=1e-5, atol=1e-7)
    assert stats["backtracks"] <= 1  # the very first candidate lies on the boundary, give or take rounding


@pytest.mark.parametrize("kept", [None, 0, 1])
def test_with_other_objectives_for_the_fisher_products_only_the_direction_is_theirs(kept):
    # Gradient, loss and KL of the first two, Fisher matrix of the third: the closed form again.
    objectives, fisher = [linear(0), linear(10)], [linear(20), linear(30), linear(40)]
    new, stats = trpo_step(START, objectives, TrustRegion(0.02, 0.0, 20, 60), kept_chunks=kept, fisher=fisher)
    g, f = dense(0)[0] + dense(10)[0], sum(dense(seed)[1] for seed in (20, 30, 40))
    direction = torch.linalg.solve(f, g)
    want = -torch.sqrt(2 * 0.02 / (g @ direction)) * direction * 0.8 ** stats["backtracks"]
    torch.testing.assert_close(new["x"] - START["x"], want, rtol=1e-5, atol=1e-7)
    there = [objective(new, False) for objective in objectives]
    assert stats["kl"] == pytest.approx(sum(x.kl.item() for x in there)) and stats["kl"] <= 0.02
    assert stats["loss_after"] == pytest.approx(sum(x.loss.item() for x in there))


def test_the_step_takes_every_parameter_along():
    # A loss in log_std alone, against the Fisher matrix 2 * (sum of weights) * 1.
    weight = vector(T, 2).abs().sum()

    def objective(params: Params, differentiable: bool) -> Surrogate:
        return replace(linear(0)(params, differentiable), loss=3 * params["log_std"][0] + 0 * params["x"].sum())

    new, stats = trpo_step(START, [objective], TrustRegion(1e-6, 0.0))
    want = torch.tensor([-torch.sqrt(2 * 1e-6 / (2 * weight)), 0.0], **torch64) * 0.8 ** stats["backtracks"]
    torch.testing.assert_close(new["log_std"] - START["log_std"], want, rtol=1e-5, atol=1e-12)


def test_a_short_solve_still_fills_the_trust_region():
    # After one iteration the direction is the plain gradient; its length must come from the same matrix.
    new, stats = trpo_step(START, [linear(0)], TrustRegion(0.02, 0.0, cg_iterations=1))
    g, f = dense(0)
    want = -torch.sqrt(2 * 0.02 / (g @ f @ g)) * g * 0.8 ** stats["backtracks"]
    torch.testing.assert_close(new["x"] - START["x"], want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kept", [None, 1])
def test_the_statistics_are_those_of_all_chunks_at_the_new_parameters(kept):
    objectives = [linear(0), linear(10), linear(20)]
    new, stats = trpo_step(START, objectives, TrustRegion(0.02), kept_chunks=kept)
    there, here = ([objective(params, False) for objective in objectives] for params in (new, START))
    gradient = dense(0)[0] + dense(10)[0] + dense(20)[0]
    want = {
        "loss_before": sum(x.loss.item() for x in here),
        "loss_after": sum(x.loss.item() for x in there),
        "kl": sum(x.kl.item() for x in there),
        "gradient_norm": gradient.norm().item(),
    }
    assert {name: stats[name] for name in want} == pytest.approx(want)
    assert stats["accepted"] is True


def bent(dx: Tensor) -> Tensor:
    """The identity to first order; a hundred times steeper a little further out."""
    return dx + 1e4 * dx * dx.norm() ** 2


def test_the_line_search_stays_within_the_trust_region_where_the_quadratic_is_wrong():
    objective = linear(0, bent)
    new, stats = trpo_step(START, [objective], TrustRegion(0.02, max_backtracks=40))
    assert stats["accepted"]
    assert objective(new, False).kl <= 0.02
    assert stats["backtracks"] > 1
    assert new["x"].ne(START["x"]).all()


def test_the_line_search_takes_the_first_candidate_that_will_do():
    # The candidates are start + 0.8^i * step: the one before the one taken must be out of bounds.
    objective = linear(0, bent)
    new, _ = trpo_step(START, [objective], TrustRegion(0.02, max_backtracks=40))
    before = {name: START[name] + (new[name] - START[name]) / 0.8 for name in START}
    assert objective(before, False).kl > 0.02


def barrier(params: Params, differentiable: bool) -> Surrogate:
    """Flat where it starts, and no number anywhere else."""
    here = linear(0)(params, differentiable)
    dx = params["x"] - START["x"]
    return replace(here, loss=here.loss + torch.log(1 - 1e12 * dx @ dx))


refusals = pytest.mark.parametrize(
    "objective",
    [linear(0, bent), linear(0, extra=1e6), barrier, linear(0, lambda dx: dx * (1 + 1e30 * dx**2))],
    ids=["kl too large", "loss no lower", "loss not a number", "kl infinite"],
)


@refusals
def test_a_refused_step_gives_the_old_parameters_back(objective):
    new, _ = trpo_step(START, [objective], TrustRegion(0.02, max_backtracks=3))
    assert all(torch.equal(new[name], START[name]) for name in START)


@refusals
def test_a_refused_step_says_so(objective):
    _, stats = trpo_step(START, [objective], TrustRegion(0.02, max_backtracks=3))
    assert (stats["accepted"], stats["kl"], stats["backtracks"]) == (False, 0.0, 3)


def test_a_flat_objective_moves_nothing():
    def flat(params: Params, differentiable: bool) -> Surrogate:
        return replace(linear(0)(params, differentiable), loss=0 * (params["x"].sum() + params["log_std"].sum()))

    new, stats = trpo_step(START, [flat], TrustRegion(0.02))
    assert not stats["accepted"]
    assert torch.equal(new["x"], START["x"])


def test_the_new_parameters_are_data():
    given = {name: value.clone() for name, value in START.items()}
    new, _ = trpo_step(given, [linear(0)], TrustRegion(0.02))
    assert not any(value.requires_grad for value in new.values())
    assert all(torch.equal(given[name], START[name]) for name in START)


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
def test_rebuilding_graphs_changes_nothing(kept):
    objectives = [linear(s) for s in (0, 10, 20)]
    new, stats = trpo_step(START, objectives, TrustRegion(0.02), kept_chunks=kept)
    want, want_stats = trpo_step(START, objectives, TrustRegion(0.02))
    assert all(torch.equal(new[name], want[name]) for name in START)
    assert stats == want_stats


def test_the_number_of_threads_changes_nothing():
    objectives = [linear(s) for s in (0, 10, 20)]
    want, _ = trpo_step(START, objectives, TrustRegion(0.02))
    torch.set_num_threads(2)
    new, _ = trpo_step(START, objectives, TrustRegion(0.02), kept_chunks=2)
    assert all(torch.equal(new[name], want[name]) for name in START)
