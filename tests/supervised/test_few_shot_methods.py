"""Few-shot methods: the meta-gradient by finite differences, what adapts, and the outer step by hand."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from supervised_twins import (
    FAMILY,
    NETWORK,
    blobs,
    double,
    finite_differences,
    gradient,
    mean_query_loss,
    plain_loss,
    plain_step,
    sinusoids,
    small,
    start,
)
from torch import nn

from metarl.inner.learned import learned_sizes
from metarl.params import Params
from metarl.supervised import Sets, Sinusoid, maml, method
from metarl.supervised.maml import Config, State
from metarl.supervised.networks import MLPNetwork, ModuleNetwork


def meta_parameters(config: Config, network: Any = NETWORK) -> Params:
    """The network's and the learned ones, these away from their initial values."""
    params = start(network)
    learned = learned_sizes(config.learned_lr, params, config.moving(params), config.inner_steps)
    noise = torch.Generator().manual_seed(5)
    return params | {n: v + 0.2 * torch.randn(v.shape, generator=noise).double() for n, v in learned.items()}


def assert_same(got: Params, want: Params, rtol: float = 1e-6, atol: float = 1e-8) -> None:
    assert list(got) == list(want)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


SECOND_ORDER: dict[str, dict[str, Any]] = {
    "maml": {},
    "maml, three steps": {"inner_steps": 3},
    "momentum": {"inner_steps": 3, "inner_optimizer": "momentum"},
    "adam": {"inner_steps": 2, "inner_optimizer": "adam"},
    "anil": {"inner_steps": 2, "adapts": "head"},
    "one learned step size": {"inner_steps": 2, "learned_lr": "scalar"},
    "meta-sgd": {"inner_steps": 2, "learned_lr": "per_parameter"},
    "maml++": {"inner_steps": 3, "learned_lr": "per_layer_and_step", "multi_step_until": 10},
    "pretrained": {"inner_steps": 0},
}


@pytest.mark.parametrize("settings", SECOND_ORDER.values(), ids=SECOND_ORDER)
def test_the_meta_gradient_is_that_of_finite_differences(settings):
    config, sets = small(**settings), sinusoids()
    function = partial(mean_query_loss, config, sets, iteration=4)
    meta = meta_parameters(config)
    assert_same(gradient(function, meta), finite_differences(function, meta))


@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_so_it_is_for_the_other_losses(loss):
    network = MLPNetwork((2,), 3, (4,), "tanh")
    family, config = blobs(), small(inner_steps=2)
    sets = double(family.sample(2, np.random.default_rng(0), "train", 2, 2))
    if loss == "bce":
        one_hot = [torch.nn.functional.one_hot(y, 3).double() for y in (sets.y_support, sets.y_query)]
        sets = replace(sets, y_support=one_hot[0], y_query=one_hot[1])
        family = replace(family, loss="bce")
    function = partial(mean_query_loss, config, sets, network=network, family=family)
    meta = start(network)
    assert_same(gradient(function, meta), finite_differences(function, meta), rtol=1e-5, atol=1e-7)


def held_gradient_form(config: Config, sets: Sets, base: Params) -> Any:
    """The query loss as a function of the meta-parameters whose inner gradients are constants: those at `base`."""
    steps: list[list[Params]] = []
    for k in range(sets.n_tasks):
        params, own = {n: v.requires_grad_() for n, v in base.items()}, []
        for _ in range(config.inner_steps):
            new = plain_step(params, sets.x_support[k], sets.y_support[k], config.inner_lr)
            own.append({n: (new[n] - params[n]).detach() for n in params})
            params = new
        steps.append(own)

    def function(meta: Params) -> torch.Tensor:
        losses = [plain_loss({n: v + sum(step[n] for step in own) for n, v in meta.items()}, sets.x_query[k],
                             sets.y_query[k]) for k, own in enumerate(steps)]  # fmt: skip
        return torch.stack(losses).mean()

    return function


@pytest.mark.parametrize("settings", [{"first_order": True}, {"first_order_until": 5}], ids=["fomaml", "annealed"])
def test_first_order_is_the_gradient_with_the_inner_gradients_held(settings):
    config, sets = small(inner_steps=3, **settings), sinusoids()
    meta = start()
    got = gradient(partial(mean_query_loss, config, sets, iteration=4), meta)
    want = finite_differences(held_gradient_form(config, sets, start()), {n: v.detach() for n, v in meta.items()})
    assert_same(got, want)


def test_first_order_is_another_gradient_and_ends_when_it_should():
    # The control: were both forms the same here, the tests above would say nothing.
    sets, meta = sinusoids(), start()
    first, second = (gradient(partial(mean_query_loss, small(first_order=f), sets), meta) for f in (True, False))
    assert max(float((first[n] - second[n]).abs().max()) for n in meta) > 0.01
    annealed = small(first_order_until=5)
    assert_same(gradient(partial(mean_query_loss, annealed, sets, iteration=4), meta), first)
    assert_same(gradient(partial(mean_query_loss, annealed, sets, iteration=5), meta), second)


