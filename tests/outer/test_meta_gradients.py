"""Every way to adapt has the meta-gradient that finite differences find, in float64; and the three first-order updates
(MAML's, first-order MAML's, Reptile's) have the expansion in the step size that theory gives them.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from probes import Drift, TwoArms, double, setup, stages
from torch import Tensor

import metarl
from metarl.algorithms.maml_trpo import Config
from metarl.formulas import distributions, losses
from metarl.inner import loop
from metarl.inner.learned import split, step_size
from metarl.inner.step import sgd_step
from metarl.outer import objective as outer
from metarl.outer.trust_region import Objective, flatten, unflatten, value_and_gradient
from metarl.params import Params, expand
from metarl.rollout.setup import Setup

SMALL = Config(n_tasks=3, episodes=4, hidden=(3, 4), inner_lr=0.3, inner_steps=2, output_gain=0.5)
KINDS = {
    "maml": {},
    "lvc": {"inner_gradient": "lvc"},
    "meta-sgd": {"learned_lr": "per_parameter"},
    "scalar": {"learned_lr": "scalar"},
    "maml++": {"learned_lr": "per_layer_and_step", "multi_step_until": 10, "adapt_std": True},
    "anil": {"adapts": "head"},
    "cavia": {"adapts": "context", "context": 2},
    "bias-transformation": {"context": 2},
    "momentum": {"inner_optimizer": "momentum"},
    "adam": {"inner_optimizer": "adam", "inner_lr": 0.05},
    "natural": {"inner_optimizer": "natural"},
    "e-maml": {"exploration": 2.0},
    "e-maml-in-one-step": {"exploration": 2.0, "inner_steps": 1},
    "lambda": {"learned_lambda": True, "gae_lambda": 0.9},
}
families = pytest.mark.parametrize("family", [Drift(), TwoArms()], ids=["gaussian", "categorical"])


def problem(family, settings: dict, by_hand: bool) -> tuple[Config, Objective, Params, list[loop.Batch]]:
    config = replace(SMALL, **settings)
    sampler, policy, state = setup(family, config)
    generator = torch.Generator().manual_seed(1)
    data = double(stages(config, sampler, policy, state.params))
    # Away from where factors are all 1 and zero biases hide mistakes, but with the masks and the context as they are.
    moved = {n: v + 0.2 * torch.randn(v.shape, generator=generator) for n, v in state.meta.items() if n != "context"}
    meta = {name: value.double() for name, value in (state.meta | moved).items()}
    fixed = outer.Constants(0.9, 2, {name: meta.pop(name) for name in outer.held(config, state)})
    scores = [torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64) / 4] * config.inner_steps
    objective = outer.objective(config, policy, data, 3, outer.Outer(by_hand=by_hand), fixed, scores)
    return config, objective, meta, data


def assert_same_gradient(gradient: Tensor, function, meta: Params, h: float = 1e-5) -> None:
    """Along every tensor by itself, so that a mistake has a name."""
    generator, at, parts = torch.Generator().manual_seed(2), flatten(meta), unflatten(gradient, meta)
    for name, value in meta.items():
        along = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        step = flatten({n: h * along if n == name else torch.zeros_like(v) for n, v in meta.items()})
        want = (function(unflatten(at + step, meta)) - function(unflatten(at - step, meta))) / (2 * h)
        torch.testing.assert_close((parts[name] * along).sum(), want, atol=1e-8, rtol=1e-5, msg=lambda m, n=name: n + m)


@families
@pytest.mark.parametrize("by_hand", [True, False], ids=["by-hand", "autograd"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_gradient_is_that_of_finite_differences(family, kind, by_hand):
    _, objective, meta, _ = problem(family, KINDS[kind], by_hand)
    gradient = flatten(value_and_gradient([objective], meta)[1])
    assert_same_gradient(gradient, lambda x: objective(x, False).loss.detach(), meta)


@pytest.mark.parametrize("by_hand", [True, False], ids=["by-hand", "autograd"])
def test_so_it_is_in_the_noise_of_every_step(by_hand):
    _, objective, meta, _ = problem(Drift(), {"learned_noise": True}, by_hand)
    gradient = value_and_gradient([objective], meta)[1]
    assert gradient["noise"].shape == (2, 2) and gradient["noise"].abs().min() > 1e-5
    assert_same_gradient(flatten(gradient), lambda x: objective(x, False).loss.detach(), meta)


@families
@pytest.mark.parametrize("kind", ["maml", "meta-sgd", "anil", "cavia"])
def test_the_first_order_meta_gradient_is_that_of_finite_differences_with_the_inner_gradient_held(family, kind):
    settings = KINDS[kind] | {"first_order": True, "inner_steps": 1}
    config, objective, meta, data = problem(family, settings, by_hand=False)
    policy = setup(family, config)[1]
    context = {"context": torch.zeros(2, dtype=torch.float64)} if kind == "cavia" else {}
    moving = config.moving((split(meta)[0] | context).keys())
    leaves = {n: v.clone().requires_grad_() for n, v in expand(split(meta)[0] | context, 3).items()}
    loss = loop.inner_loss(config, policy, loop.InnerStep(data[0], 0.0), leaves).sum()
    inner = dict(zip(moving, torch.autograd.grad(loss, [leaves[n] for n in moving]), strict=True))

    def held_loss(x: Params) -> Tensor:
        params, learned = split(x)
        params, sizes = expand(params | context, 3), step_size(learned, 0.9 * 0.3, 0, moving)
        size = (lambda n: sizes) if isinstance(sizes, float) else sizes.__getitem__
        stepped = params | {n: params[n] - size(n) * g for n, g in inner.items()}
        log_prob = distributions.log_prob(policy.distribution(stepped, data[1].rollout.obs), data[1].rollout.act)
        last = data[1]
        return losses.surrogate(log_prob, last.rollout.log_prob, last.advantage, last.rollout.mask).mean()

    gradient = flatten(value_and_gradient([objective], meta)[1])
    assert_same_gradient(gradient, held_loss, meta)
    second = value_and_gradient([problem(family, settings | {"first_order": False}, False)[1]], meta)[1]
    assert (flatten(second) - gradient).norm() > 1e-3 * gradient.norm()


# ---------------------------------------------------------------------------------------------------------------------
# Expansion in the step size (Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999, section 5)

TARGETS = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.5, 0.5]], dtype=torch.float64)
"""One "minibatch" each, whose loss is a quartic around it."""
START = torch.tensor([0.3, -0.4], dtype=torch.float64)


def minibatch_loss(x: Tensor, i: int) -> Tensor:
    """x [..., 2] -> [...]"""
    d = x - TARGETS[i]
    return (d**2).sum(-1) / 2 + (d**4).sum(-1) / 20 + (d[..., 0] * d[..., 1]) ** 2 / 10


def update(kind: str, order: tuple[int, ...], lr: float) -> Tensor:
    """What the meta-parameters are moved against, with the last of the minibatches in `order` for the outer loss."""
    meta = START.clone().requires_grad_()
    params, inner = {"x": meta[None]}, order if kind == "reptile" else order[:-1]
    for i in inner:
        params = sgd_step(params, lambda p, i=i: minibatch_loss(p["x"], i), lr, create_graph=kind == "maml")
    if kind == "reptile":
        return (START - params["x"][0].detach()) / lr
    return torch.autograd.grad(minibatch_loss(params["x"], order[-1]).sum(), meta)[0]


def expansion() -> tuple[Tensor, Tensor]:
    """AvgGrad and AvgGradInner at the start: the mean gradient, and the mean over independent pairs of one
    minibatch's Hessian times another's gradient."""
    gradient = torch.stack([torch.func.grad(minibatch_loss)(START, i) for i in range(3)])
    hessian = torch.stack([torch.func.hessian(minibatch_loss)(START, i) for i in range(3)])
    return gradient.mean(0), hessian.mean(0) @ gradient.mean(0)


@pytest.mark.parametrize("steps", [2, 3, 4])
@pytest.mark.parametrize("kind", ["maml", "fomaml", "reptile"])
def test_the_expected_update_has_the_published_expansion(kind, steps):
    lr, (mean, inner) = 1e-5, expansion()
    expected = torch.stack([update(kind, order, lr) for order in product(range(3), repeat=steps)]).mean(0)
    first = {"maml": 1, "fomaml": 1, "reptile": steps}[kind]
    second = {"maml": 2 * (steps - 1), "fomaml": steps - 1, "reptile": steps * (steps - 1) / 2}[kind]
    torch.testing.assert_close((first * mean - expected) / lr, second * inner, rtol=1e-3, atol=0.0)
    assert (second * inner).abs().min() > 0.1


def test_with_one_step_lvc_and_the_dice_estimators_are_the_same_and_the_policy_gradient_is_not():
    family = metarl.make("BernoulliBandit-v0", arms=3)
    derivatives = {}
    for name in ("lvc", "loaded_dice", "dice", "policy_gradient"):
        learner = metarl.MetaLearner(
            "maml_trpo", family, seed=0, device="cpu", n_tasks=3, episodes=15, hidden=(), gamma=1.0, inner_gradient=name
        )
        found = loop.experience(Setup(learner.config, learner.sampler, learner.policy, 0), learner.state)
        params = {key: value.clone().requires_grad_() for key, value in found.params[0].items()}
        stepped, _ = loop.step(
            learner.config, learner.policy, params, loop.InnerStep(found.data[0], 0.5), create_graph=True
        )
        weights = torch.Generator().manual_seed(1)
        total = sum((x * torch.randn(x.shape, generator=weights)).sum() for x in stepped.values())
        derivatives[name] = torch.cat([x.flatten() for x in torch.autograd.grad(total, list(params.values()))])
    for name in ("loaded_dice", "dice"):
        torch.testing.assert_close(derivatives[name], derivatives["lvc"], atol=1e-5, rtol=1e-4)
    assert (derivatives["policy_gradient"] - derivatives["lvc"]).norm() > 0.02 * derivatives["lvc"].norm()
