"""The stacked MLP against plain torch modules, one task at a time."""

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from probes import random_params
from small_policies import GAUSSIAN, K, both, observations
from torch import Tensor, nn

from metarl.formulas.distributions import Categorical, Gaussian
from metarl.params import Params
from metarl.policies.mlp import MLPPolicy, folded, without_context
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import Spaces
from metarl.policies.stacked_mlp import tanh


def plain_forward(policy: MLPPolicy, params: Params, k: int, obs: Tensor) -> Tensor:
    """Task k's network as a torch.nn.Sequential of Linear layers."""
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}[policy.activation]
    layers: list[nn.Module] = []
    for i in range(len(policy.hidden) + 1):
        w = params[f"w{i}"][k]
        linear = nn.Linear(*w.shape)
        linear.weight, linear.bias = nn.Parameter(w.T), nn.Parameter(params[f"b{i}"][k])
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])(obs)


@both
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 7), (20, 12)])  # narrow and wide layers may take different ways
@pytest.mark.parametrize("differentiable", [True, False])
def test_the_batched_network_equals_a_plain_one_for_every_task(spaces, activation, hidden, differentiable):
    policy = MLPPolicy(spaces, hidden, activation)
    params, obs = random_params(policy, K), observations(K, 4, 2)
    with torch.set_grad_enabled(differentiable):
        out = policy.distribution(params, obs)[0]
    want = torch.stack([plain_forward(policy, params, k, obs[k]) for k in range(K)])
    torch.testing.assert_close(out, want, atol=1e-6, rtol=1e-5)


def test_a_policy_serves_observations_with_and_without_time():
    policy = MLPPolicy(GAUSSIAN, (5,))
    params, obs = random_params(policy, K), observations(K, 4, 2)
    step = policy.distribution(params, obs[:, 1])
    torch.testing.assert_close(step.mean, policy.distribution(params, obs).mean[:, 1], atol=1e-6, rtol=1e-5)


def test_the_log_std_of_every_task_is_its_own():
    policy = MLPPolicy(GAUSSIAN, (5,))
    params = random_params(policy, K)
    dist = policy.distribution(params, observations(K, 4, 2))
    assert torch.equal(dist.log_std, params["log_std"][:, None, None])


def test_observations_of_another_length_are_refused():
    policy = MLPPolicy(GAUSSIAN, (5,))
    with pytest.raises(AssertionError):
        policy.distribution(random_params(policy, K), torch.zeros(K, 4, 2))


@both
def test_the_spaces_say_which_distribution_it_is(spaces):
    policy = MLPPolicy(spaces, (5,))
    dist = policy.distribution(random_params(policy, K), observations(K, 4))
    assert type(dist) is (Categorical if spaces.discrete else Gaussian)


@both
def test_initial_shapes(spaces):
    out = spaces.act_dim
    want = {"w0": (3, 5), "b0": (5,), "w1": (5, 7), "b1": (7,), "w2": (7, out), "b2": (out,)}
    want |= {} if spaces.discrete else {"log_std": (2,)}
    params = MLPPolicy(spaces, (5, 7)).init(torch.Generator())
    assert {name: tuple(value.shape) for name, value in params.items()} == want


def test_initial_weights_fill_xavier_s_range_evenly():
    w = MLPPolicy(GAUSSIAN, (200, 300)).init(torch.Generator().manual_seed(0))["w1"]
    bound = math.sqrt(6 / 500)
    assert w.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert w.std().item() == pytest.approx(bound / math.sqrt(3), rel=1e-2)
    assert abs(w.mean().item()) < 0.01 * bound


@pytest.mark.parametrize(("setting", "layer"), [("input_gain", "w0"), ("output_gain", "w2")])
def test_the_first_and_the_last_layer_s_initial_weights_have_gains_of_their_own(setting, layer):
    def init(gain: float) -> dict:
        gains = {"input_gain": 1.0, "output_gain": 1.0, setting: gain}
        return MLPPolicy(GAUSSIAN, (5, 7), **gains).init(torch.Generator().manual_seed(0))

    gained, plain = init(0.25), init(1.0)
    assert torch.equal(gained.pop(layer), 0.25 * plain.pop(layer))
    assert all(torch.equal(value, plain[name]) for name, value in gained.items())


def test_initial_biases_are_zero():
    assert not MLPPolicy(GAUSSIAN, (5,)).init(torch.Generator())["b0"].any()


def test_initial_std_is_the_one_asked_for():
    params = MLPPolicy(GAUSSIAN, (5,), init_std=0.3).init(torch.Generator())
    torch.testing.assert_close(params["log_std"].exp(), torch.tensor([0.3, 0.3]))


def test_initial_parameters_follow_the_generator():
    policy = MLPPolicy(GAUSSIAN, (5,))
    first, again, other = (policy.init(torch.Generator().manual_seed(s))["w0"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("log_std", [-9.0, -2.0])
def test_the_std_has_a_floor(log_std):
    policy = MLPPolicy(GAUSSIAN, (5,), min_std=0.05)
    params = random_params(policy, K) | {"log_std": torch.full((K, 2), log_std)}
    dist = policy.distribution(params, observations(K, 4))
    torch.testing.assert_close(dist.log_std, torch.full((K, 1, 2), max(log_std, math.log(0.05))))


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"activation": "sigmoid"}, "sigmoid"),
        ({"hidden": (5, 0)}, r"\(5, 0\)"),
        ({"init_std": 0.01, "min_std": 0.02}, "0.02 and 0.01"),
        ({"min_std": 0.0}, "0.0"),
        ({"init_std": -1.0}, "-1.0"),
        ({"init_std": math.nan}, "nan"),
    ],
)
def test_nonsense_is_refused_with_its_value(setting, shown):
    with pytest.raises(ValueError, match=shown):
        MLPPolicy(GAUSSIAN, **setting)


