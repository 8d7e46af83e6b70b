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
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv

import metarl
from metarl import from_gymnasium
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


# ---------------------------------------------------------------------------------------------------------------------
# Parameters that change nothing


CONTROLS = {
    "power": Box(0.0005, 0.003),
    "goal_velocity": Box(0.0, 0.05),
    "goal_position": Box(0.3, 0.55),
    "max_speed": Box(0.03, 0.1),
    "min_position": Box(-1.5, -1.0),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_no_parameter_of_the_continuous_mountain_car_is_reported(name):
    assert check_family(from_gymnasium("MountainCarContinuous-v0", {name: CONTROLS[name]})) == []


def test_a_parameter_that_acts_where_no_action_leads_is_only_warned_of():
    with pytest.warns(UserWarning, match="parameter 'goal_position': changes nothing"):
        check_family(from_gymnasium("MountainCar-v0", {"goal_position": Box(0.3, 0.55)}))


@pytest.mark.parametrize("name", ["mass", "inertia", "damping", "friction"])
def test_an_array_of_a_simulated_body_that_is_left_out_is_found(name, monkeypatch):
    pytest.importorskip("mujoco")
    family = metarl.make("Walker2dRandParams-v0", horizon=50)
    assert check_family(family, n_tasks=5, raise_problems=False) == []
    change = family.change_model
    monkeypatch.setattr(family, "change_model", lambda model, task: change(model, task | {name: 1.0}), raising=False)
    (finding,) = check_family(family, n_tasks=5, raise_problems=False)
    assert finding.certain and finding.where == f"parameter {name!r}" and "changes nothing" in finding.problem


@pytest.mark.parametrize("id", ["HalfCheetahDir-v0", "AntGoal-v0", "HumanoidDir-v0", "ReacherGoal-v0", "SwimmerVel-v0"])
def test_what_only_the_reward_of_a_robot_depends_on_is_not_reported(id):
    pytest.importorskip("mujoco")
    assert check_family(metarl.make(id, horizon=20), n_tasks=5) == []
