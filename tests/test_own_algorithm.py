"""docs/your_own_algorithm.md: its examples run as they stand there, and what they make keeps the contract."""

import re
import sys
from typing import Any

import pytest
import torch
from documents import DOCS, blocks
from probes import Drift, finite_differences, linearise, problem, setup

import metarl
from metarl.formulas.distributions import kl
from metarl.outer import objective
from metarl.rollout.setup import Setup

PAGE = DOCS / "your_own_algorithm.md"
MOST_LINES = {"near_start": 25, "value_network": 60}
"""What an inner loss and a value network of one's own may take at most."""

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="metarl is not run from its repository")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The names that each of the page's programs leaves behind, by the module that it is about."""
    there, programs = tmp_path_factory.mktemp("page"), dict[str, dict[str, Any]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        patch.syspath_prepend(str(there))
        for block in blocks(PAGE.read_text(), "python"):
            if name := re.match(r"# (\w+)\.py\n", block):
                (there / f"{name[1]}.py").write_text(block)
                patch.delitem(sys.modules, name[1], raising=False)
                last = name[1]
            else:
                programs[last] = {}
                exec(block, programs[last])
        yield programs


def test_what_every_program_trains_is_saved_and_loaded(ran):
    assert list(ran) == ["random_search", "near_start", "value_network", "residual", "attention"]
    for run in ran.values():
        learner, again = run["learner"], run["again"]
        assert learner.state.iteration == again.state.iteration > 0
        assert all(torch.equal(x, again.state.params[name]) for name, x in learner.state.params.items())


@pytest.mark.parametrize("name", MOST_LINES)
def test_the_examples_are_as_short_as_they_are_said_to_be(name):
    (block,) = (b for b in blocks(PAGE.read_text(), "python") if b.startswith(f"# {name}.py"))
    assert len([line for line in block.splitlines() if line.strip()]) <= MOST_LINES[name]


@pytest.mark.parametrize("name", ["random_search", "near_start", "value_network"])
def test_an_algorithm_of_the_page_keeps_the_contract(ran, name):
    assert ran[name]["learner"].algorithm == name
    assert metarl.check_algorithm(ran[name][name], n_tasks=2, episodes=2, hidden=(4,)) == []


def test_the_penalty_is_part_of_the_meta_gradient(ran):
    config = ran["near_start"]["near_start"].Config(n_tasks=3, episodes=4, hidden=(3,), inner_lr=0.4, penalty=2.0)
    policy, state, data = problem(Drift(), config)
    found = objective.objective(config, policy, data, 3)
    got, _ = linearise(found, state.meta)
    want = finite_differences(lambda meta: found(meta, False).loss.detach(), state.meta)
    torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-5)


def test_the_penalty_keeps_adapted_policies_near_the_initial_one(ran):
    module, far = ran["near_start"]["near_start"], []
    for penalty in (0.0, 5.0):
        config = module.Config(n_tasks=4, episodes=10, penalty=penalty)
        sampler, policy, state = setup(metarl.make("PointNavigation-v0"), config)
        done = module.evaluate(Setup(config, sampler, policy, 0), state, sampler.tasks(4, 1, 0), 10, (0.1,) * 4)
        last = done.rollouts[-1]
        far.append(float(kl(policy.distribution(done.params[0], last.obs), last.dist).mean()))
    assert far[1] < 0.8 * far[0]


def test_the_value_network_learns_and_is_what_returns_are_compared_with(ran):
    module, learner = ran["value_network"]["value_network"], ran["value_network"]["learner"]
    fresh = metarl.MetaLearner(module, "PointNavigation-v0", n_tasks=4, episodes=4)
    assert not torch.equal(learner.state.value["w1"], fresh.state.value["w1"])
    rollout = learner.sampler.collect(
        learner.sampler.tasks(4, 0, 0), 4, learner.policy,
        {n: v.expand(4, *v.shape) for n, v in learner.state.params.items()}, 0, 5, 0,
    )  # fmt: skip
    values = module.values(learner.state.value, rollout)
    got = learner.config.advantages(rollout, learner.state, 0)
    for k, apart in enumerate(got.baseline - values):  # the mean that normalising takes off
        valid = apart[rollout.mask[k] > 0]
        torch.testing.assert_close(valid, valid[0].expand_as(valid), atol=1e-4, rtol=0)


def test_policies_of_the_page_act_after_they_were_saved(ran):
    residual, attention = ran["residual"], ran["attention"]
    assert residual["learner"].policy.kind == residual["policy"].policy.kind == "ResidualPolicy"
    zero = residual["family"].observation_space.sample()
    assert residual["policy"].predict(zero, deterministic=True)[0].shape == (2,)
    assert attention["recurrent"].policy.kind == "AttentionPolicy" and attention["recurrent"].policy.slots == 8


def test_a_memory_written_all_at_once_is_that_written_step_by_step(ran):
    policy = ran["attention"]["policy"]
    params, x = policy.init(torch.Generator().manual_seed(0)), torch.randn(11, 3, policy.input_dim)
    hidden = torch.randn(3, policy.hidden)
    whole, found = policy.unroll(params, x, hidden), []
    for step in x:
        hidden = policy.step(params, step, hidden)
        found.append(hidden)
    torch.testing.assert_close(whole, torch.stack(found))
