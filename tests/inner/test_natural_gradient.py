"""The natural inner step: its matrix in closed form, what it must not depend on, and threads."""

from dataclasses import replace

import pytest
import torch
from probes import Drift, Locks, TwoArms, double, random_params, setup, stages
from torch import Tensor, nn

from metarl import parallel
from metarl.algorithms import maml_trpo
from metarl.formulas.distributions import log_prob, sample
from metarl.inner import loop
from metarl.inner.natural_gradient import fisher_matrix, natural_direction
from metarl.params import Params
from metarl.policies.base import Policy
from metarl.policies.module import ModulePolicy
from metarl.rollout.setup import Setup

CONFIG = maml_trpo.Config(
    n_tasks=3, episodes=6, hidden=(), inner_optimizer="natural", natural_damping=0.0, inner_lr=0.2, gamma=0.9
)
families = pytest.mark.parametrize("family", [Drift(), TwoArms(), Locks()], ids=["gaussian", "categorical", "several"])


def prepared(family, config: maml_trpo.Config = CONFIG) -> tuple[Policy, Params, loop.Batch]:
    sampler, policy, state = setup(family, config)
    (batch,) = double(stages(replace(config, inner_steps=0), sampler, policy, state.params))
    return policy, {name: value.double() for name, value in random_params(policy, config.n_tasks).items()}, batch


def test_the_matrix_of_a_linear_gaussian_policy_in_closed_form():
    # Mean W^T x + b: E[(x, 1)(x, 1)^T] / std_a^2 for every action; log std: 2.
    policy, params, batch = prepared(Drift())
    got = fisher_matrix(policy, params, batch.rollout.obs, batch.rollout.mask, ["w0", "b0", "log_std"])
    for k in range(3):
        x = batch.rollout.obs[k][batch.rollout.mask[k].bool()]
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        second = x.T @ x / len(x)
        want = torch.kron(second, torch.diag((-2 * params["log_std"][k]).exp()))
        torch.testing.assert_close(got[k, :6, :6], want)
        torch.testing.assert_close(got[k, 6:, 6:], 2 * torch.eye(2, dtype=x.dtype))
        assert not got[k, :6, 6:].any() and not got[k, 6:, :6].any()


@families
def test_the_matrix_is_the_expected_outer_product_of_the_scores(family):
    # By sampling: the mean over many actions in one state.
    policy, params, batch = prepared(family, replace(CONFIG, hidden=(3,)))
    obs, mask = batch.rollout.obs[:1, :1, :1], torch.ones(1, 1, 1, dtype=torch.float64)
    one = {name: value[:1] for name, value in params.items()}
    names = list(one)
    got = fisher_matrix(policy, one, obs, mask, names)[0]
    n = 20_000
    many = {name: value.expand(n, *value.shape[1:]).clone().requires_grad_() for name, value in one.items()}
    dist = policy.distribution(many, obs.expand(n, 1, 1, -1))
    g = torch.Generator().manual_seed(0)
    if policy.spaces.discrete:
        noise = torch.rand(n, 1, 1, policy.spaces.noise_dim, generator=g, dtype=torch.float64)
    else:
        noise = torch.randn(n, 1, 1, policy.spaces.noise_dim, generator=g, dtype=torch.float64)
    with torch.no_grad():
        action = sample(dist, noise)
    scores = torch.autograd.grad(log_prob(dist, action).sum(), [many[name] for name in names])
    flat = torch.cat([s.reshape(n, -1) for s in scores], 1)
    torch.testing.assert_close(got, flat.T @ flat / n, atol=0.06 * float(got.diagonal().max()), rtol=0)


def test_damping_is_added_to_the_diagonal():
    policy, params, batch = prepared(Drift())
    g = torch.Generator().manual_seed(3)
    grads = {name: torch.randn(params[name].shape, generator=g).double() for name in ("w0", "b0")}
    fisher = fisher_matrix(policy, params, batch.rollout.obs, batch.rollout.mask, ["w0", "b0"])
    found, memory = natural_direction(policy, batch.rollout.obs, batch.rollout.mask, 0.3)(params, grads, {})
    flat = torch.cat([x.flatten(1) for x in found.values()], 1)
    back = (fisher @ flat[..., None])[..., 0] + 0.3 * flat
    torch.testing.assert_close(back, torch.cat([x.flatten(1) for x in grads.values()], 1))
    assert memory == {}


def in_units(std: float, optimizer: str) -> Tensor:
    """How far one inner step moves the action means, in units of `std`, with the same noise at every std."""
    config = replace(CONFIG, inner_optimizer=optimizer)
    policy, params, batch = prepared(Drift(), config)
    params = params | {"log_std": torch.full_like(params["log_std"], std).log()}
    dist = policy.distribution(params, batch.rollout.obs)
    g = torch.Generator().manual_seed(5)
    noise = torch.randn(dist.mean.shape, generator=g).double()
    rollout = replace(batch.rollout, act=dist.mean + std * noise)
    moved, _ = loop.detached_step(config, policy, params, loop.InnerStep(replace(batch, rollout=rollout), 0.2))
    return (policy.distribution(moved, batch.rollout.obs)[0] - dist.mean) / std


