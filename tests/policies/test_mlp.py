"""Stacked policies against plain torch modules, one task at a time."""

import math
import warnings

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from probes import random_params
from torch import Tensor, nn

import metarl
from metarl.formulas.distributions import Categorical, Gaussian
from metarl.params import Params, expand
from metarl.policies.mlp import MLPPolicy, folded, without_context
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import Spaces
from metarl.policies.stacked_mlp import tanh

OBS = Box(-np.inf, np.inf, (3,), np.float32)
GAUSSIAN = Spaces(OBS, Box(-1, 1, (2,), np.float32))
CATEGORICAL = Spaces(OBS, Discrete(4))
K = 3
both = pytest.mark.parametrize("spaces", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])


def observations(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(5))


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
# Any nn.Module


def sequential(out: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, out))


class Branching(nn.Module):
    """Takes another way where its input is large: vmap cannot follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = sequential()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.sum() > 0 else 2 * self.net(x)


def module_params(policy: ModulePolicy, seed: int = 0) -> Params:
    g = torch.Generator().manual_seed(seed)
    stacked = expand(policy.init(g), K)
    return {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in stacked.items()}


def second_derivative(policy: ModulePolicy | MLPPolicy, params: Params, obs: Tensor) -> Tensor:
    """The gradient of the squared gradient of a loss: what a second-order meta-gradient is made of."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items() if name != "log_std"}
    loss = (policy.distribution(params | leaves, obs)[0] ** 3).sum()
    gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    squared = torch.stack([(g**2).sum() for g in gradient]).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(squared, list(leaves.values()))])


@both
def test_a_module_equals_the_mlp_with_the_same_weights(spaces):
    policy, mlp = ModulePolicy(spaces, sequential(spaces.act_dim)), MLPPolicy(spaces, (5,))
    params, obs = module_params(policy), observations(K, 4, 2)
    same = {f"w{i}": params[f"module.{2 * i}.weight"].mT for i in (0, 1)}
    same |= {f"b{i}": params[f"module.{2 * i}.bias"] for i in (0, 1)}
    same |= {name: value for name, value in params.items() if name == "log_std"}
    torch.testing.assert_close(tuple(policy.distribution(params, obs)), tuple(mlp.distribution(same, obs)))


def as_loop(policy: ModulePolicy) -> ModulePolicy:
    object.__setattr__(policy.stacked, "batched", False)
    return policy


def test_vmap_and_loop_give_the_same_output():
    policy = ModulePolicy(GAUSSIAN, sequential())
    params, obs = module_params(policy), observations(K, 4, 2)
    fast, slow = policy.distribution(params, obs).mean, as_loop(policy).distribution(params, obs).mean
    torch.testing.assert_close(fast, slow)


def test_vmap_and_loop_give_the_same_second_derivative():
    policy = ModulePolicy(GAUSSIAN, sequential())
    params, obs = {n: v.double() for n, v in module_params(policy).items()}, observations(K, 4, 2).double()
    fast = second_derivative(policy, params, obs)
    torch.testing.assert_close(fast, second_derivative(as_loop(policy), params, obs))


def test_a_plain_module_runs_under_vmap_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ModulePolicy(GAUSSIAN, sequential()).batched


@pytest.fixture
def branching() -> ModulePolicy:
    with pytest.warns(UserWarning, match="one by one"):
        return ModulePolicy(GAUSSIAN, Branching())


def branch_observations() -> Tensor:
    """[K, 4, 3]; tasks take different branches."""
    return observations(K, 4) + torch.tensor([5.0, -5.0, 5.0])[:, None, None]


def test_a_module_that_vmap_refuses_still_gives_the_right_output(branching):
    params, obs = module_params(branching), branch_observations()
    plain = Branching()
    for k in range(K):
        plain.load_state_dict({n.removeprefix("module."): v[k] for n, v in params.items() if n != "log_std"})
        torch.testing.assert_close(branching.distribution(params, obs).mean[k], plain(obs[k]))


def test_a_module_that_vmap_refuses_is_differentiated_twice(branching):
    params = {n: v.double() for n, v in module_params(branching).items()}
    obs = branch_observations().double()
    names = [n for n in params if n != "log_std"]
    direction = {n: torch.randn(params[n].shape, generator=torch.Generator().manual_seed(1)).double() for n in names}

    def squared_gradient(shift: float) -> Tensor:
        leaves = {n: (params[n] + shift * direction[n]).requires_grad_() for n in names}
        loss = (branching.distribution(params | leaves, obs).mean ** 3).sum()
        return sum((g**2).sum() for g in torch.autograd.grad(loss, list(leaves.values())))

    want = (squared_gradient(1e-6) - squared_gradient(-1e-6)) / 2e-6
    got = second_derivative(branching, params, obs) @ torch.cat([direction[n].flatten() for n in names])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


