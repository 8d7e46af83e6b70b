"""Networks and settings of few-shot learning: what they make, and what is refused."""

from functools import partial

import pytest
import torch
from supervised_twins import (
    gradient,
    mean_query_loss,
    sinusoids,
    small,
)
from torch import nn

from metarl.params import Params
from metarl.supervised import method
from metarl.supervised.losses import LOSSES
from metarl.supervised.maml import Config
from metarl.supervised.networks import ModuleNetwork

# ---------------------------------------------------------------------------------------------------------------------
# Networks


def as_mlp(module: nn.Sequential) -> Params:
    return {"w0": module[0].weight.T, "b0": module[0].bias, "w1": module[2].weight.T, "b1": module[2].bias}


def test_a_module_learns_as_the_mlp_with_the_same_weights():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    network, config, sets = ModuleNetwork(module, (1,), 1), small(inner_steps=2), sinusoids()
    params = {name: value.double() for name, value in network.init(torch.Generator()).items()}
    got = gradient(partial(mean_query_loss, config, sets, network=network), params)
    want = gradient(partial(mean_query_loss, config, sets), {n: v.detach().double() for n, v in as_mlp(module).items()})
    for mine, theirs in (("w0", "module.0.weight"), ("b0", "module.0.bias"), ("w1", "module.2.weight"),
                         ("b1", "module.2.bias")):  # fmt: skip
        torch.testing.assert_close(want[mine].mT if want[mine].dim() == 2 else want[mine], got[theirs])


def test_a_convolution_is_adapted_for_every_task():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    network = ModuleNetwork(module, (1, 4, 4), 3)
    x = torch.randn(2, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    params = {n: torch.stack([v, 2 * v]) for n, v in network.init(torch.Generator()).items()}
    got = network.outputs(params, x)
    for k in range(2):
        module.load_state_dict({n.removeprefix("module."): v[k] for n, v in params.items()})
        torch.testing.assert_close(got[k], module(x[k]).detach())


def test_a_module_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"\[N, 1, 4, 4\] to \[N, 3\]; for N = 3 it gave \(3, 5\)"):
        ModuleNetwork(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), (1, 4, 4), 3)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"inner_lr": 0.0}, "inner_lr must be positive and finite, got 0.0"),
        ({"outer_lr": -1.0}, "outer_lr must be positive and finite, got -1.0"),
        ({"n_tasks": 0}, "n_tasks must be at least 1, got 0"),
        ({"shots": 1.5}, "shots must be a whole number, got 1.5"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"inner_steps": -1}, "inner_steps must be at least 0, got -1"),
        ({"learned_lr": "all"}, "learned_lr must be one of"),
        ({"outer": "sgd"}, "outer must be one of"),
        ({"adapts": "context"}, "adapts must be one of"),
        ({"anneal_to": 2.0}, r"anneal_to must lie in \[0, 1\], got 2.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must not be negative"),
        ({"outer": "reptile", "inner_steps": 0}, "inner_steps must be at least 1"),
        ({"outer": "reptile", "learned_lr": "scalar"}, "learned_lr='scalar' needs a meta-gradient"),
        ({"outer": "reptile_serial", "adapts": "head"}, "adapts='head' needs a meta-gradient"),
        ({"outer": "reptile", "max_grad_norm": 1.0}, "max_grad_norm=1.0 needs a meta-gradient"),
    ],
)
def test_nonsense_is_refused(settings, shown):
    with pytest.raises(ValueError, match=shown):
        Config(**settings)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method must be one of \['maml', .*got 'mamal'"):
        method("mamal", 10)


def test_the_losses_are_known():
    assert set(LOSSES) == {"mse", "bce", "cross_entropy"}
