"""MAML-TRPO: one iteration from its parts, and its settings."""

import math
from dataclasses import replace

import pytest
import torch
from maml_problems import RUN, assert_equal, families, inner_steps, one
from probes import (
    Drift,
    PointGoal,
    Stops,
    setup,
    stages,
)
from torch import nn

from metarl import parallel
from metarl.algorithms import maml_trpo
from metarl.algorithms.maml_trpo import Config, State, iteration
from metarl.outer import objective as outer
from metarl.outer.trust_region import TrustRegion, trpo_step
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.rollout.sampler import Sampler
from metarl.rollout.setup import Setup

# ---------------------------------------------------------------------------------------------------------------------
# One iteration


@families
@inner_steps
def test_an_iteration_is_the_trust_region_step_on_the_data_of_its_stages(family, inner_steps):
    config = replace(RUN, inner_steps=inner_steps, max_kl=0.003, damping=0.01, cg_iterations=4)
    sampler, policy, state = setup(family, config)
    data = stages(config, sampler, policy, state.params, seed=7)
    objectives = [outer.objective(config, policy, data, 4)]
    want, _ = trpo_step(state.params, objectives, TrustRegion(0.003, 0.01, 4, config.max_backtracks, config.backtrack))
    got, _ = iteration(Setup(config, sampler, policy, 7), state)
    assert_equal(got, State(want), atol=1e-6, rtol=1e-5)


def test_every_setting_of_the_trust_region_reaches_the_step(monkeypatch):
    asked = []

    def noting(params, objectives, region, *more):
        asked.append(region)
        return trpo_step(params, objectives, region, *more)

    monkeypatch.setattr(maml_trpo, "trpo_step", noting)
    one(replace(RUN, max_kl=0.02, damping=0.001, cg_iterations=3, max_backtracks=7, backtrack=0.6))
    assert asked == [TrustRegion(0.02, 0.001, 3, 7, 0.6)]


def test_an_iteration_moves_the_parameters_within_the_trust_region():
    new, stats = one()
    assert stats["outer/accepted"]
    assert 0.1 * RUN.max_kl < stats["outer/kl"] <= RUN.max_kl
    assert all((new.params[name] != value).any() for name, value in setup(Drift(), RUN)[2].params.items())


def test_an_iteration_leaves_the_old_state_alone():
    sampler, policy, state = setup(Drift(), RUN)
    before = {name: value.clone() for name, value in state.params.items()}
    iteration(Setup(RUN, sampler, policy, 0), state)
    assert_equal(state, State(before))
    assert state.iteration == 0


def test_counters_count():
    # Episodes of 1, 2, 3 and 4 steps, 5 of each, before and after each of two inner steps.
    sampler, policy, state = setup(Stops(), replace(RUN, inner_steps=2))
    new, _ = iteration(
        Setup(replace(RUN, inner_steps=2), sampler, policy, 0), replace(state, iteration=6, env_steps=1000)
    )
    assert (new.iteration, new.env_steps) == (7, 1000 + 3 * 5 * 10)


def test_returns_are_reported_for_every_stage():
    _, stats = one(replace(RUN, inner_steps=2), Stops())
    assert [stats[f"return/step_{i}"] for i in range(3)] == [2.5] * 3  # of 1, 2, 3 and 4


def test_entropy_is_that_of_the_adapted_policies():
    # It does not depend on the state, and without a step nothing moves: A (1/2 log(2 pi e) + log std).
    _, stats = one(replace(RUN, init_std=0.3))
    one_dimension = 0.5 * math.log(2 * math.pi * math.e) + math.log(0.3)
    assert stats["policy/entropy"] == pytest.approx(2 * one_dimension, rel=1e-5)


@families
def test_the_same_seed_gives_the_same_iteration(family):
    assert_equal(one(family=family)[0], one(family=family)[0])


def test_another_seed_gives_another_iteration():
    assert not torch.equal(one(seed=0)[0].params["w0"], one(seed=1)[0].params["w0"])


class Noting(Sampler):
    """Notes what it is asked for."""

    def __init__(self, family):
        super().__init__(family)
        self.asked: list[tuple] = []

    def tasks(self, n, seed, iteration, split="train"):
        self.asked.append(("tasks", n, seed, iteration, split))
        return super().tasks(n, seed, iteration, split)

    def collect(self, tasks, episodes, policy, params, seed, iteration, stage, obs_stats=None):
        self.asked.append(("collect", episodes, seed, iteration, stage))
        return super().collect(tasks, episodes, policy, params, seed, iteration, stage, obs_stats)


def test_every_iteration_and_stage_draws_tasks_and_noise_of_its_own():
    sampler, (_, policy, state) = Noting(Drift()), setup(Drift(), RUN)
    iteration(Setup(replace(RUN, inner_steps=2), sampler, policy, 9), replace(state, iteration=6))
    tasks = ("tasks", 4, 9, 6, "train")
    assert sampler.asked == [tasks, *[("collect", 5, 9, 6, stage) for stage in range(3)]]


def test_an_iteration_from_a_stored_state_is_the_uninterrupted_one():
    sampler, policy, state = setup(Drift(), RUN)
    first, _ = iteration(Setup(RUN, sampler, policy, 0), state)
    uninterrupted, _ = iteration(Setup(RUN, sampler, policy, 0), first)
    stored = State({n: torch.from_numpy(v.numpy().copy()) for n, v in first.params.items()}, 1, first.env_steps)
    sampler, policy, _ = setup(Drift(), RUN, seed=99)  # another process knows nothing of the first
    resumed, _ = iteration(Setup(RUN, sampler, policy, 0), stored)
    assert_equal(resumed, uninterrupted)
    assert (resumed.iteration, resumed.env_steps) == (uninterrupted.iteration, uninterrupted.env_steps)


