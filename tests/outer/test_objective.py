"""The meta-objective and its gradient, against a slow twin with formulas of its own and its finite differences."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from probes import Drift, Locks, Signs, TwoArms, problem
from slow_objective import SlowObjective
from torch import Tensor

from metarl import parallel
from metarl.algorithms import maml_trpo, maml_vpg, promp
from metarl.formulas import losses
from metarl.inner.learned import split
from metarl.inner.loop import lr_unit
from metarl.inner.loss import Batch
from metarl.outer import objective
from metarl.outer.adam import adam_init, adam_steps
from metarl.outer.exploration import credits, gain
from metarl.outer.objective import Constants, Outer
from metarl.outer.trust_region import flatten, value_and_gradient
from metarl.params import Params

SMALL = {"n_tasks": 2, "episodes": 3, "hidden": (2,), "inner_lr": 0.3, "output_gain": 0.3, "gamma": 0.9}
FAMILIES = {"gaussian": Drift(), "categorical": TwoArms(), "several": Locks()}
families = pytest.mark.parametrize("family", FAMILIES)
ways = pytest.mark.parametrize("by_hand", [True, False], ids=["by-hand", "autograd"])


def apart(params: Params, spread: float = 0.05) -> Params:
    """Parameters near the acting ones: ratios differ from one, divergences from zero."""
    g = torch.Generator().manual_seed(11)
    return {name: value + spread * torch.randn(value.shape, generator=g).double() for name, value in params.items()}


def compare(
    family: str, by_hand: bool = True, iteration: int = 0, clip: float | None = None, inner_kl: float = 0.0,
    ratio: bool = True, **settings,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The meta-gradient, and the finite differences of the slow twin. Asserts that their values are the same."""
    config = maml_trpo.Config(**(SMALL | settings))
    policy, state, data = problem(FAMILIES[family], config)
    loss = losses.surrogate if clip is None else partial(losses.clipped_surrogate, clip=clip)
    kind = Outer(loss if ratio else maml_vpg.on_policy, inner_kl, by_hand)
    fixed = Constants(lr_unit(config, state.params), iteration, objective.held(config, state))
    scores = credits(config, data, iteration)
    ours = objective.objective(config, policy, data, config.n_tasks, kind, fixed, scores)
    at = apart(objective.trained(config, state))
    slow = SlowObjective(config, policy, data, fixed.held | at, fixed.unit, iteration, clip, inner_kl, ratio)
    value, gradient = value_and_gradient([ours], at)
    assert value == pytest.approx(float(slow(fixed.held | at)), rel=1e-9, abs=1e-12)
    assert value == pytest.approx(float(ours(at, False).loss), rel=1e-9, abs=1e-12)
    along = directions(at)
    ends = [[slow(fixed.held | shifted(at, d, h)) for h in (1e-5, -1e-5)] for d in along]
    want = [(plus - minus) / 2e-5 for plus, minus in ends]
    return torch.stack([flatten(gradient) @ flatten(d) for d in along]), torch.stack(want)


def directions(at: Params) -> list[Params]:
    """Random ones: through the policy's parameters, and through what is learned about the inner loop, if anything. What
    is wrong in any one number shows in them."""
    g = torch.Generator().manual_seed(12)
    draws = {name: torch.randn(value.shape, generator=g).double() for name, value in at.items()}
    learned = split(at)[1]
    kinds = [{n: d if (n in learned) == which else 0 * d for n, d in draws.items()} for which in (False, True)]
    return kinds if learned else kinds[:1]


def shifted(at: Params, direction: Params, h: float) -> Params:
    return {name: value + h * direction[name] for name, value in at.items()}


close = {"atol": 2e-8, "rtol": 1e-6}

