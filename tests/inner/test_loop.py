"""The inner loop as it runs: what adapts, which episodes it takes, what may not matter, noise after every step."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from inner_runs import RUN, adaptation
from probes import Drift, Locks, Signs, TwoArms, double, random_params, setup
from torch import Tensor

from metarl import parallel
from metarl.algorithms import maml_trpo, reptile
from metarl.inner import loop
from metarl.inner import settings as inner_settings
from metarl.inner.loss import Batch
from metarl.inner.state import learned_statistics
from metarl.rollout.rollout import Rollout
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup

# ---------------------------------------------------------------------------------------------------------------------
# Inner optimisers


SETTINGS = [
    {"inner_optimizer": "momentum"},
    {"inner_optimizer": "adam"},
    {"inner_optimizer": "natural"},
    {"learned_lr": "per_parameter", "learned_mask": True},
    {"learned_lr": "per_layer_and_step"},
    {"learned_discount": True, "learned_lambda": True, "gae_lambda": 0.8},
    {"adapts": "context", "context": 3},
    {"adapts": "head"},
    {"inner_gradient": "dice"},
]
settings = pytest.mark.parametrize("changes", SETTINGS, ids=str)
families = pytest.mark.parametrize("family", [Drift(), Locks()], ids=["gaussian", "several"])


@families
@settings
def test_a_task_adapts_alone_as_it_does_among_others(family, changes):
    config = replace(RUN, **changes)
    _, _, many = adaptation(config, family=family)
    _, _, alone = adaptation(config, 1, family=family)
    for name, value in many.params[-1].items():
        torch.testing.assert_close(value[:1], alone.params[-1][name], atol=1e-4, rtol=1e-4)


@settings
def test_chunks_and_threads_adapt_alike(changes, monkeypatch):
    config = replace(RUN, **changes)
    _, _, whole = adaptation(config)
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 8 * 4)
    _, _, cut = adaptation(config)
    torch.set_num_threads(3)
    _, _, threads = adaptation(config)
    for name, value in whole.params[-1].items():
        torch.testing.assert_close(cut.params[-1][name], value, atol=1e-4, rtol=1e-4)
        assert torch.equal(threads.params[-1][name], cut.params[-1][name])


@settings
def test_it_adapts_for_callers_without_gradients(changes):
    config = replace(RUN, **changes)
    with torch.no_grad():
        _, _, without = adaptation(config)
    _, _, done = adaptation(config)
    assert all(torch.equal(without.params[-1][name], value) for name, value in done.params[-1].items())
    assert not any(value.requires_grad for value in done.params[-1].values())


# ---------------------------------------------------------------------------------------------------------------------
# What adapts


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({}, {"w0", "b0", "w1", "b1"}),
        ({"adapt_std": True}, {"w0", "b0", "w1", "b1", "log_std"}),
        ({"adapts": "head"}, {"w1", "b1"}),
        ({"adapts": "head", "adapt_std": True}, {"w1", "b1", "log_std"}),
        ({"adapts": "context", "context": 3}, {"context"}),
        ({"adapts": "context", "context": 3, "adapt_std": True}, {"context", "log_std"}),
        # A context of zero leaves its weights without a gradient in the first step, and not in the second.
        ({"context": 3}, {"w0", "b0", "w1", "b1", "context", "context_weight"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_what_adapts_and_nothing_else(changes, moves):
    _, state, done = adaptation(replace(RUN, **changes))
    moved = {
        name for name, value in done.params[-1].items() if not torch.equal(value, state.params[name].expand_as(value))
    }
    assert moved == moves


def test_a_closed_mask_keeps_its_number_and_an_open_one_lets_it_go():
    config = replace(RUN, learned_mask=True)
    _, state, _ = adaptation(config)
    closed = replace(state, learned={name: value - 0.5 for name, value in state.learned.items()})
    sampler, policy, _ = setup(Drift(), config)
    tasks = sampler.tasks(3, 1, 0, "test")
    done = loop.evaluate(Setup(config, sampler, policy, 5), closed, tasks, 4, (0.2,))
    moved = torch.cat([(done.params[-1][n] != state.params[n]).all(0).flatten() for n in ("w0", "b0", "w1")])
    opened = torch.cat([(closed.learned[f"mask/{n}"] >= 0).flatten() for n in ("w0", "b0", "w1")])
    assert torch.equal(moved, opened)
    assert 5 < int(moved.sum()) < moved.numel() - 5


# ---------------------------------------------------------------------------------------------------------------------
# Inner gradients with the same step


def one_step(**changes) -> Tensor:
    config = replace(RUN, **changes)
    sampler, policy, _ = setup(Drift(), config)
    params = random_params(policy, 3)
    rollout = sampler.collect(sampler.tasks(3, 0, 0), 4, policy, params, 0, 0, 0)
    (batch,) = double([Batch.of(config, rollout)])
    params = {name: value.double() for name, value in params.items()}
    return loop.detached_step(config, policy, params, loop.InnerStep(batch, 0.2))[0]["w1"]


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_loaded_dice_takes_the_step_of_the_policy_gradient(lam):
    got = one_step(inner_gradient="loaded_dice", dice_lambda=lam)
    torch.testing.assert_close(got, one_step(), atol=1e-7, rtol=1e-7)


def test_dice_takes_the_step_of_the_policy_gradient_without_a_discount():
    # Up to the 1e-8 that is added to the standard deviation; the return minus the baseline is the advantage.
    torch.testing.assert_close(
        one_step(inner_gradient="dice", gamma=1.0), one_step(gamma=1.0), atol=1e-5, rtol=1e-5
    )  # fmt: skip


def test_dice_takes_the_step_with_the_discount_counted_from_the_start():
    config = replace(RUN, gamma=0.7)
    sampler, policy, _ = setup(Drift(), config)
    params = random_params(policy, 3)
    rollout = sampler.collect(sampler.tasks(3, 0, 0), 4, policy, params, 0, 0, 0)
    batch = Batch.of(config, rollout)
    weighted = replace(batch, advantage=batch.advantage * 0.7 ** torch.arange(8)[:, None])
    want, _ = loop.detached_step(config, policy, params, loop.InnerStep(weighted, 0.2))
    got, _ = loop.detached_step(replace(config, inner_gradient="dice"), policy, params, loop.InnerStep(batch, 0.2))
    torch.testing.assert_close(got["w1"], want["w1"], atol=1e-5, rtol=1e-4)
    plain, _ = loop.detached_step(config, policy, params, loop.InnerStep(batch, 0.2))
    assert (got["w1"] - plain["w1"]).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Experience


class Noting(Sampler):
    """Notes the first task parameter and the stage of every rollout."""

    asked: list[tuple[list[float], int]]

    def collect(self, tasks, episodes, policy, params, seed, iteration, stage, obs_stats=None) -> Rollout:
        self.asked.append((tasks["push"][:, 0].tolist(), stage))
        return super().collect(tasks, episodes, policy, params, seed, iteration, stage, obs_stats)


def test_a_task_taken_alone_has_episodes_of_its_own():
    config = reptile.Config(n_tasks=3, episodes=2, inner_steps=1, hidden=(4,), inner_lr=0.1)
    sampler, (_, policy, state) = Noting(Drift()), setup(Drift(), config)
    sampler.asked = []
    for k in range(3):
        loop.experience(Setup(config, sampler, policy, 0), state, only=k)
    push = sampler.tasks(3, 0, 0)["push"][:, 0].tolist()
    assert sampler.asked == [([push[k]], 2 * k + stage) for k in range(3) for stage in range(2)]


def test_an_evaluation_estimates_advantages_only_where_a_step_is_taken_on_them(monkeypatch):
    counted, estimate = [], inner_settings.estimate
    monkeypatch.setattr(inner_settings, "estimate", lambda *args: (counted.append(1), estimate(*args))[1])
    _, _, found = adaptation(n=2, sizes=(0.2, 0.1))
    assert (len(counted), len(found.rollouts)) == (2, 3)
    sampler, policy, state = setup(Drift(), RUN)
    assert len(loop.experience(Setup(RUN, sampler, policy, 0), state).data) == RUN.inner_steps + 1


def test_the_next_state_has_all_that_was_given_and_the_rest_of_the_last():
    config = replace(RUN, learned_lr="scalar", adapts="context", context=2, normalize_obs=True)
    sampler, policy, state = setup(Drift(), config)
    found = loop.experience(Setup(config, sampler, policy, 0), replace(state, env_steps=100))
    meta = {"w0": torch.ones_like(state.params["w0"]), "lr": torch.tensor(3.0)}
    new = loop.advance(config, replace(state, env_steps=100), found, meta, {"count": torch.ones(())})
    assert list(new.params) == list(state.params) and list(new.learned) == ["lr"]
    assert (new.params["w0"] == 1).all() and new.params["context"] is state.params["context"]
    assert (float(new.learned["lr"]), new.iteration, list(new.optimizer)) == (3.0, 1, ["count"])
    assert new.env_steps == 100 + sum(int(r.mask.sum()) for r in found.rollouts)
    assert any(not torch.equal(value, state.obs_stats[name]) for name, value in new.obs_stats.items())


# ---------------------------------------------------------------------------------------------------------------------
# Noise that changes after every inner step


def test_the_noise_of_a_step_by_hand():
    # Two steps in training, three in the test: the third finds nothing of its own to add.
    config = maml_trpo.Config(n_tasks=2, episodes=2, inner_steps=2, hidden=(3,), learned_noise=True, init_std=0.5)
    sampler, policy, state = setup(Drift(), config)
    assert (state.learned["noise"] == 0).all()
    change = torch.tensor([[-1.0, 0.5], [0.25, 0.25]])
    state = replace(state, learned={"noise": change})
    found = maml_trpo.evaluate(Setup(config, sampler, policy, 0), state, sampler.tasks(2, 1, 0), 2, (0.1, 0.1, 0.1))
    start = state.params["log_std"]
    for k, want in enumerate((start, start + change[0], start + change.sum(0), start + change.sum(0))):
        torch.testing.assert_close(found.params[k]["log_std"], want.expand(2, 2))
        torch.testing.assert_close(found.rollouts[k].dist.log_std, want.expand(2, 1, 1, 2))
    factor = math.exp(float(change.sum(0).mean()))
    assert learned_statistics(state)["inner/noise"] == pytest.approx(factor)


class Target(Signs):
    """One step; the reward is minus the squared distance of the action from the task's sign."""

    id = "TargetProbe-v0"

    def step(self, state, action, task, draws):
        reward = -((action[..., 0] - task["sign"]) ** 2)
        return state, reward, torch.ones_like(reward, dtype=torch.bool)