# ---------------------------------------------------------------------------------------------------------------------
# Context vectors


CONTEXT = MLPPolicy(GAUSSIAN, (5,), context=2)


def test_a_context_is_an_input_beside_the_observation():
    params, obs = random_params(CONTEXT, K), observations(K, 4)
    wider = MLPPolicy(Spaces(Box(-np.inf, np.inf, (5,), np.float32), GAUSSIAN.action), (5,))
    joined = {name: value for name, value in params.items() if not name.startswith("context")}
    joined["w0"] = torch.cat([params["w0"], params["context_weight"]], 1)
    x = torch.cat([obs, params["context"][:, None].expand(K, 4, 2)], -1)
    got, want = CONTEXT.distribution(params, obs), wider.distribution(joined, x)
    torch.testing.assert_close(got.mean, want.mean)
    assert (got.mean - MLPPolicy(GAUSSIAN, (5,)).distribution(folded(params) | {"b0": params["b0"]}, obs).mean).any()


def test_a_context_starts_at_zero_and_its_weights_do_not():
    params = CONTEXT.init(torch.Generator().manual_seed(0))
    plain = MLPPolicy(GAUSSIAN, (5,)).init(torch.Generator().manual_seed(0))
    assert not params["context"].any() and params["context_weight"].abs().min() > 0
    assert all(torch.equal(params[name], value) for name, value in plain.items())  # a seed means the same without


def test_a_policy_can_be_rid_of_its_context():
    params, obs = random_params(CONTEXT, K), observations(K, 4)
    policy, own = without_context(CONTEXT, params)
    assert policy == MLPPolicy(GAUSSIAN, (5,)) and not any(name.startswith("context") for name in own)
    torch.testing.assert_close(policy.distribution(own, obs).mean, CONTEXT.distribution(params, obs).mean)


def test_a_policy_without_a_context_stays_as_it_is():
    policy = MLPPolicy(GAUSSIAN, (5,))
    params = random_params(policy, K)
    assert without_context(policy, params) == (policy, params)
    module = ModulePolicy(GAUSSIAN, nn.Linear(3, 2))
    assert without_context(module, params) == (module, params)


# ---------------------------------------------------------------------------------------------------------------------
# The hyperbolic tangent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_right_to_the_last_places(dtype):
    special = [0.0, -0.0, 1e-30, -1e-6, 1e-3, 0.5, -3.0, 9.5, 100.0, math.inf, -math.inf]
    g = torch.Generator().manual_seed(0)
    large, small = (scale * torch.randn(5000, dtype=dtype, generator=g) for scale in (3, 1e-4))
    z = torch.cat([large, small, torch.tensor(special, dtype=dtype)])
    exact = np.tanh(z.numpy().astype(np.longdouble))
    with torch.no_grad():
        got = tanh(z.clone())
    error = np.abs(got.numpy().astype(np.longdouble) - exact)
    assert (error <= 2 * torch.finfo(dtype).eps * np.abs(exact)).all(), float((error / np.abs(exact)).max())
    with torch.no_grad():
        assert tanh(torch.tensor([math.nan])).isnan().all()


def test_tanh_is_differentiated_where_that_is_asked_for_and_overwrites_nothing_there():
    z = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(tanh(z).sum(), z)
    torch.testing.assert_close(slope, 1 - torch.tanh(z.detach()) ** 2)
    data = torch.tensor([0.3, -2.0])
    tanh(data)
    assert data.tolist() == pytest.approx([0.3, -2.0])
    with torch.no_grad():
        out, slope = torch.func.jvp(lambda x: tanh(x * 1), (data,), (torch.ones(2),))  # forwards, even here
        torch.testing.assert_close(slope, 1 - torch.tanh(data) ** 2)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(data.clone(), torch.ones(2))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(tanh(dual)).tangent, slope)
        torch.testing.assert_close(torch.func.vmap(lambda x: tanh(x * 1))(data), out)
    assert data.tolist() == pytest.approx([0.3, -2.0])
    wide = torch.full((2, 4), 0.7)
    with torch.no_grad():
        part = tanh(wide[:, ::2])  # of a larger tensor: its other entries, and its own, are somebody else's
    assert wide.tolist() == torch.full((2, 4), 0.7).tolist() and part.tolist() == torch.tanh(wide[:, ::2]).tolist()


@both
def test_acting_overwrites_neither_the_observations_nor_the_parameters(spaces):
    policy = MLPPolicy(spaces, (64, 5))
    params, obs = random_params(policy, K), observations(K, 4, 2)
    kept = {name: value.clone() for name, value in params.items()} | {"obs": obs.clone()}
    recorded = policy.distribution(params, obs)
    with torch.no_grad():
        acted = policy.distribution(params, obs)
        again = policy.distribution(params, obs)
    torch.testing.assert_close(tuple(acted), tuple(recorded))
    assert all(torch.equal(a, b) for a, b in zip(acted, again, strict=True))
    assert all(torch.equal(value, kept[name]) for name, value in (params | {"obs": obs}).items())
