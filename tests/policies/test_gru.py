"""The recurrent policy: its formula by hand, the fast form against the slow one, its gradient, what goes in and out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from probes import gru_params

from metarl.formulas import distributions
from metarl.formulas.distributions import Categorical, Gaussian, MultiCategorical
from metarl.policies.gru import GRUPolicy, Memory, action_vector
from metarl.policies.spaces import Spaces

OBS = Box(-1, 1, (3,), np.float32)
ACTIONS = {
    "box": Box(-1, 1, (2,), np.float32),
    "discrete": Discrete(4),
    "multi": MultiDiscrete([3, 2]),
    "binary": MultiBinary(3),
}


def policy_of(action: str = "discrete", hidden: int = 5, **options: Any) -> GRUPolicy:
    return GRUPolicy(Spaces(OBS, ACTIONS[action]), hidden, **options)


def test_one_unit_by_hand():
    policy = GRUPolicy(Spaces(Box(-1, 1, (1,), np.float32), Discrete(2)), 1)
    params = policy.init(torch.Generator())
    params["w_in"] = torch.tensor([[0.5, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0], [2.0, 0, 0, 0, 0]])
    params["b_in"] = torch.tensor([0.1, 0.2, 0.3])
    params["w_rec"], params["b_rec"] = torch.tensor([[0.7], [-0.4], [1.5]]), torch.tensor([-0.2, 0.6, 0.9])
    x, h = 0.8, -0.3
    r = 1 / (1 + math.exp(-(0.5 * x + 0.1 + 0.7 * h - 0.2)))
    z = 1 / (1 + math.exp(-(-1.0 * x + 0.2 - 0.4 * h + 0.6)))
    n = math.tanh(2.0 * x + 0.3 + r * (1.5 * h + 0.9))
    got = policy.step(params, torch.tensor([x, 0, 0, 0, 0]), torch.tensor([h]))
    assert float(got) == pytest.approx((1 - z) * n + z * h, abs=1e-6)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_all_steps_at_once_equal_one_after_the_other(dtype, close):
    policy = policy_of(hidden=7)
    params, g = gru_params(policy, dtype=dtype), torch.Generator().manual_seed(1)
    x = torch.randn(11, 4, policy.input_dim, generator=g).to(dtype)
    hidden = torch.randn(4, 7, generator=g).to(dtype)
    fast, slow = policy.unroll(params, x, hidden), []
    for t in range(11):
        hidden = policy.step(params, x[t], hidden)
        slow.append(hidden)
    assert (fast - torch.stack(slow)).abs().max() < close
    assert (fast[1:] - fast[:-1]).abs().max() > 0.1  # the control: it moves


@pytest.mark.parametrize("head_hidden", [0, 7])
@pytest.mark.parametrize("action", [*ACTIONS, "discrete, of an image"])
def test_gradient_against_finite_differences(action, head_hidden):
    if action in ACTIONS:
        policy = policy_of(action, 4, head_hidden=head_hidden)
    else:
        policy = GRUPolicy(IMAGE, 4, head_hidden=head_hidden, last_obs=True, channels=(3,))
    params, g = gru_params(policy), torch.Generator().manual_seed(2)
    x = torch.randn(6, 3, policy.input_dim, generator=g, dtype=torch.float64)
    start = torch.zeros(3, 4, dtype=torch.float64)
    dist, _ = policy.heads(params, policy.unroll(params, x, start))
    noise = torch.rand(6, 3, policy.spaces.noise_dim, generator=g, dtype=torch.float64)
    act = distributions.sample(dist, noise)

    def loss(own):
        dist, value = policy.heads(own, policy.unroll(own, x, start))
        return (distributions.log_prob(dist, act) * (1 + x[..., 0])).sum() + value.square().sum()

    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    grads = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    for name in params:
        v = torch.randn(params[name].shape, generator=g, dtype=torch.float64)
        up, down = (loss(params | {name: params[name] + h * v}) for h in (1e-6, -1e-6))
        along = float((grads[name] * v).sum())
        assert abs(along) > 1e-3
        assert float(up - down) / 2e-6 == pytest.approx(along, rel=1e-6, abs=1e-7), name


def test_an_input_is_observation_action_reward_and_episode_start():
    policy = policy_of("discrete")
    action, before = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1]]), torch.tensor([[7.0, 8, 9], [-1, -2, -3]])
    obs, first = torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([1.0, 0.0])
    memory = policy.remember(torch.zeros(2, 5), before, action, torch.tensor([0.5, -2.0]))
    assert policy.inputs(obs, memory, first).tolist() == [[1, 2, 3, 0, 1, 0, 0, 0.5, 1], [4, 5, 6, 0, 0, 0, 1, -2, 0]]
    assert policy.input_dim == 9


def test_an_input_may_have_the_last_observation_too():
    policy = policy_of(last_obs=True)
    action, before = torch.tensor([0.0, 1, 0, 0]), torch.tensor([7.0, 8, 9])
    memory = policy.remember(torch.zeros(5), before, action, torch.tensor(0.5))
    x = policy.inputs(torch.tensor([1.0, 2, 3]), memory, 1.0)
    assert x.tolist() == [1, 2, 3, 0, 1, 0, 0, 0.5, 1, 7, 8, 9] and policy.input_dim == len(x)
    assert policy.inputs(torch.tensor([1.0, 2, 3]), policy.blank(), 1.0).tolist() == [1, 2, 3, *[0] * 5, 1, 0, 0, 0]
    assert policy.init(torch.Generator())["w_in"].shape == (15, 12)


def test_an_input_may_have_products():
    policy = GRUPolicy(Spaces(Box(-1, 1, (2,), np.float32), Discrete(3)), 5, last_obs=True, products=True)
    memory = policy.remember(torch.zeros(5), torch.tensor([7.0, 8]), torch.tensor([0.0, 1, 2]), torch.tensor(0.5))
    x = policy.inputs(torch.tensor([1.0, 2]), memory, 1.0)
    pairs = [0, 7, 14, 0, 8, 16]
    assert x.tolist() == [1, 2, 0, 1, 2, 0.5, 1, 7, 8, *pairs, *(0.5 * x for x in pairs)]
    assert policy.input_dim == len(x) and policy.init(torch.Generator())["w_in"].shape == (15, 21)
    assert not policy.inputs(torch.tensor([1.0, 2]), policy.blank(), 0.0)[2:].any()


def test_actions_as_vectors():
    multi, binary = (Spaces(OBS, ACTIONS[name]) for name in ("multi", "binary"))
    assert action_vector(Spaces(OBS, Discrete(3)), torch.tensor([[2], [0]])).tolist() == [[[0, 0, 1]], [[1, 0, 0]]]
    assert action_vector(multi, torch.tensor([[2, 0], [1, 1]])).tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    assert action_vector(binary, torch.tensor([[1, 0, 1]])).tolist() == [[0, 1, 1, 0, 0, 1]]
    box = torch.tensor([[0.3, -4.0]])
    assert action_vector(Spaces(OBS, ACTIONS["box"]), box) is box


@pytest.mark.parametrize(
    ("action", "kind"),
    [("box", Gaussian), ("discrete", Categorical), ("multi", MultiCategorical), ("binary", MultiCategorical)],
)
def test_the_heads_fit_the_action_space(action, kind):
    policy = policy_of(action)
    dist, value = policy.heads(gru_params(policy), torch.ones(7, 2, 5, dtype=torch.float64))
    assert isinstance(dist, kind) and dist[0].shape == (7, 2, policy.spaces.act_dim) and value.shape == (7, 2)


def test_heads_by_hand_and_the_floor_of_the_standard_deviation():
    policy = GRUPolicy(Spaces(OBS, ACTIONS["box"]), 2, init_std=0.5, min_std=0.1)
    params = policy.init(torch.Generator())
    assert params["log_std"].exp().tolist() == pytest.approx([0.5, 0.5])
    params |= {"w_act": torch.tensor([[1.0, 2], [3, 4]]), "b_act": torch.tensor([0.5, 0]),
               "w_value": torch.tensor([[10.0, 1]]), "b_value": torch.tensor([7.0]),
               "log_std": torch.tensor([-9.0, 0.2])}  # fmt: skip
    dist, value = policy.heads(params, torch.tensor([1.0, -1.0]))
    assert dist.mean.tolist() == [-0.5, -1.0] and float(value) == 16.0
    assert dist.log_std.exp().tolist() == pytest.approx([0.1, math.exp(0.2)])


def test_initial_parameters():
    policy = policy_of("box", 16)
    a, b = (policy.init(torch.Generator().manual_seed(seed)) for seed in (3, 4))
    again = policy.init(torch.Generator().manual_seed(3))
    assert all(torch.equal(a[name], again[name]) for name in a) and not torch.equal(a["w_in"], b["w_in"])
    for block in a["w_rec"].split(16):
        assert (block @ block.T - torch.eye(16)).abs().max() < 1e-5
    assert not torch.equal(*a["w_rec"].split(16)[:2])
    assert a["w_act"].abs().max() < 0.01  # the first actions follow from the biases, which are zero


def test_initial_rotations_have_no_preferred_sign():
    # Of a uniformly drawn orthogonal matrix every entry is as often positive as negative. What LAPACK's QR gives is
    # not such a matrix: its first entry is negative in every draw.
    policy = policy_of(hidden=3)
    draws = torch.stack([policy.init(torch.Generator().manual_seed(seed))["w_rec"] for seed in range(200)])
    positive = (draws > 0).float().mean(0)
    assert (positive - 0.5).abs().max() < 0.14  # four standard deviations of 200 coins


def test_memory_of_some_and_of_others():
    old, new = (Memory(*(torch.full(s, x) for s in ((2, 3), (2, 1), (2,), (2, 4)))) for x in (1.0, 2.0))
    mixed = new.where(torch.tensor([True, False]), old)
    assert [value[:, 0].tolist() if value.dim() > 1 else value.tolist() for value in mixed] == [[2.0, 1.0]] * 4


def test_a_layer_in_front_of_the_heads_by_hand():
    policy = policy_of(hidden=2, head_hidden=3)
    params = policy.init(torch.Generator())
    assert params["w_act"].shape == (4, 3) and params["w_value"].shape == (1, 3)
    params |= {"w_head": torch.tensor([[1.0, 0], [0, 1], [-1, 2]]), "b_head": torch.tensor([0.5, 0.0, 0.25]),
               "w_act": torch.tensor([[1.0, 10, 100]] * 4), "b_act": torch.tensor([0.0, 1, 2, 3]),
               "w_value": torch.tensor([[2.0, 3, 4]]), "b_value": torch.tensor([7.0])}  # fmt: skip
    dist, value = policy.heads(params, torch.tensor([1.0, -1.0]))  # relu of 1.5, -1 and -2.75
    expected = torch.log_softmax(torch.tensor([1.5, 2.5, 3.5, 4.5]), 0)
    assert torch.allclose(torch.log_softmax(dist[0], 0), expected, atol=1e-6) and float(value) == 10.0


def test_units_start_with_memories_of_different_length():
    """Without input a unit loses 1 - z = 1 / (1 + s) of what it holds in a step, s log-uniform from 1 to 50."""
    policy = policy_of(hidden=4000, memory_steps=50.0)
    params = policy.init(torch.Generator().manual_seed(0))
    z = torch.sigmoid(params["b_in"][4000:8000])
    s = z / (1 - z)
    assert float(s.min()) > 0.999 and float(s.max()) < 50.001
    # 4000 draws: the mean of log s is off by a standard deviation of 0.018.
    assert float(s.log().mean()) == pytest.approx(math.log(50) / 2, abs=0.08)
    assert float(s.log().std()) == pytest.approx(math.log(50) / 12**0.5, abs=0.05)
    # Reset gates and candidates have no bias, and by default nothing has.
    assert not params["b_in"][:4000].any() and not params["b_in"][8000:].any()
    assert not policy_of().init(torch.Generator())["b_in"].any()


def test_input_gain_scales_the_weights_of_the_inputs_and_nothing_else():
    plain, scaled = (policy_of(input_gain=g).init(torch.Generator().manual_seed(3)) for g in (1.0, 6.0))
    for name, value in plain.items():
        assert torch.equal(scaled[name], 6 * value if name == "w_in" else value), name


IMAGE = Spaces(Box(0, 255, (5, 6, 2), np.uint8), Discrete(3))


@pytest.mark.parametrize("last_obs", [False, True])
def test_convolutions_in_front_equal_plain_ones(last_obs):
    """Features by torch's own layers, then a policy without convolutions that gets them as its observations."""
    policy = GRUPolicy(IMAGE, 4, last_obs=last_obs, channels=(3, 2))
    params, g = gru_params(policy), torch.Generator().manual_seed(1)
    layers = []
    for i, (n, m) in enumerate(((2, 3), (3, 2))):
        conv = torch.nn.Conv2d(n, m, 3, stride=2, padding=1)
        conv.weight, conv.bias = (torch.nn.Parameter(params[f"{name}{i}"]) for name in ("conv", "conv_bias"))
        layers += [conv, torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers, torch.nn.Flatten())

    def features(x):
        return net(x.reshape(-1, 5, 6, 2).permute(0, 3, 1, 2)).reshape(*x.shape[:-1], 8)

    x = torch.rand(7, 4, policy.input_dim, generator=g, dtype=torch.float64)
    start, rest = torch.rand(4, 4, generator=g, dtype=torch.float64), x[..., 60:65]
    small = GRUPolicy(Spaces(Box(-1, 1, (8,), np.float32), Discrete(3)), 4, last_obs=last_obs)
    parts = [features(x[..., :60]), rest, *([features(x[..., 65:])] if last_obs else [])]
    want = small.unroll(params, torch.cat(parts, -1), start)
    got, hidden = policy.unroll(params, x, start), start
    assert policy.input_dim == 60 + 5 + 60 * last_obs and torch.allclose(got, want, atol=1e-12)
    for t in range(7):
        hidden = policy.step(params, x[t], hidden)
        assert torch.allclose(hidden, want[t], atol=1e-12)
    # The control: every image counts.
    for part in ((0, 60), (65, 125))[: 1 + last_obs]:
        dark = x.index_fill(-1, torch.arange(*part), 0.0)
        assert (policy.unroll(params, dark, start) - got).abs().max() > 0.01