def test_a_step_in_units_of_the_std_does_not_depend_on_the_std():
    torch.testing.assert_close(in_units(0.1, "natural"), in_units(1.0, "natural"), atol=1e-9, rtol=1e-7)
    assert in_units(1.0, "natural").abs().mean() > 0.01


def test_a_plain_step_does():
    # The control: it grows with the square of the precision.
    torch.testing.assert_close(in_units(0.1, "sgd"), 100 * in_units(1.0, "sgd"), atol=1e-9, rtol=1e-7)


@families
def test_without_damping_a_step_does_not_depend_on_how_the_network_is_written_down(family):
    # The same function of twice the weights and half the inputs: a plain step would be another one.
    policy, params, batch = prepared(family, replace(CONFIG, natural_damping=1e-6, inner_lr=1e-3))
    scaled = replace(batch, rollout=replace(batch.rollout, obs=batch.rollout.obs / 2))

    def moved(batch: loop.Batch, params: Params, optimizer: str) -> Tensor:
        config = replace(CONFIG, inner_optimizer=optimizer, natural_damping=1e-7)
        new, _ = loop.detached_step(config, policy, params, loop.InnerStep(batch, 1e-3))
        return log_prob(policy.distribution(new, batch.rollout.obs), batch.rollout.act) * batch.rollout.mask

    twice = params | {"w0": 2 * params["w0"]}
    torch.testing.assert_close(moved(scaled, twice, "natural"), moved(batch, params, "natural"), atol=1e-6, rtol=1e-5)
    assert (moved(scaled, twice, "sgd") - moved(batch, params, "sgd")).abs().max() > 1e-5


@families
def test_a_module_has_the_matrix_of_the_mlp_with_its_weights(family):
    policy, params, batch = prepared(family, replace(CONFIG, hidden=(3,)))
    net = nn.Sequential(nn.Linear(policy.spaces.obs_dim, 3), nn.Tanh(), nn.Linear(3, policy.spaces.act_dim))
    module = ModulePolicy(policy.spaces, net)
    same = {"module.0.weight": params["w0"].mT, "module.0.bias": params["b0"], "module.2.weight": params["w1"].mT,
            "module.2.bias": params["b1"]}  # fmt: skip
    same |= {"log_std": params["log_std"]} if "log_std" in params else {}
    rollout = batch.rollout
    ours = fisher_matrix(policy, params, rollout.obs, rollout.mask, ["b0", "b1"])
    theirs = fisher_matrix(module, same, rollout.obs, rollout.mask, ["module.0.bias", "module.2.bias"])
    torch.testing.assert_close(theirs, ours, atol=1e-10, rtol=1e-8)


def test_a_graph_is_made_where_there_is_one_to_join():
    policy, params, batch = prepared(Drift())
    rollout = batch.rollout
    assert not fisher_matrix(policy, params, rollout.obs, rollout.mask, ["w0"]).requires_grad
    leaf = params["log_std"].clone().requires_grad_()
    fisher = fisher_matrix(policy, params | {"log_std": leaf}, rollout.obs, rollout.mask, ["w0"])
    (slope,) = torch.autograd.grad(fisher.diagonal(dim1=1, dim2=2).sum(), leaf)
    per_action = fisher.diagonal(dim1=1, dim2=2).reshape(3, 2, 2).sum(1)
    torch.testing.assert_close(slope, -2 * per_action)  # F is proportional to exp(-2 log std)


def test_masked_steps_do_not_matter():
    policy, params, batch = prepared(Drift())
    rollout = batch.rollout
    dirty = torch.where(rollout.mask[..., None] == 0, torch.full_like(rollout.obs, 7.0), rollout.obs)
    assert (rollout.mask == 0).any()
    clean = fisher_matrix(policy, params, rollout.obs, rollout.mask, ["w0"])
    torch.testing.assert_close(fisher_matrix(policy, params, dirty, rollout.mask, ["w0"]), clean)


def test_too_many_numbers_are_refused_and_named():
    policy, params, batch = prepared(Drift(), replace(CONFIG, hidden=(64, 64)))
    with pytest.raises(ValueError, match=r"matrix of the 4482 numbers that adapt, and 2000"):
        loop.detached_step(replace(CONFIG, hidden=(64, 64)), policy, params, loop.InnerStep(batch, 0.1))
    head = replace(CONFIG, hidden=(64, 64), adapts="head", natural_damping=0.1)
    loop.detached_step(head, policy, params, loop.InnerStep(batch, 0.1))  # as the message says


def test_threads_give_the_same_step(monkeypatch):
    # Derivatives that keep global state, as torch's forward mode does, break here.
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 8)
    config = replace(CONFIG, n_tasks=6, episodes=2, hidden=(3,), natural_damping=0.1)
    sampler, policy, state = setup(Drift(), config)
    one, _ = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
    torch.set_num_threads(4)
    for _ in range(2):
        several, _ = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
        assert all(torch.equal(several.params[name], value) for name, value in one.params.items())