def test_initial_parameters_follow_the_seed():
    a, again, b = (setup(Drift(), RUN, seed=s)[2].params["w0"] for s in (0, 0, 1))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task a chunk of its own."""
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 8 * 5)


def test_chunks_give_the_same_iteration(monkeypatch):
    whole, _ = one()
    monkeypatch.setattr(parallel, "CHUNK_ROWS", 8 * 5)
    assert len(parallel.task_chunks(4, 8 * 5, torch.device("cpu"))) == 4
    assert_equal(one()[0], whole, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("graph_tasks", [0, 1, 3, 4, 100])
def test_capping_the_graphs_gives_the_same_iteration(graph_tasks):
    assert_equal(one(replace(RUN, graph_tasks=graph_tasks))[0], one()[0])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("graph_tasks", "kept"), [(None, None), (0, 0), (3, 3), (4, 4)])
def test_the_cap_on_graphs_is_handed_on_in_chunks(monkeypatch, graph_tasks, kept):
    asked = []

    def noting(params, objectives, *args):
        asked.append((len(objectives), args[-2]))
        return trpo_step(params, objectives, *args)

    monkeypatch.setattr(maml_trpo, "trpo_step", noting)
    one(replace(RUN, graph_tasks=graph_tasks))
    assert asked == [(4, kept)]


@pytest.mark.usefixtures("small_chunks")
def test_threads_give_the_same_iteration():
    single, _ = one()
    torch.set_num_threads(2)
    assert_equal(one()[0], single)


@families
def test_any_module_learns_as_the_mlp_with_the_same_weights_does(family):
    # Automatic derivatives through vmap against those by hand, in a whole iteration.
    sampler, policy, state = setup(family, RUN)
    net = nn.Sequential(nn.Linear(policy.spaces.obs_dim, 6), nn.Tanh(), nn.Linear(6, policy.spaces.act_dim))
    module = ModulePolicy(policy.spaces, net)
    names = {"w0": "module.0.weight", "b0": "module.0.bias", "w1": "module.2.weight", "b1": "module.2.bias"}
    same = {names.get(n, n): v.mT.contiguous() if n.startswith("w") else v for n, v in state.params.items()}
    config = replace(RUN, cg_iterations=4)
    want, _ = iteration(Setup(config, sampler, policy, 0), state)
    got, _ = iteration(Setup(config, sampler, module, 0), State(same))
    for name, value in want.params.items():
        theirs = got.params[names.get(name, name)]
        torch.testing.assert_close(theirs.mT if name.startswith("w") else theirs, value, atol=1e-4, rtol=1e-3)


def test_devices_give_the_same_iteration(device):
    config = replace(RUN, cg_iterations=4)
    there, _ = one(config, PointGoal(), device=device)
    assert {value.device.type for value in there.params.values()} == {device}
    moved = State({name: value.cpu() for name, value in there.params.items()})
    assert_equal(moved, one(config, PointGoal())[0], atol=2e-3, rtol=1e-2)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fisher_stride", 0),
        ("n_tasks", 0),
        ("n_tasks", 2.5),
        ("episodes", -3),
        ("inner_steps", -1),
        ("cg_iterations", 0),
        ("max_backtracks", 0),
        ("graph_tasks", -1),
        ("inner_lr", 0.0),
        ("inner_lr", math.nan),
        ("max_kl", -0.01),
        ("init_std", 0.0),
        ("min_std", -1.0),
        ("gamma", 1.01),
        ("gamma", math.nan),
        ("gae_lambda", -0.1),
        ("backtrack", 1.0),
        ("backtrack", 0.0),
        ("damping", -1e-5),
        ("damping", math.nan),
        ("output_gain", 0.0),
        ("input_gain", 0.0),
    ],
)
def test_nonsense_is_refused_with_its_name_and_value(name, value):
    with pytest.raises(ValueError, match=rf"{name} must .*{value}"):
        Config(**{name: value})


@pytest.mark.parametrize("setting", [{"inner_steps": 0}, {"graph_tasks": 0}, {"gamma": 1.0}, {"gae_lambda": 0.0}])
def test_the_edges_of_sense_are_allowed(setting):
    new, _ = one(replace(RUN, **setting))
    assert all(value.isfinite().all() for value in new.params.values())


def test_the_policy_has_the_settings_asked_for():
    config = Config(hidden=(7, 5), activation="elu", init_std=0.5, min_std=0.1, input_gain=2.0, output_gain=0.7)
    spaces = setup(Drift(), RUN)[1].spaces
    assert config.policy(spaces) == MLPPolicy(
        spaces, (7, 5), "elu", init_std=0.5, min_std=0.1, input_gain=2.0, output_gain=0.7
    )


@pytest.mark.parametrize("learned", ["learned_discount", "learned_lambda"])
def test_what_is_learned_of_the_fitted_advantages_needs_the_fitted_baseline(learned):
    with pytest.raises(ValueError, match=f"{learned} needs the fitted baseline: leave reward_baseline=0.5 out"):
        Config(gae_lambda=0.9, reward_baseline=0.5, **{learned: True})
