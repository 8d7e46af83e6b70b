"""Small problems for MAML-TRPO: a policy, its parameters and the data of one iteration; one iteration."""

import pytest
import torch
from probes import (
    Drift,
    Locks,
    TwoArms,
    double,
    setup,
    stages,
)

from metarl.algorithms.maml_trpo import Config, State, iteration
from metarl.inner import loop
from metarl.params import Params
from metarl.policies.base import Policy
from metarl.rollout.setup import Setup

SMALL = Config(n_tasks=3, episodes=4, hidden=(3,), inner_lr=0.3, adapt_std=True, output_gain=0.1)
RUN = Config(n_tasks=4, episodes=5, hidden=(6,), inner_lr=0.1, output_gain=0.1)
families = pytest.mark.parametrize("family", [Drift(), TwoArms(), Locks()], ids=["gaussian", "categorical", "several"])
inner_steps = pytest.mark.parametrize("inner_steps", [0, 1, 2, 3])
ways = pytest.mark.parametrize("by_hand", [True, False], ids=["by-hand", "autograd"])


def problem(family, config: Config) -> tuple[Policy, Params, list[loop.Batch]]:
    """A policy, its parameters and the data of one iteration, in float64."""
    sampler, policy, state = setup(family, config)
    data = double(stages(config, sampler, policy, state.params))
    return policy, {name: value.double() for name, value in state.params.items()}, data


def one(config: Config = RUN, family=None, seed: int = 0, device: str = "cpu", state: State | None = None):
    """The state and the statistics after one iteration."""
    sampler, policy, first = setup(family or Drift(), config, device=device)
    return iteration(Setup(config, sampler, policy, seed), state or first)


def assert_equal(a: State, b: State, **tolerance: float) -> None:
    for name, value in a.params.items():
        torch.testing.assert_close(value, b.params[name], **(tolerance or {"atol": 0, "rtol": 0}))
