"""Suites: what a file may say, what is refused before anything runs, and frozen tasks."""

import json

import numpy as np
import pytest
from probes import PointGoal

import metarl
from metarl.benchmark import suite
from metarl.benchmark.contract import Adaptation
from metarl.benchmark.suite import SuiteError, from_data
from metarl.benchmark.tasks import TaskLists, draw

DATA = {
    "seeds": 2, "first_seed": 5,
    "adaptation": {"steps": 2, "episodes": 4},
    "tasks": {"validation": 3, "test": 4},
    "families": {"nav": {"id": "PointNavigation-v0", "budget": 1000, "settings": {"inner_lr": 0.3},
                         "adaptation": {"episodes": 9}},
                 "PointNavigation-v0": {}},
    "contenders": {"random": {}, "maml_trpo": {"max_kl": 0.02, "families": {"nav": {"episodes": 7}}},
                   "small": {"kind": "promp", "hidden": [4], "label": "small ProMP"}},
}  # fmt: skip


def test_cells_are_contender_by_family_by_seed_the_first_seed_of_everything_first():
    cells = from_data(DATA, "s").cells()
    assert len(cells) == 2 * 2 * 3
    assert [cell.seed for cell in cells] == [5] * 6 + [6] * 6
    assert str(cells[1].path) == "cells/nav/maml_trpo/seed5"


def test_settings_come_from_the_family_then_the_contender_then_the_contender_on_the_family():
    cells = {(cell.family, cell.contender): cell for cell in from_data(DATA, "s").cells()}
    made = cells["nav", "maml_trpo"].made_contender()
    assert made.settings == {"inner_lr": 0.3, "max_kl": 0.02, "episodes": 7}
    assert cells["PointNavigation-v0", "maml_trpo"].made_contender().settings == {"max_kl": 0.02}
    assert cells["nav", "small"].made_contender().algorithm == "promp"
    assert cells["nav", "random"].made_contender().options == {}


def test_a_family_may_have_another_adaptation():
    cells = {cell.family: cell for cell in from_data(DATA, "s").cells()}
    assert cells["nav"].adaptation == Adaptation(2, 9)
    assert cells["PointNavigation-v0"].adaptation == Adaptation(2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, r"the suite has no entry 'seed'; did you mean 'seeds'"),
        ({"families": {}}, r"needs a table \[families.NAME\]"),
        ({"families": {"nav": {"id": "PointNavigatoin-v0"}}}, "random on nav in the suite: .*PointNavigation-v0"),
        ({"families": {"nav": {"id": "PointNavigation-v0", "bugdet": 1}}}, "did you mean 'budget'"),
        ({"contenders": {"maml": {}}}, "no contender 'maml'; did you mean 'e_maml'"),
        ({"contenders": {"maml_trpo": {"families": {"cart": {}}}}}, "settings for 'cart', which is no family"),
        ({"tasks": {"test": 4}}, r"\[tasks\] of the suite needs a number of validation tasks"),
        ({"tasks": {"validation": 0, "test": 4}}, "validation must be at least 1"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"adaptation": {"step": 1}}, r"\[adaptation\] of the suite has no entry 'step'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_its_place(change, message):
    with pytest.raises((SuiteError, ValueError), match=message):
        from_data({**DATA, **change}, "s")


def test_a_wrong_setting_of_a_learner_is_found_before_anything_runs():
    wrong = {**DATA, "contenders": {"maml_trpo": {"max_kil": 0.1}}}
    with pytest.raises(SuiteError, match=r"maml_trpo on nav .*max_kil.*max_kl"):
        from_data(wrong, "s")


def test_a_file_that_is_not_there_and_one_that_is_no_toml(tmp_path):
    with pytest.raises(SuiteError, match=r"there is no suite .*nowhere.*comes with metarl: minutes"):
        suite.read("nowhere")
    (tmp_path / "s.toml").write_text("seeds = = 3")
    with pytest.raises(SuiteError, match="is no TOML"):
        suite.read(tmp_path / "s.toml")


def test_the_suites_that_come_with_the_package_can_be_read():
    paths = sorted(suite.EXAMPLES.glob("*.toml"))
    assert [path.stem for path in paths] == ["minutes"]
    for path in paths:
        assert suite.read(path.stem).cells()


# ---------------------------------------------------------------------------------------------------------------------
# Frozen tasks


def test_frozen_tasks_come_back_from_their_file_the_same(tmp_path):
    family = metarl.make("PointNavigation-v0")
    lists = draw(family, 3, {"validation": 4, "test": 5})
    lists.save(tmp_path / "tasks.json")
    again = TaskLists.load(tmp_path / "tasks.json", family)
    assert again.hash == lists.hash
    for split, tasks in lists.splits.items():
        assert all(np.array_equal(again.splits[split][name], value) for name, value in tasks.items())
    same, other = (draw(family, seed, {"validation": 4, "test": 5}).hash for seed in (3, 4))
    assert same == lists.hash != other


def test_a_file_of_tasks_that_was_changed_or_is_another_familys_is_refused(tmp_path):
    family, path = metarl.make("PointNavigation-v0"), tmp_path / "tasks.json"
    draw(family, 3, {"validation": 1, "test": 1}).save(path)
    with pytest.raises(ValueError, match="holds tasks of 'PointNavigation-v0'"):
        TaskLists.load(path, PointGoal())
    data = json.loads(path.read_text())
    data["splits"]["test"]["goal"][0][0] += 0.1
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="was changed: its tasks have the hash"):
        TaskLists.load(path, family)


def test_validation_and_test_tasks_are_both_needed():
    with pytest.raises(ValueError, match=r"splits \['validation'\] too"):
        draw(metarl.make("PointNavigation-v0"), 0, {"test": 3})