def test_a_batch_is_a_loop_over_tasks():
    config, sets, params = small(inner_steps=2), sinusoids(), start()
    got = maml.query_loss(config, FAMILY, NETWORK, params, sets, 0)
    for k in range(3):
        adapted = {name: value.clone().requires_grad_() for name, value in params.items()}
        for _ in range(2):
            adapted = plain_step(adapted, sets.x_support[k], sets.y_support[k], 0.3)
        torch.testing.assert_close(got[k], plain_loss(adapted, sets.x_query[k], sets.y_query[k]).detach())


def test_the_step_does_not_depend_on_how_many_tasks_there_are():
    sets = sinusoids(n=6)
    state = State(start())
    many = maml.evaluate(small(), FAMILY, NETWORK, state, sets, [0.3, 0.3])
    one = maml.evaluate(small(), FAMILY, NETWORK, state, sets[2:3], [0.3, 0.3])
    torch.testing.assert_close(one.losses[0], many.losses[2])
    for name, value in one.params.items():
        torch.testing.assert_close(value[0], many.params[name][2])


def test_nor_on_how_many_examples_say_the_same():
    sets = sinusoids()
    twice = replace(sets, x_support=sets.x_support.repeat(1, 2, 1), y_support=sets.y_support.repeat(1, 2, 1))
    once, again = (maml.evaluate(small(), FAMILY, NETWORK, State(start()), s, [0.3]) for s in (sets, twice))
    torch.testing.assert_close(once.losses, again.losses)


def test_a_curve_is_that_of_plain_steps_on_the_support_set_measured_on_the_query_set():
    sets, params = sinusoids(n=1), start()
    got = maml.evaluate(small(), FAMILY, NETWORK, State(params), sets, [0.3, 0.1]).losses[0]
    adapted = [{name: value.clone().requires_grad_() for name, value in params.items()}]
    for lr in (0.3, 0.1):
        adapted.append(plain_step(adapted[-1], sets.x_support[0], sets.y_support[0], lr))
    want = [plain_loss(p, sets.x_query[0], sets.y_query[0]).detach() for p in adapted]
    torch.testing.assert_close(got, torch.stack(want))


def test_momentum_is_carried_from_step_to_step():
    sets, params, config = sinusoids(n=1), start(), small(inner_steps=3, inner_optimizer="momentum", inner_momentum=0.8)
    own = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimizer, want = torch.optim.SGD(own.values(), lr=0.3, momentum=0.8), []
    for _ in range(3):
        optimizer.zero_grad()
        plain_loss(own, sets.x_support[0], sets.y_support[0]).backward()
        optimizer.step()
        want.append(plain_loss(own, sets.x_query[0], sets.y_query[0]).item())
    got = maml.evaluate(config, FAMILY, NETWORK, State(params), sets, [0.3] * 3).losses[0]
    assert got[1:].tolist() == pytest.approx(want)
    assert maml.query_loss(config, FAMILY, NETWORK, params, sets, 0).item() == pytest.approx(want[-1])


def test_meta_sgd_s_step_sizes_have_the_gradient_that_the_paper_gives():
    # theta' = theta - a lr g, so dL/da = -lr g dL/dtheta', number by number.
    config, sets, params = small(learned_lr="per_parameter"), sinusoids(n=1), start()
    factors = {f"lr/{name}": torch.full_like(value, 0.7) for name, value in params.items()}
    got = gradient(partial(mean_query_loss, config, sets), params | factors)
    base = {name: value.clone().requires_grad_() for name, value in params.items()}
    moved = plain_step(base, sets.x_support[0], sets.y_support[0], 0.3 * 0.7)
    outer = torch.autograd.grad(plain_loss(moved, sets.x_query[0], sets.y_query[0]), list(moved.values()))
    for (name, new), slope in zip(moved.items(), outer, strict=True):
        torch.testing.assert_close(got[f"lr/{name}"], ((new - base[name]) / 0.7 * slope).detach())


def test_the_multi_step_loss_goes_from_all_steps_to_the_last_one():
    sets, params = sinusoids(), start()
    curve = maml.evaluate(small(), FAMILY, NETWORK, State(params), sets, [0.3] * 3).losses
    config = small(inner_steps=3, multi_step_until=10)
    at = partial(maml.query_loss, config, FAMILY, NETWORK, params, sets)
    torch.testing.assert_close(at(0), curve[:, 1:].mean(1))
    torch.testing.assert_close(at(5), 0.5 * curve[:, 1:].mean(1) + 0.5 * curve[:, 3])
    torch.testing.assert_close(at(10), curve[:, 3])


