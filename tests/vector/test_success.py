"""Success as environments report it: one flag for every environment, by any of its names."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from tiny_runs import learner_of, tiny

from metarl import from_gymnasium
from metarl.sb3 import as_vec_env
from metarl.vector.success import of_step, of_steps


def test_both_names_count_and_a_step_without_a_report_says_nothing():
    assert of_step({"success": 1.0}) is of_step({"is_success": np.bool_(True)}) is True
    assert of_step({"success": False, "is_success": np.array([1])}) is True
    assert of_step({"is_success": np.float32(0)}) is False
    assert of_step({"final_info": {"is_success": True}}) is True
    assert of_step({}) is of_step({"success": None}) is of_step({"other": True}) is None


def test_vector_environments_report_as_gymnasiums_do():
    flags, mask = np.array([True, True, False]), np.array([True, False, True])
    assert of_steps({"is_success": flags}, 3).tolist() == [True, True, False]
    assert of_steps({"success": flags, "_success": mask}, 3).tolist() == [True, False, False]
    assert of_steps({"final_info": {"success": flags}, "_final_info": mask}, 3).tolist() == [True, False, False]
    old = np.array([None, {"is_success": True}, {}], dtype=object)
    assert of_steps({"final_info": old}, 3).tolist() == [False, True, False]
    assert of_steps({"success": np.array([None, True, False], dtype=object)}, 3).tolist() == [False, True, False]
    both = {"success": np.array([1, 0, 0]), "final_info": {"is_success": np.array([0.0, 0.0, 1.0])}}
    assert of_steps(both, 3).tolist() == [True, False, True]
    assert of_steps({}, 3) is of_steps({"final_info": np.array([None, {}, None])}, 3) is None
    with pytest.raises(ValueError, match=re.escape("infos['success'] of a vector environment has shape (2,)")):
        of_steps({"success": np.array([True, False])}, 3)


class Door(gym.Env):
    """Opens in the episodes whose seed says so, and reports nothing else."""

    observation_space, action_space = Box(-1.0, 1.0, (1,), np.float32), Box(-1.0, 1.0, (1,), np.float32)
    share, name = 0.5, "success"

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.opens = self.np_random.random() < type(self).share
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        info = {self.name: True} if self.opens else {}
        return np.zeros(1, np.float32), self.gain * float(action[0]), False, False, info


def doors(share: float = 0.5, name: str = "success") -> Any:
    kind = type("Door", (Door,), {"share": share, "name": name})
    return from_gymnasium(kind, {"gain": Box(0.5, 2.0)}, horizon=4)


@pytest.mark.parametrize("name", ["success", "is_success"])
@pytest.mark.parametrize("algorithm", ["maml_trpo", "rl2"])
def test_an_episode_without_a_report_is_a_failure_once_there_was_one(algorithm, name):
    family = doors(name=name)
    learner = learner_of(algorithm, family, n_tasks=3)
    by_task, by_env = (learner.adapt(x, seed=3, episodes=8) for x in ({"gain": 1.0}, family.env(1.0)))
    assert 0 < by_task.success_rates.mean() < 1
    np.testing.assert_array_equal(by_task.success_rates, by_env.success_rates)
    family.env.share = 0.0
    for target in ({"gain": 1.0}, family.env(1.0)):
        assert learner.adapt(target, episodes=2).success_rates.tolist() == [0.0, 0.0]
    rows: list[dict[str, Any]] = []
    learner.learn(1, eval_every=1, eval_tasks=2, callback=rows.append)
    keys = ("success/step_0", "success/step_1", "eval/success_0", "eval/success_1")
    assert [rows[0][key] for key in keys] == [0.0] * 4


def test_without_any_report_there_is_no_rate():
    assert tiny(doors(0.0)).adapt({"gain": 1.0}).success_rates is None


def test_a_stage_without_a_report_is_a_stage_without_a_success(monkeypatch):
    """Reports only in the first rollout of an iteration, and in the second iteration only."""
    family, learner = doors(0.0), None
    learner = tiny(family, n_tasks=2)
    shares, rows, collect_ = iter([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]), [], learner.sampler.collect

    def collecting(*args: Any) -> Any:
        family.env.share = next(shares)
        return collect_(*args)

    monkeypatch.setattr(learner.sampler, "collect", collecting)
    learner.learn(3, eval_every=0, callback=rows.append)
    found = [[row.get(f"success/step_{k}") for k in (0, 1)] for row in rows]
    assert found == [[None, None], [1.0, 0.0], [0.0, 0.0]]


def test_a_saved_learner_remembers_that_its_environments_report(tmp_path):
    family = doors()
    learner = tiny(family).learn(1, eval_every=0)
    learner.save(tmp_path / "x.safetensors")
    family.env.share = 0.0
    again = type(learner).load(tmp_path / "x.safetensors", family=family)
    assert again.adapt({"gain": 1.0}).success_rates.tolist() == [0.0, 0.0]


def test_stable_baselines3_is_told_in_every_terminal_info():
    family = doors()
    env = as_vec_env(family, 4, seed=1)
    env.reset()
    told = []
    for _ in range(40):
        _, _, done, infos = env.step(np.zeros((4, 1), np.float32))
        told += [info.get("is_success") for info, over in zip(infos, done, strict=True) if over]
    first = told.index(True)
    assert set(told[first:]) == {True, False}
    env.close()
