"""MAML-TRPO: the meta-gradient by finite differences, one iteration from its parts, and probes with known answers."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from probes import (
    Drift,
    Locks,
    PointGoal,
    Signs,
    Stops,
    TwoArms,
    double,
    finite_differences,
    linearise,
    setup,
    stages,
    surrogate_loss,
)
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import metarl
from metarl import parallel
from metarl.algorithms import ALGORITHMS, get, maml_trpo
from metarl.algorithms.maml_trpo import Config, State, iteration
from metarl.formulas import distributions
from metarl.formulas.losses import masked_mean
from metarl.inner import loop
from metarl.outer import objective as outer
from metarl.outer import trust_region
from metarl.outer.trust_region import flatten, trpo_step, unflatten
from metarl.params import Params, expand
from metarl.policies.base import Policy
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.rollout.sampler import EnvSampler, Sampler
from metarl.rollout.setup import Setup
from metarl.tasks import task_at

SMALL = Config(n_tasks=3, episodes=4, hidden=(3,), inner_lr=0.3, adapt_std=True, output_gain=0.1)
families = pytest.mark.parametrize("family", [Drift(), TwoArms(), Locks()], ids=["gaussian", "categorical", "several"])
inner_steps = pytest.mark.parametrize("inner_steps", [0, 1, 2, 3])
gradients = pytest.mark.parametrize("inner_gradient", ["policy_gradient", "lvc"])
ways = pytest.mark.parametrize("by_hand", [True, False], ids=["by-hand", "autograd"])


def problem(family, config: Config) -> tuple[Policy, Params, list[loop.Batch]]:
    """A policy, its parameters and the data of one iteration, in float64."""
    sampler, policy, state = setup(family, config)
    data = double(stages(config, sampler, policy, state.params))
    return policy, {name: value.double() for name, value in state.params.items()}, data


def meta_gradient(
    config: Config, policy: Policy, params: Params, data: list[loop.Batch], by_hand: bool = True
) -> Tensor:
    return linearise(outer.objective(config, policy, data, config.n_tasks, outer.Outer(by_hand=by_hand)), params)[0]


# ---------------------------------------------------------------------------------------------------------------------
# The meta-gradient


@families
@ways
@inner_steps
@gradients
def test_second_order_meta_gradient_against_finite_differences(family, by_hand, inner_steps, inner_gradient):
    config = replace(SMALL, inner_steps=inner_steps, inner_gradient=inner_gradient)
    policy, params, data = problem(family, config)

    def adapted_loss(meta: Params) -> Tensor:
        stacked = expand(meta, 3)
        for batch in data[:-1]:
            stacked = loop.adapt(config, policy, stacked, batch, config.inner_lr)[0]
        return surrogate_loss(policy, stacked, data[-1])

    want = finite_differences(adapted_loss, params)
    torch.testing.assert_close(meta_gradient(config, policy, params, data, by_hand), want, atol=1e-8, rtol=1e-6)


@families
@ways
@inner_steps
def test_first_order_meta_gradient_against_finite_differences_with_the_inner_gradients_held(
    family, by_hand, inner_steps
):
    config = replace(SMALL, inner_steps=inner_steps, first_order=True)
    policy, params, data = problem(family, config)
    stacked = expand(params, 3)
    for batch in data[:-1]:
        stacked = loop.adapt(config, policy, stacked, batch, config.inner_lr)[0]
    moved = {name: value - params[name] for name, value in stacked.items()}

    def held_loss(meta: Params) -> Tensor:
        return surrogate_loss(policy, {name: value + moved[name] for name, value in meta.items()}, data[-1])

    want = finite_differences(held_loss, params)
    torch.testing.assert_close(meta_gradient(config, policy, params, data, by_hand), want, atol=1e-8, rtol=1e-6)


@families
def test_first_and_second_order_differ(family):
    policy, params, data = problem(family, SMALL)
    second, first = (meta_gradient(replace(SMALL, first_order=o), policy, params, data) for o in (False, True))
    assert (first - second).norm() > 0.02 * second.norm()


@families
def test_lvc_takes_the_step_of_the_policy_gradient_and_differentiates_it_differently(family):
    configs = [replace(SMALL, inner_gradient=name) for name in ("policy_gradient", "lvc")]
    policy, params, data = problem(family, SMALL)
    stacked = expand(params, 3)
    plain, lvc = (loop.adapt(config, policy, stacked, data[0], 0.3)[0] for config in configs)
    for name, value in plain.items():
        torch.testing.assert_close(lvc[name], value, atol=1e-6, rtol=1e-6)
    plain, lvc = (meta_gradient(config, policy, params, data) for config in configs)
    assert (plain - lvc).norm() > 0.02 * plain.norm()


def test_the_lvc_hessian_has_the_term_that_the_policy_gradient_leaves_out():
    # Hessian(-E[pi/pi_old A]) - Hessian(-E[log pi A]) = -E[A grad log pi grad log pi^T] at the acting parameters.
    config = replace(SMALL, n_tasks=1)
    policy, params, data = problem(TwoArms(), config)
    batch = data[0][:1]
    like = {name: value[None] for name, value in params.items()}
    vector = flatten(params)

    def loss(name: str):
        chosen = replace(config, inner_gradient=name)
        return lambda x: loop.inner_loss(chosen, policy, batch, unflatten(x, like)).sum()

    lvc, plain = (torch.autograd.functional.hessian(loss(name), vector) for name in ("lvc", "policy_gradient"))

    def log_probs(x: Tensor) -> Tensor:
        dist = policy.distribution(unflatten(x, like), batch.rollout.obs)
        return distributions.log_prob(dist, batch.rollout.act)[0].reshape(-1)

    scores = torch.autograd.functional.jacobian(log_probs, vector)
    weight = (batch.rollout.mask * batch.advantage)[0].reshape(-1) / batch.rollout.mask.sum()
    # The stored log-probabilities are float32 numbers, so the ratio is one only up to their rounding.
    torch.testing.assert_close(lvc - plain, -(scores.mT * weight) @ scores, atol=1e-6, rtol=1e-5)


def test_the_inner_step_is_part_of_the_meta_gradient():
    policy, params, data = problem(Drift(), SMALL)
    with_step, without = (meta_gradient(c, policy, params, data) for c in (SMALL, replace(SMALL, inner_lr=1e-12)))
    assert (with_step - without).norm() > 0.02 * with_step.norm()


def test_a_std_that_does_not_adapt_is_still_meta_learned():
    policy, params, data = problem(Drift(), replace(SMALL, adapt_std=False))
    gradient = meta_gradient(replace(SMALL, adapt_std=False), policy, params, data)
    assert unflatten(gradient, params)["log_std"].abs().min() > 1e-4


@ways
def test_a_std_that_does_not_adapt_against_finite_differences(by_hand):
    config = replace(SMALL, adapt_std=False)
    policy, params, data = problem(Drift(), config)
    objective = outer.objective(config, policy, data, 3)
    want = finite_differences(lambda meta: objective(meta, False).loss, params)
    torch.testing.assert_close(meta_gradient(config, policy, params, data, by_hand), want, atol=1e-8, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The objective


@families
@inner_steps
def test_at_the_acting_parameters_the_adapted_policy_is_the_one_that_acted(family, inner_steps):
    config = replace(SMALL, inner_steps=inner_steps)
    policy, params, data = problem(family, config)
    here, rollout = outer.objective(config, policy, data, 3)(params, False), data[-1].rollout
    log_ratio = (distributions.log_prob(here.dist, rollout.act) - rollout.log_prob) * rollout.mask
    assert log_ratio.abs().max() < 1e-5


@families
@inner_steps
def test_at_the_acting_parameters_the_kl_is_zero(family, inner_steps):
    config = replace(SMALL, inner_steps=inner_steps)
    policy, params, data = problem(family, config)
    assert abs(outer.objective(config, policy, data, 3)(params, False).kl.item()) < 1e-9


@families
@pytest.mark.parametrize(("differentiable", "by_hand"), [(False, False), (True, False), (True, True)])
def test_away_from_the_acting_parameters_loss_and_kl_are_those_of_torch(family, differentiable, by_hand):
    policy, params, data = problem(family, SMALL)
    g = torch.Generator().manual_seed(1)
    # The standard deviations move too: without them KL(a || b) and KL(b || a) are the same.
    moved = {name: value + 0.3 * torch.randn(value.shape, generator=g).double() for name, value in params.items()}
    leaves = {name: value.clone().requires_grad_() for name, value in moved.items()}
    got = outer.objective(SMALL, policy, data, 3, outer.Outer(by_hand=by_hand))(leaves, differentiable)

    def reference(dist: distributions.Distribution) -> torch.distributions.Distribution:
        if isinstance(dist, distributions.Gaussian):
            return Independent(Normal(dist.mean, dist.log_std.exp().expand_as(dist.mean)), 1)
        if isinstance(dist, distributions.MultiCategorical):
            parts = dist.logits.split(list(dist.sizes), -1)
            rows = [nn.functional.pad(x, (0, max(dist.sizes) - x.shape[-1]), value=-torch.inf) for x in parts]
            return Independent(Categorical(logits=torch.stack(rows, -2)), 1)
        return Categorical(logits=dist.logits)

    rollout = data[-1].rollout
    stacked = loop.adapt(SMALL, policy, expand(moved, 3), data[0], SMALL.inner_lr)[0]
    old, new = reference(rollout.dist), reference(policy.distribution(stacked, rollout.obs))
    ratio = (new.log_prob(rollout.act) - old.log_prob(rollout.act)).exp()
    want = [-masked_mean(ratio * data[-1].advantage, rollout.mask).mean(),
            masked_mean(kl_divergence(old, new), rollout.mask).mean()]  # fmt: skip
    assert [got.loss.item(), got.kl.item()] == pytest.approx([x.item() for x in want], rel=1e-9)
    assert got.kl > 1e-3


def test_the_objective_of_all_tasks_is_the_sum_of_its_chunks():
    policy, params, data = problem(Drift(), SMALL)
    whole = outer.objective(SMALL, policy, data, 3)(params, False)
    chunks = [slice(0, 1), slice(1, 3)]
    parts = [outer.objective(SMALL, policy, [batch[c] for batch in data], 3)(params, False) for c in chunks]
    assert sum(p.loss.item() for p in parts) == pytest.approx(whole.loss.item(), abs=1e-12)
    torch.testing.assert_close(torch.cat([p.weight for p in parts]), whole.weight)


def test_the_weights_of_the_kl_are_one_in_all_and_equal_for_every_task():
    policy, params, data = problem(Drift(), SMALL)  # whose episodes have different lengths
    weight = outer.objective(SMALL, policy, data, 3)(params, False).weight
    torch.testing.assert_close(weight.sum((1, 2)), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_the_kl_is_the_weighted_sum_of_the_states_own():
    policy, params, data = problem(Drift(), SMALL)
    moved = {name: value + 0.1 for name, value in params.items()}
    got = outer.objective(SMALL, policy, data, 3)(moved, False)
    want = (got.weight * distributions.kl(data[-1].rollout.dist, got.dist)).sum()
    torch.testing.assert_close(got.kl, want)


# ---------------------------------------------------------------------------------------------------------------------
# One iteration

RUN = Config(n_tasks=4, episodes=5, hidden=(6,), inner_lr=0.1, output_gain=0.1)


def one(config: Config = RUN, family=None, seed: int = 0, device: str = "cpu", state: State | None = None):
    sampler, policy, first = setup(family or Drift(), config, device=device)
    return iteration(Setup(config, sampler, policy, seed), state or first)


def assert_equal(a: State, b: State, **tolerance: float) -> None:
    for name, value in a.params.items():
        torch.testing.assert_close(value, b.params[name], **(tolerance or {"atol": 0, "rtol": 0}))


@families
@inner_steps
def test_an_iteration_is_the_trust_region_step_on_the_data_of_its_stages(family, inner_steps):
    config = replace(RUN, inner_steps=inner_steps, max_kl=0.003, damping=0.01, cg_iterations=4)
    sampler, policy, state = setup(family, config)
    data = stages(config, sampler, policy, state.params, seed=7)
    objectives = [outer.objective(config, policy, data, 4)]
    want, _ = trpo_step(state.params, objectives, 0.003, 0.01, 4, config.max_backtracks, config.backtrack)
    got, _ = iteration(Setup(config, sampler, policy, 7), state)
    assert_equal(got, State(want), atol=1e-6, rtol=1e-5)


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
# Adapting to given tasks


def adaptation(step_sizes, config: Config = RUN, family=None, seed: int = 5) -> loop.Adaptation:
    sampler, policy, state = setup(family or Drift(), config)
    return maml_trpo.evaluate(
        Setup(config, sampler, policy, seed), state, sampler.tasks(3, 1, 0, "test"), 6, step_sizes
    )


@pytest.mark.parametrize("step_sizes", [[], [0.1], [0.1, 0.05, 0.05]])
def test_as_many_steps_are_taken_as_were_asked_for(step_sizes):
    done = adaptation(step_sizes)
    assert done.returns.shape == (3, len(step_sizes) + 1, 6)
    assert all((b["w0"] != a["w0"]).any() for a, b in zip(done.params[:-1], done.params[1:], strict=True))


def test_every_step_has_its_own_size():
    # Only what comes after the second step can know of its size.
    a, b = adaptation([0.1, 0.2, 0.1]), adaptation([0.1, 0.4, 0.1])
    same = [torch.equal(a.params[k]["w0"], b.params[k]["w0"]) for k in range(4)]
    assert same == [True, True, False, False]
    assert [torch.equal(a.returns[:, k], b.returns[:, k]) for k in range(4)] == same


def test_a_step_is_proportional_to_its_size():
    a, b = adaptation([0.1]), adaptation([0.3])
    moves = [done.params[1]["w1"] - done.params[0]["w1"] for done in (a, b)]
    torch.testing.assert_close(moves[1], 3 * moves[0], atol=1e-5, rtol=1e-4)


def test_a_step_is_the_gradient_of_the_episodes_before_it():
    done = adaptation([0.2, 0.1], replace(RUN, adapt_std=True))
    policy = RUN.policy(setup(Drift(), RUN)[1].spaces)
    batch = loop.Batch.of(RUN, done.rollouts[1])
    leaves = {name: value.clone().requires_grad_() for name, value in done.params[1].items()}
    log_prob = distributions.log_prob(policy.distribution(leaves, batch.rollout.obs), batch.rollout.act)
    objective = masked_mean(log_prob * batch.advantage, batch.rollout.mask).sum()  # to be raised
    for (name, value), g in zip(leaves.items(), torch.autograd.grad(objective, list(leaves.values())), strict=True):
        torch.testing.assert_close(done.params[2][name], value + 0.1 * g, atol=1e-6, rtol=1e-5)


def test_every_stage_of_an_adaptation_has_noise_of_its_own():
    done = adaptation([1e-12, 1e-12])
    first, second, third = (rollout.act[:, 0] for rollout in done.rollouts)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_returns_are_those_of_the_rollouts_with_the_parameters_beside_them():
    done = adaptation([0.2, 0.1])
    policy = RUN.policy(setup(Drift(), RUN)[1].spaces)
    for k, (params, rollout) in enumerate(zip(done.params, done.rollouts, strict=True)):
        again = distributions.log_prob(policy.distribution(params, rollout.obs), rollout.act)
        torch.testing.assert_close(again * rollout.mask, rollout.log_prob * rollout.mask, atol=1e-5, rtol=1e-5)
        assert torch.equal(done.returns[:, k], rollout.returns)


def test_adapting_does_not_change_the_state():
    sampler, policy, state = setup(Drift(), RUN)
    before = {name: value.clone() for name, value in state.params.items()}
    maml_trpo.evaluate(Setup(RUN, sampler, policy, 0), state, sampler.tasks(3, 1, 0), 4, [0.5, 0.5])
    assert_equal(state, State(before))


def test_adapting_leaves_no_graph_behind():
    assert not any(value.requires_grad for params in adaptation([0.1]).params for value in params.values())


def test_adapting_follows_the_seed():
    a, again, b = (adaptation([0.1], seed=s).returns for s in (5, 5, 6))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_a_task_adapts_alone_as_it_does_among_others():
    sampler, policy, state = setup(Drift(), RUN)
    tasks = sampler.tasks(3, 1, 0)
    many, one_task = (
        maml_trpo.evaluate(Setup(RUN, sampler, policy, 0), state, {n: v[:k] for n, v in tasks.items()}, 6, [0.1, 0.1])
        for k in (3, 1)
    )
    torch.testing.assert_close(many.returns[:1], one_task.returns, atol=1e-4, rtol=1e-4)


def test_a_plain_environment_adapts_as_the_family_does():
    sampler, policy, state = setup(Drift(), RUN)
    tasks = {name: value[:1] for name, value in sampler.tasks(3, 1, 0).items()}
    env = EnvSampler(Drift().make(task_at(tasks, 0)), Drift.horizon)
    ours, theirs = (maml_trpo.evaluate(Setup(RUN, s, policy, 0), state, tasks, 6, [0.1, 0.1]) for s in (sampler, env))
    torch.testing.assert_close(ours.returns, theirs.returns, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# A step that rounding does not decide


def two_ways(products: int) -> tuple[Tensor, Tensor, list[dict]]:
    """The meta-update of 4 tasks of 6 episodes after some training, in float32: by hand, and automatically."""
    config = Config(n_tasks=4, episodes=6, hidden=(64, 64), cg_iterations=products, max_kl=0.02, min_std=0.1)
    sampler, policy, state = setup(metarl.make("PointNavigation-v0", horizon=30), config)
    for _ in range(6):
        state, _ = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
    data = loop.experience(Setup(config, sampler, policy, 1), state).data
    parts = [outer.objectives(config, policy, data, state, outer.Outer(by_hand=by_hand)) for by_hand in (True, False)]
    found = [trpo_step(state.meta, part, 0.02, 1e-5, products) for part in parts]
    hand, automatic = (flatten(new) - flatten(state.meta) for new, _ in found)
    return hand, automatic, [stats for _, stats in found]


def test_more_products_than_float32_can_tell_apart_are_not_taken():
    hand, automatic, stats = two_ways(products=30)
    assert all(3 <= x["cg_products"] < 30 for x in stats)
    assert torch.cosine_similarity(hand.double(), automatic.double(), 0) > 0.99999
    assert stats[0]["kl"] == pytest.approx(stats[1]["kl"], rel=0.01)


def test_without_the_stop_the_two_ways_part(monkeypatch):
    monkeypatch.setattr(trust_region, "conjugate_gradient", partial(trust_region.conjugate_gradient, orthogonality=2.0))
    hand, automatic, stats = two_ways(products=30)
    assert [x["cg_products"] for x in stats] == [30, 30]
    assert torch.cosine_similarity(hand.double(), automatic.double(), 0) < 0.9999  # 0.998 or 0.999


# ---------------------------------------------------------------------------------------------------------------------
# Fisher products from some of the time steps

LEARNED = {"inner_steps": 2, "learned_lr": "per_layer_and_step", "gamma": 0.9}
STRIDES = [{"inner_steps": 0}, {}, LEARNED, {"inner_gradient": "lvc", "inner_steps": 2}, {"first_order": True}]


def strided(family, stride: int, by_hand: bool, **settings):
    """The data of an iteration in float64, its parameters, and the objectives for Fisher products."""
    config = replace(RUN, **settings)
    sampler, policy, state = setup(family, config)
    found = loop.experience(Setup(config, sampler, policy, 3), state)
    as_double = {name: value.double() for name, value in state.params.items()}
    state = replace(state, params=as_double, learned={name: value.double() for name, value in state.learned.items()})
    stages = [{name: value.double() for name, value in params.items()} for params in found.params]
    found = replace(found, data=double(found.data), params=stages)
    kind = outer.Outer(by_hand=by_hand)
    data = [batch.every(stride) for batch in found.data]
    return config, policy, state, found, outer.objectives(config, policy, data, state, kind, stages)


def products(objectives, meta, v) -> Tensor:
    return torch.stack([linearise(objective, meta, v)[1] for objective in objectives]).sum(0)


def direction_of(meta) -> Tensor:
    return torch.randn(flatten(meta).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@families
@pytest.mark.parametrize("by_hand", [True, False], ids=["by-hand", "autograd"])
@pytest.mark.parametrize("settings", STRIDES, ids=str)
def test_a_stride_of_one_gives_the_fisher_products_of_all_steps(family, settings, by_hand):
    config, policy, state, found, objectives = strided(family, 1, by_hand, **settings)
    whole, v = outer.objectives(config, policy, found.data, state), direction_of(state.meta)
    torch.testing.assert_close(
        products(objectives, state.meta, v), products(whole, state.meta, v), atol=1e-6, rtol=1e-4
    )


@families
@pytest.mark.parametrize("settings", STRIDES, ids=str)
def test_fisher_products_of_some_steps_are_the_same_by_hand_and_automatically(family, settings):
    meta = strided(family, 2, True, **settings)[2].meta
    hand, automatic = (products(strided(family, 2, by_hand, **settings)[-1], meta, direction_of(meta))
                       for by_hand in (True, False))  # fmt: skip
    torch.testing.assert_close(hand, automatic, atol=1e-12, rtol=1e-8)


@families
def test_some_steps_leave_the_adapted_policies_as_they_were(family):
    # Not those that the steps left would lead to: on the last stage's states, their distributions are those that acted.
    _, _, state, found, objectives = strided(family, 3, False, inner_steps=2)
    found_there = [objective(state.meta, True).dist for objective in objectives]
    rollout = found.data[-1].every(3).rollout
    for i, want in enumerate(rollout.dist):
        got, valid = torch.cat([dist[i] for dist in found_there]), rollout.mask[..., None]
        torch.testing.assert_close(got * valid, want * valid, atol=1e-5, rtol=1e-4)


def test_strided_steps_are_every_so_manieth():
    batch = strided(Drift(), 1, True)[3].data[0]
    some = batch.every(2)
    for field in ("obs", "act", "rew", "mask", "log_prob"):
        assert torch.equal(getattr(some.rollout, field), getattr(batch.rollout, field)[:, ::2]), field
    assert torch.equal(some.advantage, batch.advantage[:, ::2]) and torch.equal(some.scale, batch.scale)
    assert torch.equal(some.baseline, batch.baseline[:, ::2])
    assert some.rollout.dist.log_std.shape == batch.rollout.dist.log_std.shape
    assert some.rollout.dist.mean.shape[1] == some.rollout.obs.shape[1]


@pytest.mark.parametrize("exploration", [0.0, 0.01])
def test_an_iteration_with_a_stride_makes_another_step_within_the_same_bound(exploration):
    settings = replace(RUN, episodes=20, exploration=exploration)
    (some, stats), (whole, _) = (one(replace(settings, fisher_stride=n)) for n in (2, 1))
    assert stats["outer/accepted"] and 0.1 * RUN.max_kl < stats["outer/kl"] <= RUN.max_kl
    start = setup(Drift(), RUN)[2].params
    steps = [flatten(new.params) - flatten(start) for new in (some, whole)]
    assert 0.5 < float(torch.cosine_similarity(*steps, 0)) < 0.9999


@pytest.mark.parametrize(
    "setting", [{"inner_gradient": "dice"}, {"inner_gradient": "loaded_dice"}, {"learned_discount": True}], ids=str
)
def test_a_stride_is_refused_where_whole_episodes_are_needed(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"fisher_stride=3 leaves time steps out, and {name}={value!r} needs whole"):
        Config(fisher_stride=3, gamma=0.9, **setting)
    Config(fisher_stride=1, gamma=0.9, **setting)


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


def test_algorithms_are_found_by_name():
    assert [get(name).__name__ for name in ALGORITHMS] == [f"metarl.algorithms.{name}" for name in ALGORITHMS]


def test_an_unknown_algorithm_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"maml_trp0.*did you mean 'maml_trpo'"):
        get("maml_trp0")


# ---------------------------------------------------------------------------------------------------------------------
# Probes: families with known answers


@pytest.mark.parametrize("step_size", [0.5, -0.5])
def test_a_step_earns_more_in_every_task_and_its_opposite_less(step_size):
    config = Config(n_tasks=6, hidden=(8,), init_std=0.5)
    sampler, policy, state = setup(Signs(), config)
    done = maml_trpo.evaluate(Setup(config, sampler, policy, 0), state, sampler.tasks(6, 0, 0), 200, [step_size])
    before, after = done.returns.mean(-1).unbind(1)
    assert ((after - before) * np.sign(step_size) > 2).all()  # the noise of the means is about 0.4


def test_every_further_step_earns_more():
    config = Config(n_tasks=6, hidden=(8,), init_std=0.5)
    sampler, policy, state = setup(Signs(), config)
    done = maml_trpo.evaluate(Setup(config, sampler, policy, 0), state, sampler.tasks(6, 0, 0), 200, [0.02, 0.02, 0.02])
    assert (done.returns.mean((0, 2)).diff() > 0.5).all()


def trained(family, config: Config, iterations: int) -> tuple[np.ndarray, tuple]:
    """The returns before and after adaptation in every iteration [iterations, 2], and what was trained."""
    sampler, policy, state = setup(family, config)
    returns = []
    for _ in range(iterations):
        state, stats = iteration(Setup(config, sampler, policy, 0), state)
        returns.append((stats["return/step_0"], stats[f"return/step_{config.inner_steps}"]))
    return np.array(returns), (sampler, policy, state)


@pytest.fixture(scope="module")
def point_goal() -> np.ndarray:
    """Mean returns on test tasks after 0, 1 and 2 steps, after a short training."""
    config = Config(n_tasks=20, episodes=10, inner_lr=0.1, init_std=0.5, hidden=(32, 32))
    _, (sampler, policy, state) = trained(PointGoal(), config, 20)
    tasks = sampler.tasks(200, 1, 0, "test")
    return (
        maml_trpo.evaluate(Setup(config, sampler, policy, 1), state, tasks, 20, [0.1, 0.05])
        .returns.mean((0, 2))
        .numpy()
    )


def test_point_goal_adapted_beats_what_no_blind_policy_can_beat(point_goal):
    assert point_goal[1] > PointGoal.blind + 2.5


def test_point_goal_unadapted_comes_near_the_blind_bound_and_not_past_it(point_goal):
    # 0.4 is twice the standard error of the bound on 200 tasks; the noise of the actions costs some return.
    assert PointGoal.blind - 1.2 < point_goal[0] < PointGoal.blind + 0.4


def test_point_goal_a_second_step_does_no_harm(point_goal):
    assert point_goal[2] > point_goal[1] - 0.3


def test_training_without_inner_steps_does_not_pass_the_blind_bound():
    returns, _ = trained(PointGoal(), Config(n_tasks=20, episodes=10, init_std=0.3, hidden=(32,), inner_steps=0), 15)
    assert PointGoal.blind - 1.2 < returns[-5:, 0].mean() < PointGoal.blind + 0.6


def test_two_arms_an_adapted_policy_comes_to_pull_the_good_one():
    config = Config(n_tasks=10, episodes=20, inner_lr=0.1, hidden=(16,), output_gain=0.1)
    returns, _ = trained(TwoArms(), config, 25)
    before, after = returns[:3, 1].mean(), returns[-5:, 1].mean()
    assert after > 0.9
    assert after > before + 0.1


def test_locks_an_adapted_policy_comes_to_know_the_code():
    # A guess is right 5/12 of the time, and no policy that cannot adapt is right more often.
    config = Config(n_tasks=12, episodes=20, inner_lr=0.5, hidden=(16,), output_gain=0.1)
    returns, _ = trained(Locks(), config, 25)
    assert returns[-5:, 1].mean() > returns[-5:, 0].mean() + 0.3


# ---------------------------------------------------------------------------------------------------------------------
# Step sizes in units of the standard deviation


def test_the_unit_of_the_step_size_is_the_geometric_mean_of_the_floored_standard_deviations():
    meta = {"log_std": torch.tensor([0.25, 0.01]).log()}
    assert loop.lr_unit(Config(lr_in_std=True, min_std=0.04), meta) == pytest.approx(0.1)
    assert loop.lr_unit(Config(min_std=0.04), meta) == 1.0


def test_a_categorical_policy_has_no_such_unit():
    assert loop.lr_unit(Config(lr_in_std=True), {"w0": torch.ones(1)}) == 1.0


def test_an_iteration_and_an_evaluation_in_that_unit_are_those_with_the_product():
    results = []
    for config in (replace(SMALL, init_std=0.5, inner_lr=0.3, lr_in_std=True), replace(SMALL, init_std=0.5)):
        config = config if config.lr_in_std else replace(config, inner_lr=0.15)
        sampler, policy, state = setup(Drift(), config)
        tasks = sampler.tasks(3, 5, 0, "test")
        found = maml_trpo.evaluate(Setup(config, sampler, policy, 1), state, tasks, 4, [2 * config.inner_lr])
        new, stats = maml_trpo.iteration(Setup(config, sampler, policy, 0), state)
        results.append((flatten(new.params), found.params[-1]["w0"], stats["return/step_1"]))
    (in_units, adapted, post), (plain, plain_adapted, plain_post) = results
    torch.testing.assert_close(in_units, plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(adapted, plain_adapted, atol=1e-6, rtol=1e-5)
    assert post == pytest.approx(plain_post, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Rewards against a given number


def test_a_single_episode_adapts_only_against_a_given_number():
    config = replace(SMALL, n_tasks=6, episodes=1)
    for given, moves in ((None, False), (0.25, True)):
        own = replace(config, reward_baseline=given)
        sampler, policy, state = setup(TwoArms(), own)
        found = maml_trpo.evaluate(Setup(own, sampler, policy, 1), state, sampler.tasks(6, 5, 0), 1, [0.5])
        assert bool((found.params[1]["b1"] != found.params[0]["b1"]).any()) == moves


@pytest.mark.parametrize("learned", ["learned_discount", "learned_lambda"])
def test_what_is_learned_of_the_fitted_advantages_needs_the_fitted_baseline(learned):
    with pytest.raises(ValueError, match=f"{learned} needs the fitted baseline: leave reward_baseline=0.5 out"):
        Config(gae_lambda=0.9, reward_baseline=0.5, **{learned: True})