def test_nonsense_is_refused():
    for bad in ({"head_hidden": -1}, {"input_gain": 0.0}, {"memory_steps": 0.5}, {"memory_steps": math.inf}):
        with pytest.raises(ValueError, match="1 <= memory_steps < inf, got"):
            policy_of(**bad)
    with pytest.raises(ValueError, match="at least one unit each, got \\(0,\\)"):
        policy_of(hidden=0)
    with pytest.raises(ValueError, match=r"0 < min_std < init_std, got 2\.0 and 1\.0"):
        GRUPolicy(Spaces(OBS, Discrete(2)), 4, min_std=2.0)
    with pytest.raises(ValueError, match="convolutions need at least one channel each"):
        GRUPolicy(IMAGE, 4, channels=(0,))
    with pytest.raises(ValueError, match="takes images"):
        policy_of(channels=(3,))
    with pytest.raises(ValueError, match="products needs last_obs=True"):
        policy_of(products=True)
    with pytest.raises(ValueError, match=r"products needs .* channels=\(3,\)"):
        GRUPolicy(IMAGE, 4, last_obs=True, products=True, channels=(3,))
    policy = policy_of()
    with pytest.raises(AssertionError):
        policy.step(gru_params(policy), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(AssertionError):
        policy.unroll(gru_params(policy), torch.zeros(2, 3, policy.input_dim), torch.zeros(4, 5))