INNER = [
    {"inner_steps": 0},
    {},
    {"inner_steps": 2, "lr_schedule": (0.5, 1.5)},
    {"lr_in_std": True, "init_std": 0.5},
    {"learned_lr": "scalar", "inner_steps": 2},
    {"learned_lr": "per_layer_and_step", "inner_steps": 2},
    {"learned_lr": "per_parameter", "inner_steps": 2, "adapt_std": True},
    {"learned_lr": "per_parameter", "first_order": True, "inner_steps": 2},
    {"learned_std": False, "inner_steps": 2, "learned_lr": "scalar", "init_std": 0.5, "lr_in_std": True},
    {"learned_std": False, "adapt_std": True, "inner_steps": 2},
    {"learned_mask": True, "inner_steps": 2},
    {"learned_mask": True, "learned_lr": "per_parameter"},
    {"adapts": "head", "inner_steps": 2},
    {"adapts": "head", "learned_lr": "per_layer_and_step", "adapt_std": True},
    {"context": 2, "inner_steps": 2},
    {"adapts": "context", "context": 2, "inner_steps": 2},
    {"adapts": "context", "context": 2, "learned_lr": "per_parameter"},
    {"inner_gradient": "lvc", "inner_steps": 2},
    {"inner_gradient": "dice", "inner_steps": 2},
    {"inner_gradient": "loaded_dice", "dice_lambda": 0.6, "inner_steps": 2},
    {"loss_per": "episode", "inner_steps": 2},
    {"loss_per": "episode", "inner_gradient": "dice"},
    {"inner_optimizer": "momentum", "inner_momentum": 0.8, "inner_steps": 3},
    {"inner_optimizer": "momentum", "first_order": True, "inner_steps": 2},
    {"inner_optimizer": "adam", "inner_lr": 0.1, "inner_steps": 2},
    {"inner_optimizer": "adam", "inner_lr": 0.1, "inner_steps": 2, "inner_adam_eps": 1e-2},
    {"inner_optimizer": "natural", "natural_damping": 0.3, "inner_lr": 0.1, "inner_steps": 2, "adapt_std": True},
    {"inner_optimizer": "natural", "first_order": True, "inner_steps": 2},
    {"inner_optimizer": "natural", "adapts": "head", "learned_lr": "scalar", "natural_damping": 0.05},
    {"learned_discount": True, "inner_steps": 2},
    {"learned_lambda": True, "gae_lambda": 0.7},
    {"learned_discount": True, "learned_lambda": True, "gae_lambda": 0.7, "inner_gradient": "lvc"},
    {"learned_discount": True, "inner_optimizer": "momentum", "learned_lr": "scalar", "inner_steps": 2},
]


@pytest.mark.parametrize("family", ["gaussian", "several"])
@pytest.mark.parametrize("settings", INNER, ids=str)
def test_the_meta_gradient_through_every_inner_step(family, settings):
    got, want = compare(family, **settings)
    torch.testing.assert_close(got, want, **close)


OUTER = [
    {"inner_kl": 0.7},
    {"inner_kl": 0.7, "inner_steps": 2},
    {"inner_kl": 0.7, "first_order": True, "inner_steps": 2},
    {"exploration": 1.5},
    {"exploration": 1.5, "inner_steps": 2},
    {"exploration": 1.5, "inner_kl": 0.7, "learned_lr": "per_parameter"},
    {"exploration": 1.5, "adapts": "context", "context": 2},
    {"exploration": 1.5, "multi_step_until": 8, "inner_steps": 3, "iteration": 2},
    {"exploration": 1.5, "inner_steps": 2, "loss_per": "episode"},
    {"clip": 0.02},
    {"clip": 0.02, "loss_per": "episode"},
    {"clip": 0.02, "inner_gradient": "lvc", "inner_steps": 2},
    {"ratio": False, "inner_steps": 2},
    {"multi_step_until": 8, "inner_steps": 3},
    {"multi_step_until": 8, "inner_steps": 3, "iteration": 2},
    {"multi_step_until": 8, "inner_steps": 3, "iteration": 8},
    {"first_order_until": 5, "inner_steps": 2, "iteration": 4},
    {"first_order_until": 5, "inner_steps": 2, "iteration": 5},
    {"inner_gradient": "lvc", "clip": 0.02, "inner_kl": 0.7, "inner_steps": 2},
    {"learned_lr": "per_layer_and_step", "clip": 0.02, "multi_step_until": 8, "inner_steps": 3, "iteration": 4},
]  # fmt: skip


@families
@pytest.mark.parametrize("settings", OUTER, ids=str)
def test_the_meta_gradient_of_every_outer_loss(family, settings):
    got, want = compare(family, **settings)
    torch.testing.assert_close(got, want, **close)


@pytest.mark.parametrize("family", ["gaussian", "several"])
@pytest.mark.parametrize("settings", [{"learned_lr": "per_parameter"}, {"exploration": 1.5}, {"clip": 0.02}], ids=str)
def test_automatic_derivatives_where_they_are_known_by_hand(family, settings):
    got, want = compare(family, by_hand=False, **settings)
    torch.testing.assert_close(got, want, **close)


