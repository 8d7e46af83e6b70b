"""What is learned about the inner steps: shapes, values, masks, and the discount that acts."""

import math
from dataclasses import replace

import pytest
import torch
from inner_runs import RUN, adaptation
from probes import Drift, random_params, setup

from metarl.inner import loop
from metarl.inner.learned import learned_sizes, open_mask, split, step_size
from metarl.inner.loss import Batch
from metarl.inner.state import State, learned_statistics

PARAMS = {"w": torch.zeros(2, 3), "b": torch.zeros(3), "log_std": torch.zeros(1)}


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("none", {}),
        ("scalar", {"lr": ()}),
        ("per_layer_and_step", {"lr_step/w": (4,), "lr_step/b": (4,)}),
        ("per_parameter", {"lr/w": (2, 3), "lr/b": (3,)}),
    ],
)
def test_what_is_learned_has_its_shape_and_starts_at_one(kind, shapes):
    learned = learned_sizes(kind, PARAMS, ["w", "b"], 4)
    assert {name: tuple(value.shape) for name, value in learned.items()} == shapes
    assert all((value == 1).all() for value in learned.values())
    masked = learned_sizes(kind, PARAMS, ["w", "b"], 4, mask=True)
    assert {name: tuple(v.shape) for name, v in masked.items()} == shapes | {"mask/w": (2, 3), "mask/b": (3,)}
    assert all((open_mask(value) == 1).all() for name, value in masked.items() if name.startswith("mask"))


def test_the_size_of_a_step_by_hand():
    factors = {"lr_step/w": torch.tensor([1.0, 2.0, 3.0])}
    at = [float(step_size(factors, 0.5, step, ["w"])["w"]) for step in (0, 1, 2, 3, 9)]
    assert at == [0.5, 1.0, 1.5, 1.5, 1.5]  # steps at test time that training did not have take the last one's
    assert step_size({}, 0.5, 3, ["w"]) == step_size({"discount": torch.tensor(1.0)}, 0.5, 3, ["w"]) == 0.5
    each = step_size({"lr/w": torch.tensor([-2.0, 4.0]), "mask/w": torch.tensor([0.1, -0.1])}, 0.5, 0, ["w"])["w"]
    assert each.tolist() == [-1.0, 0.0]
    assert step_size({"lr": torch.tensor(3.0)}, 0.5, 0, ["w", "b"]) == {"w": 1.5, "b": 1.5}


@pytest.mark.parametrize("changes", [{"learned_mask": True}, {"learned_lr": "scalar"}])
def test_a_step_keeps_the_type_of_the_parameters(changes):
    _, state, done = adaptation(replace(RUN, **changes))
    assert {value.dtype for value in (*done.params[-1].values(), *state.params.values())} == {torch.float32}


def test_a_mask_is_open_from_zero_on_and_its_derivative_is_one():
    mask = torch.tensor([-0.1, 0.0, 0.1], requires_grad=True)
    assert open_mask(mask).tolist() == [0.0, 1.0, 1.0]
    assert torch.autograd.grad(open_mask(mask).sum(), mask)[0].tolist() == [1.0] * 3


def test_meta_parameters_come_apart_as_they_were_put_together():
    names = ["lr", "discount", "lambda", "lr/w", "lr_step/b", "mask/w"]
    own, learned = split(PARAMS | {name: torch.zeros(1) for name in names})
    assert list(own) == list(PARAMS) and list(learned) == names


@pytest.mark.parametrize("start", [0.5, 0.95, 0.999])
def test_a_learned_discount_and_lambda_start_where_the_settings_say(start):
    config = replace(RUN, learned_discount=True, learned_lambda=True, gamma=start, gae_lambda=0.7)
    stats = learned_statistics(setup(Drift(), config)[2])
    assert stats == pytest.approx({"inner/discount": start, "inner/lambda": 0.7}, abs=1e-6)


def test_what_is_logged_of_the_learned_inner_loop_by_hand():
    learned = {"lr/w": torch.tensor([1.0, 2.0]), "lr/b": torch.tensor([6.0]), "mask/w": torch.tensor([-1.0, 1.0]),
               "mask/b": torch.tensor([0.0]), "discount": torch.tensor(0.0)}  # fmt: skip
    got = learned_statistics(State({}, learned=learned))
    want = {"inner/lr_factor": 3.0, "inner/mask_open": 2 / 3, "inner/discount": 0.5}
    assert got == pytest.approx(want)
    assert learned_statistics(State({})) == {}


def test_the_learned_discount_is_the_one_that_acts_in_the_inner_step():
    # With the discount and lambda learned to be others, the step is that of a learner with those for settings.
    config = replace(RUN, learned_discount=True, learned_lambda=True, gamma=0.9, gae_lambda=0.7)
    other = replace(RUN, gamma=0.5, gae_lambda=0.2)
    sampler, policy, state = setup(Drift(), config)
    rollout = sampler.collect(sampler.tasks(3, 0, 0), 4, policy, random_params(policy, 3), 0, 0, 0)
    learned = {"discount": torch.tensor(0.0), "lambda": torch.tensor(math.log(0.2 / 0.8))}
    params = random_params(policy, 3)
    got, _ = loop.detached_step(config, policy, params, loop.InnerStep(Batch.of(config, rollout), 0.2, learned=learned))
    want, _ = loop.detached_step(other, policy, params, loop.InnerStep(Batch.of(other, rollout), 0.2))
    plain, _ = loop.detached_step(
        config, policy, params, loop.InnerStep(Batch.of(config, rollout), 0.2, learned=state.learned)
    )
    torch.testing.assert_close(got["w1"], want["w1"], atol=1e-6, rtol=1e-5)
    assert (plain["w1"] - want["w1"]).abs().max() > 1e-3
