"""Any module of PyTorch as a policy: outputs, derivatives, buffers, shared parameters."""

import warnings

import pytest
import torch
from small_policies import GAUSSIAN, K, both, observations
from torch import Tensor, nn

import metarl
from metarl.params import Params, expand
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy


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