PLAIN = Outer()


def gradient_of(iteration: int = 0, kind: Outer = PLAIN, parts: int = 1, **settings) -> Params:
    """The meta-gradient apart from the acting parameters, with the data of the settings' plain counterpart."""
    config = maml_trpo.Config(**(SMALL | {"n_tasks": 4, "inner_steps": 2, "inner_gradient": "lvc"} | settings))
    policy, state, data = problem(FAMILIES["gaussian"], config)
    scores, n = credits(config, data, iteration), config.n_tasks // parts
    chunks = [slice(i * n, (i + 1) * n) for i in range(parts)]
    objectives = [
        objective.objective(
            config, policy, [b[c] for b in data], 4, kind, Constants(iteration=iteration), scores=[x[c] for x in scores]
        )
        for c in chunks
    ]
    return value_and_gradient(objectives, apart(objective.trained(config, state)))[1]


CHANGES = [
    ({}, Outer(inner_kl=0.7)),
    ({}, Outer(partial(losses.clipped_surrogate, clip=0.02))),
    ({}, Outer(maml_vpg.on_policy)),
    ({"exploration": 1.5}, Outer()),
    ({"loss_per": "episode"}, Outer()),
    ({"multi_step_until": 8}, Outer()),
    ({"first_order_until": 1}, Outer()),
    ({"inner_gradient": "policy_gradient"}, Outer()),
    ({"inner_gradient": "dice"}, Outer()),
    ({"inner_gradient": "loaded_dice"}, Outer()),
]


@pytest.mark.parametrize(
    ("settings", "kind"), CHANGES, ids=lambda value: str(value) if isinstance(value, dict) else None
)
def test_every_one_of_them_makes_a_difference(settings, kind):
    # The control: a setting that is dropped on the way would agree with a slow twin that drops it too.
    plain, changed = flatten(gradient_of()), flatten(gradient_of(kind=kind, **settings))
    assert (plain - changed).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize("settings", [{"exploration": 1.5}, {"multi_step_until": 8}, {"learned_lr": "per_parameter"}])
def test_the_sum_of_the_chunks_is_the_whole(settings):
    kind = Outer(inner_kl=0.7)
    whole, two = (flatten(gradient_of(kind=kind, parts=parts, **settings)) for parts in (1, 2))
    torch.testing.assert_close(two, whole, atol=1e-12, rtol=1e-10)


def test_the_objectives_of_an_iteration_are_cut_as_the_tasks_are(monkeypatch):
    # Every chunk has to get its own tasks' credit.
    config = maml_trpo.Config(**(SMALL | {"n_tasks": 4, "exploration": 1.5}))
    policy, state, data = problem(Drift(), config)
    whole = value_and_gradient(objective.objectives(config, policy, data, state), objective.trained(config, state))
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 8 * 3)
    parts = objective.objectives(config, policy, data, state)
    cut = value_and_gradient(parts, objective.trained(config, state))
    assert len(parts) == 4
    assert cut[0] == pytest.approx(whole[0], abs=1e-12)
    torch.testing.assert_close(flatten(cut[1]), flatten(whole[1]), atol=1e-12, rtol=1e-10)


def earning(first: list[list[float]], lengths: list[list[int]], scale: float = 1.0) -> Batch:
    """Two episodes of each task, which earn `first` in their first step and nothing later."""
    _, _, data = problem(Drift(), maml_trpo.Config(**(SMALL | {"n_tasks": len(first), "episodes": 2})))
    rollout = data[-1].rollout
    rew, steps = torch.zeros_like(rollout.rew), torch.arange(rollout.rew.shape[1])
    rew[:, 0] = torch.tensor(first, dtype=torch.float64)
    mask = (steps[:, None] < torch.tensor(lengths)[:, None]).double()
    scales = torch.full_like(data[-1].scale, scale)
    return replace(data[-1], rollout=replace(rollout, rew=rew, mask=mask), scale=scales)


FULL = [[8, 8], [8, 8], [8, 8]]


def test_a_gain_by_hand():
    # Mean returns of 1, 2 and 6; those of the other two tasks are 4, 3.5 and 1.5. Eight steps, advantages over 5.
    batch = earning([[0.0, 2.0], [2.0, 2.0], [5.0, 7.0]], FULL, scale=5.0)
    assert gain(batch).tolist() == pytest.approx([-3 / 40, -1.5 / 40, 4.5 / 40])


