"""The meta-gradient and the Fisher products through convolutions by finite differences."""

from dataclasses import replace

import pytest
import torch
from probes import double, linearise, setup, stages
from tiny_runs import pixels

from metarl.algorithms.maml_trpo import Config
from metarl.outer import objective as outer
from metarl.outer.trust_region import flatten
from metarl.params import Params


def double_problem(**settings) -> tuple:
    """A small meta-objective on images in float64; its rollouts' numbers are data and may come from float32."""
    config = Config(n_tasks=2, episodes=2, channels=(2,), hidden=(3,), inner_lr=0.3, output_gain=1.0, **settings)
    sampler, policy, state = setup(pixels(2), config)
    data = double(stages(config, sampler, policy, state.params))
    return config, policy, data, {name: value.double() for name, value in state.params.items()}


def directional(value, params: Params, direction: Params, step: float = 1e-5) -> float:
    ends = [value({n: x + s * step * direction[n] for n, x in params.items()}) for s in (1, -1)]
    return float(ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_second_order_meta_gradient_against_finite_differences(inner_steps):
    config, policy, data, params = double_problem(inner_steps=inner_steps)
    objective = outer.objective(config, policy, data, 2)
    gradient, _ = linearise(objective, params)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        along = {name: torch.randn(x.shape, generator=g).double() for name, x in params.items()}
        want = directional(lambda p: objective(p, False).loss, params, along)
        assert float(gradient @ flatten(along)) == pytest.approx(want, rel=1e-5, abs=1e-9)


def test_first_order_is_another_gradient():
    gradients = []
    for first_order in (False, True):
        config, policy, data, params = double_problem(first_order=first_order)
        gradients.append(linearise(outer.objective(config, policy, data, 2), params)[0])
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


def test_fisher_product_is_the_kl_differentiated_twice():
    config, policy, data, params = double_problem()
    # The acting distributions at the very parameters, in float64.
    objective = outer.objective(config, policy, data, 2)
    here = objective(params, False)
    data[-1] = replace(data[-1], rollout=replace(data[-1].rollout, dist=type(here.dist)(*here.dist)))
    objective = outer.objective(config, policy, data, 2)
    v = torch.randn(flatten(params).numel(), generator=torch.Generator().manual_seed(1)).double()
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    gradient = torch.autograd.grad(objective(leaves, True).kl, list(leaves.values()), create_graph=True)
    along = torch.cat([g.reshape(-1) for g in gradient]) @ v
    want = torch.cat([g.reshape(-1) for g in torch.autograd.grad(along, list(leaves.values()))])
    torch.testing.assert_close(linearise(objective, params, v)[1], want, atol=1e-9, rtol=1e-7)