def test_noise_shrinks_where_it_only_costs():
    # The first episodes tell by their noise where the target lies; after the step it costs its square.
    settings = {"n_tasks": 10, "episodes": 40, "hidden": (4,), "init_std": 0.1, "min_std": 1e-3, "inner_lr": 0.01}
    config = maml_trpo.Config(**settings, learned_noise=True, learned_lr="scalar")
    sampler, policy, state = setup(Target(), config)
    for _ in range(10):
        state, stats = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
    assert stats["inner/noise"] < 0.9


@pytest.mark.parametrize("algorithm", ["maml_trpo", "maml_ppo", "maml_vpg", "meta_sgd", "cavia"])
def test_the_first_episodes_keep_their_noise_without_learned_std(algorithm):
    module = importlib.import_module(f"metarl.algorithms.{algorithm}")
    settings = {"n_tasks": 6, "episodes": 20, "hidden": (4,), "init_std": 0.4, "learned_noise": True}
    changed = {}
    for learned_std in (True, False):
        config = module.Config(**settings, learned_std=learned_std)
        sampler, policy, _ = setup(Target(), config)
        start = module.init(config, policy, sampler.family, 0)
        state, _ = module.iteration(Setup(config, sampler, policy, 0), start)
        changed[learned_std] = {n for n, v in state.meta.items() if not torch.equal(v, start.meta[n])}
    assert "log_std" in changed[True] and {"noise", "b0", "w1"} <= changed[False]
    assert changed[False] == changed[True] - {"log_std"}


def test_choices_have_no_such_noise():
    with pytest.raises(ValueError, match="learned_noise is for Gaussian policies"):
        setup(TwoArms(), maml_trpo.Config(learned_noise=True))