def test_a_gain_is_per_step_that_a_task_really_has():
    # As the outer loss, which is a mean over them: 3, 8 and 6 steps a task.
    batch = earning([[0.0, 2.0], [2.0, 2.0], [5.0, 7.0]], [[2, 4], [8, 8], [6, 6]])
    assert gain(batch).tolist() == pytest.approx([-3 / 3, -1.5 / 8, 4.5 / 6])


def test_a_task_whose_advantages_are_nothing_but_rounding_gains_nothing():
    # One step, for which the second task always pays the same: dividing by that deviation would make millions.
    rollout = earning([[0.0, 2.0], [3.3, 3.3], [5.0, 7.0]], [[1, 1], [1, 1], [1, 1]]).rollout
    single = {"obs": torch.ones_like(rollout.obs).float(), "rew": rollout.rew.float(), "mask": rollout.mask.float()}
    batch = Batch.of(maml_trpo.Config(), replace(rollout, **single))
    assert batch.scale[1] == torch.inf and batch.scale[::2].min() > 0.1
    first, second, third = gain(batch).tolist()
    assert first < -0.01 and second == 0.0 and third > 0.01


def test_the_credit_is_for_every_loss_that_comes_after_the_episodes():
    config = maml_trpo.Config(**(SMALL | {"inner_steps": 3, "multi_step_until": 8}))
    data = problem(Drift(), config)[2]
    one, two, three = (gain(batch) for batch in data[1:])
    got = credits(config, data, 4)  # the losses weigh 1 / 6, 1 / 6 and 2 / 3
    want = [one / 6 + two / 6 + 2 * three / 3, two / 6 + 2 * three / 3, 2 * three / 3]
    torch.testing.assert_close(got, want)
    assert all(torch.equal(x, three) for x in credits(config, data, 8))


def test_without_inner_steps_there_is_nothing_to_credit():
    config = maml_trpo.Config(**(SMALL | {"inner_steps": 0}))
    assert credits(config, problem(Drift(), config)[2]) == []


# ---------------------------------------------------------------------------------------------------------------------
# What is known of the derivatives


def test_a_mask_has_the_derivative_of_a_factor():
    # Straight-through: what a learned factor on the step would get, where the mask is open and where it is closed.
    config = maml_trpo.Config(**(SMALL | {"learned_mask": True}))
    policy, state, data = problem(Drift(), config, spread=1.0)
    masks = state.learned
    assert 0.2 < torch.cat([m.flatten() >= 0 for m in masks.values()]).double().mean() < 0.9  # both are there
    factors = {n.replace("mask/", "lr/"): (m >= 0).double() for n, m in masks.items()}
    of_mask, of_factor = (
        value_and_gradient([objective.objective(c, policy, data, 2)], state.params | learned)[1]
        for c, learned in ((config, masks), (replace(config, learned_mask=False, learned_lr="per_parameter"), factors))
    )
    torch.testing.assert_close(flatten(of_mask), flatten(of_factor), atol=1e-12, rtol=1e-6)
    closed = torch.cat([g.flatten()[masks[n].flatten() < 0] for n, g in of_mask.items() if n in masks])
    assert closed.abs().min() > 1e-6  # a closed number can open again


def test_learned_step_sizes_at_one_are_the_given_ones():
    config = maml_trpo.Config(**(SMALL | {"inner_steps": 2, "learned_lr": "per_parameter", "learned_mask": True}))
    policy, state, data = problem(Drift(), config, spread=0.0)
    plain = replace(config, learned_lr="none", learned_mask=False)
    value, gradient = value_and_gradient([objective.objective(config, policy, data, 2)], state.meta)
    want, want_gradient = value_and_gradient([objective.objective(plain, policy, data, 2)], state.params)
    assert value == pytest.approx(want, rel=1e-9)
    torch.testing.assert_close(flatten(split(gradient)[0]), flatten(want_gradient), atol=1e-12, rtol=1e-9)


def test_the_derivative_in_one_factor_is_the_sum_of_those_in_all():
    config = maml_trpo.Config(**(SMALL | {"learned_lr": "per_parameter"}))
    policy, state, data = problem(Drift(), config, spread=0.0)
    each = value_and_gradient([objective.objective(config, policy, data, 2)], state.meta)[1]
    one = replace(config, learned_lr="scalar")
    meta = state.params | {"lr": torch.ones((), dtype=torch.float64)}
    got = value_and_gradient([objective.objective(one, policy, data, 2)], meta)[1]["lr"]
    want = sum(g.sum() for name, g in each.items() if name.startswith("lr/"))
    assert float(got) == pytest.approx(float(want), rel=1e-9)


