"""`check_family`: healthy families pass; each broken one yields exactly the finding it was broken for."""

import dataclasses

import numpy as np
import pytest
from broken_families import (
    BROKEN_PLAIN,
    BROKEN_VECTOR,
    Line,
    Lines,
    few_tasks_for_both,
    same_tasks_everywhere,
    with_env,
    with_members,
    with_vector,
)
from gymnasium.vector import VectorEnv

import metarl
from metarl.families.check import FamilyError, Finding, check_family
from metarl.vector.loop import LoopVectorEnv


def test_the_healthy_family_ends_early_and_late():
    """Otherwise some of the tests below would test nothing."""
    env = LoopVectorEnv(Lines(), 3, 2)
    env.reset(seed=0, options={"tasks": Lines().sample(3, np.random.default_rng(0))})
    env.action_space.seed(0)
    for _ in range(Lines.horizon):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
    assert terminated.any()
    assert truncated.any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "family",
    [Lines(), with_vector(), metarl.make("PointNavigation-v0", horizon=10), metarl.make("TabularMDP-v0", states=3)],
    ids=["plain", "own vector", "tensor", "discrete"],
)
def test_healthy_families_pass(family, seed):
    assert check_family(family, seed=seed) == []


@pytest.mark.parametrize("name", [*BROKEN_PLAIN, *(f"vector: {name}" for name in BROKEN_VECTOR)])
def test_each_broken_family_yields_exactly_its_finding(name):
    family, wanted = BROKEN_PLAIN[name] if name in BROKEN_PLAIN else BROKEN_VECTOR[name.removeprefix("vector: ")]
    with pytest.raises(FamilyError, match=f"(?s){wanted}.*To fix it: .") as caught:
        check_family(family)
    assert len(caught.value.findings) == 1, caught.value
    finding = caught.value.findings[0]
    assert finding.where
    assert ("vector environment" in finding.where) == name.startswith("vector")
    assert check_family(family, raise_problems=False)[0].where == finding.where


@pytest.mark.parametrize("name", ["moves after the end", "pays after the end", "forgets the end"])
def test_the_remedy_names_the_rule_about_ended_episodes(name):
    (finding,) = check_family(BROKEN_VECTOR[name][0], raise_problems=False)
    assert "an episode that ended stays ended" in finding.remedy
    assert f"step {Lines.horizon + 1}" in finding.where


def test_what_is_declared_is_no_finding():
    few = with_members(sample=few_tasks_for_both, shared_splits=True)
    seen = with_env(observe=lambda self: np.full(1, self.goal, np.float32))
    seen.hidden_task = False
    assert check_family(few) == []
    assert check_family(seen) == []


def test_all_findings_are_listed_at_once():
    family = with_members(sample=same_tasks_everywhere)
    family.env = type("Broken", (Line,), {"observe": lambda self: np.array([self.x]), "reward": lambda self: np.nan})
    with pytest.raises(FamilyError, match="Lines-v0 has 3 problem") as caught:
        check_family(family)
    assert [f.problem.split()[0] for f in caught.value.findings] == ["train", "observation", "reward"]
    assert all(str(f) in str(caught.value) for f in caught.value.findings)


def test_finding_says_where_what_and_how_and_cannot_be_changed():
    finding = Finding("is wrong", "step 3", "do better")
    assert str(finding) == "step 3: is wrong\n    To fix it: do better"
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding.problem = "nothing"


def test_too_few_tasks_to_compare_are_refused():
    with pytest.raises(ValueError, match="n_tasks must be at least 2, got 1"):
        check_family(Lines(), n_tasks=1)


def test_the_broken_vector_environments_are_vector_environments():
    """The contract is Gymnasium's: make_vector of the healthy family gives its class."""
    assert isinstance(metarl.make_vector(with_vector(), 2, 2), VectorEnv)
