"""Fisher products from some of the time steps."""

from dataclasses import replace

import pytest
import torch
from maml_problems import RUN, families, one
from probes import (
    Drift,
    double,
    linearise,
    setup,
)
from torch import Tensor

from metarl.algorithms.maml_trpo import Config
from metarl.inner import loop
from metarl.outer import objective as outer
from metarl.outer.trust_region import flatten
from metarl.rollout.setup import Setup

LEARNED = {"inner_steps": 2, "learned_lr": "per_layer_and_step", "gamma": 0.9}
STRIDES = [{"inner_steps": 0}, {}, LEARNED, {"inner_gradient": "lvc", "inner_steps": 2}, {"first_order": True}]


def strided(family, stride: int, by_hand: bool, **settings):
    """The data of an iteration in float64, its parameters, and the objectives for Fisher products."""
    config = replace(RUN, **settings)
    sampler, policy, state = setup(family, config)
    found = loop.experience(Setup(config, sampler, policy, 3), state)
    as_double = {name: value.double() for name, value in state.params.items()}
    state = replace(state, params=as_double, learned={name: value.double() for name, value in state.learned.items()})
    stages = [{name: value.double() for name, value in params.items()} for params in found.params]
    found = replace(found, data=double(found.data), params=stages)
    kind = outer.Outer(by_hand=by_hand)
    data = [batch.every(stride) for batch in found.data]
    return config, policy, state, found, outer.objectives(config, policy, data, state, kind, stages)


def products(objectives, meta, v) -> Tensor:
    return torch.stack([linearise(objective, meta, v)[1] for objective in objectives]).sum(0)


def direction_of(meta) -> Tensor:
    return torch.randn(flatten(meta).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@families
@pytest.mark.parametrize("by_hand", [True, False], ids=["by-hand", "autograd"])
@pytest.mark.parametrize("settings", STRIDES, ids=str)
def test_a_stride_of_one_gives_the_fisher_products_of_all_steps(family, settings, by_hand):
    config, policy, state, found, objectives = strided(family, 1, by_hand, **settings)
    whole, v = outer.objectives(config, policy, found.data, state), direction_of(state.meta)
    torch.testing.assert_close(
        products(objectives, state.meta, v), products(whole, state.meta, v), atol=1e-6, rtol=1e-4
    )


@families
@pytest.mark.parametrize("settings", STRIDES, ids=str)
def test_fisher_products_of_some_steps_are_the_same_by_hand_and_automatically(family, settings):
    meta = strided(family, 2, True, **settings)[2].meta
    hand, automatic = (products(strided(family, 2, by_hand, **settings)[-1], meta, direction_of(meta))
                       for by_hand in (True, False))  # fmt: skip
    torch.testing.assert_close(hand, automatic, atol=1e-12, rtol=1e-8)


@families
def test_some_steps_leave_the_adapted_policies_as_they_were(family):
    # Not those that the steps left would lead to: on the last stage's states, their distributions are those that acted.
    _, _, state, found, objectives = strided(family, 3, False, inner_steps=2)
    found_there = [objective(state.meta, True).dist for objective in objectives]
    rollout = found.data[-1].every(3).rollout
    for i, want in enumerate(rollout.dist):
        got, valid = torch.cat([dist[i] for dist in found_there]), rollout.mask[..., None]
        torch.testing.assert_close(got * valid, want * valid, atol=1e-5, rtol=1e-4)


def test_strided_steps_are_every_so_manieth():
    batch = strided(Drift(), 1, True)[3].data[0]
    some = batch.every(2)
    for field in ("obs", "act", "rew", "mask", "log_prob"):
        assert torch.equal(getattr(some.rollout, field), getattr(batch.rollout, field)[:, ::2]), field
    assert torch.equal(some.advantage, batch.advantage[:, ::2]) and torch.equal(some.scale, batch.scale)
    assert torch.equal(some.baseline, batch.baseline[:, ::2])
    assert some.rollout.dist.log_std.shape == batch.rollout.dist.log_std.shape
    assert some.rollout.dist.mean.shape[1] == some.rollout.obs.shape[1]


@pytest.mark.parametrize("exploration", [0.0, 0.01])
def test_an_iteration_with_a_stride_makes_another_step_within_the_same_bound(exploration):
    settings = replace(RUN, episodes=20, exploration=exploration)
    (some, stats), (whole, _) = (one(replace(settings, fisher_stride=n)) for n in (2, 1))
    assert stats["outer/accepted"] and 0.1 * RUN.max_kl < stats["outer/kl"] <= RUN.max_kl
    start = setup(Drift(), RUN)[2].params
    steps = [flatten(new.params) - flatten(start) for new in (some, whole)]
    assert 0.5 < float(torch.cosine_similarity(*steps, 0)) < 0.9999


@pytest.mark.parametrize(
    "setting", [{"inner_gradient": "dice"}, {"inner_gradient": "loaded_dice"}, {"learned_discount": True}], ids=str
)
def test_a_stride_is_refused_where_whole_episodes_are_needed(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"fisher_stride=3 skips time steps, but {name}={value!r} needs whole"):
        Config(fisher_stride=3, gamma=0.9, **setting)
    Config(fisher_stride=1, gamma=0.9, **setting)