class Counting(nn.Module):
    """Counts its calls in a buffer and scales with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = sequential()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.scale * self.net(x)


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.mark.filterwarnings("ignore:torch.func.vmap refuses")
@pytest.mark.parametrize("make", [Counting, batch_norm])
def test_buffers_stay_as_they_are(make):
    module = make()
    before = {name: value.clone() for name, value in module.named_buffers()}
    policy = ModulePolicy(GAUSSIAN, module)
    for _ in range(2):
        policy.distribution(module_params(policy), observations(K, 4))
    assert all(torch.equal(value, before[name]) for name, value in policy.module.named_buffers())
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())


def test_every_task_draws_its_own_dropout():
    policy = ModulePolicy(GAUSSIAN, nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 2)))
    params = expand(policy.init(torch.Generator()), 2)
    mean = policy.distribution(params, torch.ones(2, 4, 3))[0]
    assert policy.batched and not torch.allclose(mean[0], mean[1])
    policy.module.eval()
    mean = policy.distribution(params, torch.ones(2, 4, 3))[0]
    assert torch.allclose(mean[0], mean[1])  # the control: nothing else tells the tasks apart


def test_buffers_are_used():
    module = Counting()
    policy = ModulePolicy(GAUSSIAN, module)
    obs = observations(1, 4)
    torch.testing.assert_close(policy.distribution(expand(policy.init(torch.Generator()), 1), obs).mean[0],
                               3 * module.net(obs[0]))  # fmt: skip


def test_the_given_module_is_left_alone():
    module = sequential().double()
    policy = ModulePolicy(GAUSSIAN, module)
    assert module[0].weight.requires_grad
    assert module[0].weight.dtype == torch.float64
    assert not any(a is b for a in module.parameters() for b in policy.module.parameters())


def test_a_module_starts_from_its_own_parameters():
    module = sequential()
    assert torch.equal(ModulePolicy(GAUSSIAN, module).init(torch.Generator())["module.2.weight"], module[2].weight)


@pytest.mark.parametrize(
    ("module", "shown"), [(nn.Linear(3, 5), r"\(3, 5\)"), (nn.Flatten(0), r"\(9,\)"), (nn.LSTM(3, 2), "tuple")]
)
def test_a_module_with_another_output_is_refused_with_the_shapes(module, shown):
    with pytest.raises(ValueError, match=rf"\[N, 3\] to \[N, 2\].*{shown}"):
        ModulePolicy(GAUSSIAN, module)


def test_a_module_s_std_has_a_floor():
    policy = ModulePolicy(GAUSSIAN, sequential(), min_std=0.05)
    params = module_params(policy) | {"log_std": torch.full((K, 2), -9.0)}
    assert policy.distribution(params, observations(K, 4)).log_std.exp().unique().item() == pytest.approx(0.05)


@pytest.mark.parametrize(("init_std", "min_std"), [(-1.0, 1e-3), (1.0, -2.0), (0.01, 0.02)])
def test_a_module_policy_refuses_a_nonsensical_std(init_std, min_std):
    with pytest.raises(ValueError, match="min_std < init_std"):
        ModulePolicy(GAUSSIAN, sequential(), init_std, min_std)


def test_shared_parameters_stay_shared():
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    module[2] = module[0]
    policy = ModulePolicy(GAUSSIAN, module)
    params = expand({n: v + 1 for n, v in policy.init(torch.Generator()).items()}, 1)
    plain = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    plain[2] = plain[0]
    plain.load_state_dict({n: v + 1 for n, v in module.state_dict().items()})
    obs = observations(1, 4)
    torch.testing.assert_close(policy.distribution(params, obs).mean[0], plain(obs[0]))


def test_a_parameter_that_the_module_does_not_use_stays_and_the_others_learn():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    learner = metarl.MetaLearner(
        "maml_trpo", metarl.make("PointNavigation-v0", horizon=4), policy=Idle(), n_tasks=2, episodes=3
    )
    before = {name: value.clone() for name, value in learner.state.params.items()}
    learner.learn(1, eval_every=0)
    moved = {name for name, value in learner.state.params.items() if not torch.equal(value, before[name])}
    assert moved == {"module.used.weight", "module.used.bias", "log_std"}


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
