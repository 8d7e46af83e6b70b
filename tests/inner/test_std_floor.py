"""The floor of a Gaussian policy's standard deviation: policies act on it, and can leave it again."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from probes import setup

from metarl import TensorFamily
from metarl.algorithms import get
from metarl.inner import loop
from metarl.inner.state import within_floor
from metarl.policies import base
from metarl.policies.base import at_least, floored_log_std
from metarl.rollout.setup import Setup
from metarl.tasks import split_rng

FLOOR = math.log(0.1)


class Wide(TensorFamily):
    """One step that pays the square of the action: the wider the policy, the better, in every task."""

    id = "WideProbe-v0"
    horizon = 1
    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Box(-10, 10, (1,), np.float32)
    task_space = spaces.Dict({"gain": spaces.Box(0.5, 2.0, (), np.float32)})

    def sample(self, n, rng, split="train"):
        return {"gain": split_rng(rng, split).uniform(0.5, 2.0, n).astype(np.float32)}

    def initial(self, task, draws):
        return {"t": torch.zeros(draws.shape[:-1])}

    def observe(self, state, task):
        return torch.ones(*state["t"].shape, 1)

    def step(self, state, action, task, draws):
        return {"t": state["t"] + 1}, task["gain"] * action[..., 0] ** 2, None


def trained_on_the_floor(name: str, iterations: int = 4, **settings) -> float:
    """The standard deviation after some iterations that start far below the floor, over the floor."""
    module = get(name)
    own = {"inner_lr": 1e-3, "hidden": (2,)} if name != "rl2" else {"hidden": 2, "trial_episodes": 2, "minibatches": 1}
    config = module.Config(n_tasks=5, init_std=0.2, min_std=0.1, **own, **settings)
    if name == "rl2":
        from metarl.policies.spaces import spaces_of
        from metarl.rollout.sampler import Sampler

        family = Wide()
        policy, sampler = config.policy(spaces_of(family)), Sampler(family)
        state = module.init(config, policy, sampler.family, 0)
    else:
        sampler, policy, state = setup(Wide(), config)
    state = replace(state, params=state.params | {"log_std": torch.tensor([FLOOR - 6.0])})
    for _ in range(iterations):
        state, _ = module.iteration(Setup(config, sampler, policy, 0), state)
    return float(state.params["log_std"].exp()) / 0.1


WAYS = [("maml_trpo", {"max_kl": 0.05}), ("maml_vpg", {"outer_lr": 0.05}), ("maml_ppo", {"outer_lr": 0.05}),
        ("promp", {"outer_lr": 0.05}), ("rl2", {"outer_lr": 0.05})]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), WAYS, ids=[name for name, _ in WAYS])
def test_a_policy_below_the_floor_leaves_it_where_more_noise_pays(name, settings):
    assert trained_on_the_floor(name, **settings) > 1.05


def test_with_a_plain_clamp_it_would_stay_there_for_good(monkeypatch):
    def clamped(params, min_std):
        return params["log_std"].clamp_min(math.log(min_std))

    monkeypatch.setattr(base, "floored_log_std", clamped)
    monkeypatch.setattr(loop, "within_floor", lambda config, meta: meta)
    assert trained_on_the_floor("maml_vpg", outer_lr=0.05) < 0.1


@pytest.mark.parametrize(("log_std", "value"), [(-9.0, FLOOR), (-2.0, -2.0)])
def test_below_the_floor_the_value_is_the_floors_and_the_derivative_one(log_std, value):
    own = torch.tensor([[log_std]], requires_grad=True)
    floored = floored_log_std({"log_std": own}, 0.1)
    assert floored.item() == pytest.approx(value)
    (3 * floored.sum()).backward()
    assert own.grad.item() == 3


def test_what_an_update_took_below_the_floor_is_put_on_it():
    assert at_least(torch.tensor([-9.0, -1.0]), 0.1).tolist() == pytest.approx([FLOOR, -1.0])


def test_so_is_what_learned_noise_makes_of_it_after_each_step():
    config = get("maml_trpo").Config(min_std=0.1, init_std=0.2, inner_steps=3, learned_noise=True)
    meta = {"log_std": torch.tensor([FLOOR + 1, -9.0]), "noise": torch.tensor([[-3.0, 0.5], [0.25, -2.0], [0.5, 0.5]])}
    found = within_floor(config, meta)
    after = found["log_std"] + found["noise"].cumsum(0)
    torch.testing.assert_close(found["log_std"], torch.tensor([FLOOR + 1, FLOOR]))
    want = FLOOR + torch.tensor([[0.0, 0.5], [0.25, 0.0], [0.75, 0.5]])
    torch.testing.assert_close(after, want)


def test_what_lies_above_the_floor_stays_to_the_last_bit():
    config = get("maml_trpo").Config(min_std=0.1, init_std=0.2, inner_steps=2, learned_noise=True)
    meta = {"log_std": torch.tensor([-0.3]), "noise": torch.tensor([[-0.1], [-0.2]])}
    assert all(torch.equal(value, meta[name]) for name, value in within_floor(config, meta).items())


def test_an_iteration_logs_the_standard_deviation_and_the_share_on_the_floor():
    module = get("maml_trpo")
    config = module.Config(n_tasks=5, init_std=0.2, min_std=0.1, inner_lr=1e-3, hidden=(2,))
    sampler, policy, state = setup(Wide(), config)
    for log_std, std, share in ((-1.0, math.exp(-1), 0.0), (-9.0, 0.1, 1.0)):
        here = replace(state, params=state.params | {"log_std": torch.tensor([log_std])})
        stats = module.iteration(Setup(config, sampler, policy, 0), here)[1]
        assert stats["policy/std"] == pytest.approx(std, rel=1e-5)
        assert stats["policy/std_on_floor"] == share
