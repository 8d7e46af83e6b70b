"""Inner optimisers step as torch's do, one for each task."""

from dataclasses import replace

import pytest
import torch
from inner_runs import RUN, adaptation

from metarl.formulas.distributions import log_prob
from metarl.inner import loop
from metarl.inner.loss import Batch


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda params, lr: torch.optim.SGD(params, lr)),
        ("momentum", lambda params, lr: torch.optim.SGD(params, lr, momentum=0.8)),
        ("adam", lambda params, lr: torch.optim.Adam(params, lr, eps=1e-4)),
    ],
)
def test_every_task_steps_as_with_an_optimiser_of_torch_of_its_own(name, make):
    config = replace(RUN, inner_optimizer=name, inner_momentum=0.8, inner_adam_eps=1e-4)
    policy, state, done = adaptation(config)
    for k in range(3):
        leaves = {n: v.clone().requires_grad_(n != "log_std") for n, v in state.params.items()}
        optimizer = make([v for v in leaves.values() if v.requires_grad], 1.0)
        for i, size in enumerate((0.2, 0.1, 0.2)):
            batch = Batch.of(config, done.rollouts[i])[k : k + 1]
            dist = policy.distribution({n: v[None] for n, v in leaves.items()}, batch.rollout.obs)
            valid = batch.rollout.mask.bool()
            loss = -(log_prob(dist, batch.rollout.act) * batch.advantage)[valid].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = size
            optimizer.step()
            for n, value in leaves.items():
                # Adam's root is taken of 1e-8 more than torch's: of steps of 0.2 in all, some thousandths.
                tolerance = 2e-3 if name == "adam" else 2e-5
                torch.testing.assert_close(done.params[i + 1][n][k], value, atol=tolerance, rtol=0)


def test_the_first_step_of_adam_is_the_sign_of_the_gradient_in_every_layer():
    # Of hidden layers too, whose gradients are thousands of times smaller than those of the last layer.
    config = replace(RUN, inner_optimizer="adam", output_gain=1e-3, inner_adam_eps=1e-8)
    policy, state, done = adaptation(config)
    batch = Batch.of(config, done.rollouts[0])
    leaves = {n: v.expand(3, *v.shape).clone().requires_grad_() for n, v in state.params.items() if n != "log_std"}
    loss = loop.inner_loss(config, policy, loop.InnerStep(batch, 0.0), leaves | {"log_std": done.params[0]["log_std"]})
    for (name, start), grad in zip(leaves.items(), torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True):
        moved = (start - done.params[1][name])[grad.abs() > 1e-6] / 0.2
        torch.testing.assert_close(moved, grad[grad.abs() > 1e-6].sign(), atol=0.02, rtol=0)
        assert len(moved.flatten()) > 0.5 * grad.numel()


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_the_second_step_remembers_the_first(name):
    # Negative control: with an empty memory in every step it would be another one.
    config = replace(RUN, inner_optimizer=name)
    policy, _, done = adaptation(config)
    batch = Batch.of(config, done.rollouts[1])
    forgetful, _ = loop.detached_step(config, policy, done.params[1], loop.InnerStep(batch, 0.1, 1))
    assert (forgetful["w1"] - done.params[2]["w1"]).abs().max() > 1e-3