def test_learned_step_sizes_of_later_steps_than_in_training_are_those_of_the_last():
    sets, params = sinusoids(), start()
    learned = {f"lr_step/{name}": torch.tensor([0.5, 2.0], dtype=torch.float64) for name in params}
    got = maml.evaluate(small(), FAMILY, NETWORK, State(params, learned=learned), sets, [0.1] * 4).losses
    want = maml.evaluate(small(), FAMILY, NETWORK, State(params), sets, [0.05, 0.2, 0.2, 0.2]).losses
    torch.testing.assert_close(got, want)


# ---------------------------------------------------------------------------------------------------------------------
# What adapts


@pytest.mark.parametrize(("adapts", "moved"), [("head", {"w1", "b1"}), ("all", {"w0", "b0", "w1", "b1"})])
def test_anil_moves_the_head_only(adapts, moved):
    params = start()
    found = maml.evaluate(small(adapts=adapts), FAMILY, NETWORK, State(params), sinusoids(), [0.3, 0.3]).params
    assert {name for name, value in found.items() if (value != params[name]).any()} == moved


def test_of_a_module_it_moves_the_last_submodule():
    network = ModuleNetwork(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), (1,), 1)
    params = start(network)
    found = maml.evaluate(small(adapts="head"), FAMILY, network, State(params), sinusoids(), [0.3]).params
    moved = {name for name, value in found.items() if (value != params[name]).any()}
    assert moved == {"module.2.weight", "module.2.bias"}


def test_a_closed_mask_keeps_a_number_where_it_is():
    params = start()
    masks = {f"mask/{name}": torch.full_like(value, 0.5) for name, value in params.items()}
    masks["mask/w0"][0, 1] = -0.1
    found = maml.evaluate(small(), FAMILY, NETWORK, State(params, learned=masks), sinusoids(), [0.3]).params
    assert (found["w0"][:, 0] != params["w0"][0]).all(0).tolist() == [True, False, True, True]


# ---------------------------------------------------------------------------------------------------------------------
# The outer step


def test_the_outer_step_is_torch_s_adam_with_two_step_sizes():
    config = small(learned_lr="per_parameter", anneal_over=4, anneal_to=0.1, outer_lr=0.05, learned_outer_lr=0.02)
    state = maml.init(config, NETWORK, 0)
    leaves = {n: v.clone().requires_grad_() for n, v in (state.params | state.learned).items()}
    groups = [{"params": [leaves[n] for n in part], "lr": lr}
              for part, lr in ((state.params, 0.05), (state.learned, 0.02))]  # fmt: skip
    adam = torch.optim.Adam(groups)
    for i in range(5):
        sets = FAMILY.sample(3, np.random.default_rng([7, i]), "train", 4, 5)
        factor = 0.1 + 0.9 * (1 + np.cos(np.pi * min(i / 4, 1))) / 2
        for group, lr in zip(adam.param_groups, (0.05, 0.02), strict=True):
            group["lr"] = lr * factor
        adam.zero_grad()
        mean_query_loss(config, sets, leaves).backward()
        adam.step()
        state, _ = maml.iteration(config, FAMILY, NETWORK, state, 7)
    for name, value in (state.params | state.learned).items():
        torch.testing.assert_close(value, leaves[name].detach())


def test_a_long_meta_gradient_is_scaled_down():
    config = small(max_grad_norm=0.01)
    state, stats = maml.iteration(config, FAMILY, NETWORK, maml.init(config, NETWORK, 0), 0)
    assert stats["outer/gradient_norm"] > 0.1
    means = torch.cat([v.flatten() for n, v in state.optimizer.items() if n.startswith("mean/")])
    assert means.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)  # Adam's first mean is a tenth of the gradient