def orders(**settings) -> list[Tensor]:
    """The second- and the first-order meta-gradient in what moves, for one pull of a task whose observation is 1."""
    config = maml_trpo.Config(**(SMALL | {"hidden": (), "episodes": 6, "init_std": 0.5} | settings))
    policy, state, data = problem(Signs(), config)
    first = replace(config, first_order=True)
    found = [value_and_gradient([objective.objective(c, policy, data, 2)], state.params)[1] for c in (config, first)]
    return [flatten({name: g for name, g in one.items() if name != "log_std"}) for one in found]


def test_first_order_is_second_order_where_the_inner_loss_has_no_curvature():
    # The log-probability of a linear Gaussian policy is a quadratic whose curvature, weighed with advantages of mean
    # zero in one and the same state, is zero.
    second, first = orders()
    torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-6)
    assert second.norm() > 1e-2


@pytest.mark.parametrize("settings", [{"hidden": (3,)}, {"inner_gradient": "lvc"}, {"inner_gradient": "loaded_dice"}])
def test_first_order_is_another_where_it_has(settings):
    second, first = orders(**settings)
    assert (second - first).norm() > 0.01 * second.norm()


@pytest.mark.parametrize("weights", [(0, (1 / 3, 1 / 3, 1 / 3)), (4, (1 / 6, 1 / 6, 2 / 3)), (8, (0.0, 0.0, 1.0)),
                                     (99, (0.0, 0.0, 1.0))])  # fmt: skip
def test_the_weights_of_the_steps_by_hand(weights):
    config = maml_trpo.Config(inner_steps=3, multi_step_until=8)
    assert config.step_weights(weights[0]) == pytest.approx(weights[1])


def test_with_one_step_there_is_one_weight():
    assert maml_trpo.Config(multi_step_until=8).step_weights(0) == (1.0,)
    assert maml_trpo.Config(multi_step_until=8, inner_steps=0).step_weights(0) == (1.0,)


def test_the_context_is_no_argument_of_cavias_objective_and_does_not_move():
    config = maml_trpo.Config(**(SMALL | {"context": 2, "adapts": "context"}))
    _, state, _ = problem(Drift(), config)
    assert set(objective.held(config, state)) == {"context"}
    assert set(objective.trained(config, state)) == set(state.params) - {"context"}
    everything = replace(config, adapts="all")
    assert set(objective.trained(everything, state)) == set(state.params)  # a bias transformation's start is learned


def test_the_derivatives_by_hand_are_used_where_they_are_known():
    policy, _, _ = problem(Drift(), maml_trpo.Config(**SMALL))
    known = partial(objective._known_by_hand, policy=policy, steps=1, weights=(1.0,), outer=Outer())
    assert known(maml_trpo.Config(exploration=1.0, learned_lr="per_parameter", learned_mask=True, adapts="head"))
    for settings in ({"inner_optimizer": "momentum"}, {"learned_discount": True}):
        assert not known(maml_trpo.Config(**settings))
    assert not known(promp.Config(), steps=2, outer=Outer(inner_kl=1.0))
    assert not known(promp.Config(), steps=2, weights=(0.5, 0.5))
    assert known(promp.Config(), steps=2, weights=(0.0, 1.0))


def test_the_first_step_of_adam_is_as_long_as_each_kind_s_step_size():
    # Adam's first step has the length of its step size in every number whose gradient is not zero.
    config = maml_vpg.Config(**SMALL, outer_lr=0.03, learned_outer_lr=0.2, learned_lr="scalar")
    policy, state, data = problem(FAMILIES["gaussian"], config)
    meta = objective.trained(config, state)
    parts, memory = objective.objectives(config, policy, data, state), adam_init(config, policy, None, 0).optimizer
    new, _, stats = adam_steps(config, parts, meta, memory, 0, 1)
    moved = {name: (value - meta[name]).abs().max().item() for name, value in new.items()}
    assert moved.pop("lr") == pytest.approx(0.2, rel=1e-3)
    assert moved == pytest.approx(dict.fromkeys(moved, 0.03), rel=1e-3) and stats["lr"] == 0.03