def by_hand(params: Params, sets: Sets, order: np.ndarray, steps: int, momentum: float = 0.0) -> list[Params]:
    """Each task's parameters after Reptile's inner steps."""
    out = []
    for k in range(sets.n_tasks):
        x, y = (torch.cat([getattr(sets, f"{s}_{part}")[k] for part in ("support", "query")]) for s in "xy")
        own = {name: value.clone().requires_grad_() for name, value in params.items()}
        optimizer = torch.optim.SGD(own.values(), lr=0.3, momentum=momentum)
        for i in range(steps):
            now = [order[k][j % len(x)] for j in range(4 * i, 4 * i + 4)]
            optimizer.zero_grad()
            plain_loss(own, x[now], y[now]).backward()
            optimizer.step()
        out.append({name: value.detach() for name, value in own.items()})
    return out


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("outer", ["reptile", "reptile_serial"])
def test_reptile_s_update_by_hand(outer, optimizer):
    momentum = 0.9 if optimizer == "momentum" else 0.0
    config = small(outer=outer, inner_steps=3, outer_lr=0.4, inner_optimizer=optimizer)
    state = maml.init(config, NETWORK, 0)
    rng = np.random.default_rng([9, 0])
    sets = FAMILY.sample(3, rng, "train", 4, 5)
    order = rng.permuted(np.tile(np.arange(9), (3, 1)), axis=1)
    want = state.params
    if outer == "reptile":
        ends = by_hand(want, sets, order, 3, momentum)
        want = {n: v + 0.4 * (torch.stack([end[n] for end in ends]).mean(0) - v) for n, v in want.items()}
    else:
        for k in range(3):
            (end,) = by_hand(want, sets[k : k + 1], order[k : k + 1], 3, momentum)
            want = {n: v + 0.4 * (end[n] - v) for n, v in want.items()}
    new, stats = maml.iteration(config, FAMILY, NETWORK, state, 9)
    assert_same(new.params, want, rtol=1e-4, atol=1e-5)
    length = sum(float((want[n] - v).square().sum()) for n, v in state.params.items()) ** 0.5
    assert stats["outer/step_norm"] == pytest.approx(length, rel=1e-4)


def test_reptile_sees_every_example_once_before_any_twice(monkeypatch):
    seen = []
    step = maml.step
    monkeypatch.setattr(maml, "step", lambda *a, **k: (seen.append(a[1].args[2]), step(*a, **k))[1])  # the loss's x
    config = small(outer="reptile", inner_steps=3, queries=8, n_tasks=2)  # 4 + 8 examples, 4 in each step
    maml.iteration(config, FAMILY, NETWORK, maml.init(config, NETWORK, 0), 3)
    sets = FAMILY.sample(2, np.random.default_rng([3, 0]), "train", 4, 8)
    for k in range(2):
        met = torch.cat([x[k, :, 0] for x in seen]).sort().values
        assert torch.equal(met, torch.cat([sets.x_support[k, :, 0], sets.x_query[k, :, 0]]).sort().values)
    assert not torch.equal(torch.cat([x[0, :4, 0] for x in seen[:1]]), sets.x_support[0, :, 0])


def test_an_iteration_depends_on_the_seed_and_its_number_alone():
    config = small()
    state = maml.init(config, NETWORK, 0)
    once, again = (maml.iteration(config, FAMILY, NETWORK, state, 1)[0] for _ in range(2))
    assert all(torch.equal(once.params[n], again.params[n]) for n in once.params)
    # (1, 0), (2, 0) and (1, 1): neither seed and number alone nor their sum.
    others = [maml.iteration(config, FAMILY, NETWORK, replace(state, iteration=i), seed)[0].params["w0"]
              for i, seed in ((0, 2), (1, 1))]  # fmt: skip
    assert not any(torch.equal(once.params["w0"], other) for other in others)
    assert not torch.equal(*others)


def test_what_is_logged_of_the_learned_inner_loop():
    config = small(learned_lr="scalar", learned_mask=True)
    state = maml.init(config, NETWORK, 0)
    state.learned["mask/b0"].fill_(-1.0)
    _, stats = maml.iteration(config, FAMILY, NETWORK, state, 0)
    assert stats["inner/lr_factor"] == pytest.approx(1.0, abs=0.0101)
    assert stats["inner/mask_open"] == pytest.approx(9 / 13)  # 4 biases of 13 numbers are closed


# ---------------------------------------------------------------------------------------------------------------------
# Every method, and steps that are too large


@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile", "anil", "meta_sgd", "maml_plus_plus", "pretrained"])
def test_every_method_learns(name):
    config = Config(**(method(name, 60) | {"n_tasks": 20, "inner_lr": 0.02}))
    network, family = MLPNetwork((1,), 1, (40,), "relu"), Sinusoid(x_range=(-2.0, 2.0), phase=(0.0, 1.0))
    if config.outer == "adam":
        config = replace(config, outer_lr=0.01)
    first = state = maml.init(config, network, 0)
    for _ in range(60):
        state, _ = maml.iteration(config, family, network, state, 0)
    sets = family.sample(200, np.random.default_rng(1), "test", 10, 10)
    before, after = (maml.evaluate(config, family, network, s, sets, [0.02] * config.inner_steps).losses[:, -1].mean()
                     for s in (first, state))  # fmt: skip
    assert after < 0.4 * before


def test_steps_that_are_too_large_are_an_error():
    config = small(inner_lr=1e20, inner_steps=3, activation="relu")
    network = MLPNetwork((1,), 1, (4,), "relu")
    with pytest.raises(ValueError, match=r"meta-gradient of iteration 1 has the norm (nan|inf).*lower inner_lr"):
        maml.iteration(config, FAMILY, network, maml.init(config, network, 0), 0)
