"""Tasks as data, splits, the registry and entry points."""

import importlib.metadata
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import metarl
from metarl.families import registry as registry_module
from metarl.tasks import FamilySpec, num_tasks, parse_task, split_rng, stack_tasks, task_at, validate_task


class Family:
    """A family for these tests.

    Its second line is not part of the summary.
    """

    id = "Test-v0"
    horizon = 5
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    task_space = gym.spaces.Dict(
        {
            "goal": gym.spaces.Box(-1, 1, (2,), np.float32),
            "mass": gym.spaces.Box(0, 10, (), np.float32),
            "corner": gym.spaces.Discrete(4),
        }
    )

    def __init__(self, arms: int = 2):
        self.arms = arms

    def sample(self, n, rng, split="train"):
        raise NotImplementedError

    def make(self, task):
        raise NotImplementedError


GOOD = {"goal": [0.3, -0.2], "mass": 2.5, "corner": 3}


@pytest.fixture
def registry(monkeypatch):
    """An empty registry of its own."""
    monkeypatch.setattr(registry_module, "_registry", {})


# ---------------------------------------------------------------------------------------------------------------------
# Tasks as data


def test_validated_task_has_the_types_of_the_space():
    task = validate_task(Family(), GOOD)
    assert task["goal"].dtype == np.float32
    assert task["goal"].tolist() == pytest.approx([0.3, -0.2])
    assert task["mass"] == 2.5
    assert task["mass"].shape == ()
    assert task["corner"] == 3
    assert task["corner"].dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gaol": 1}, "has no task parameter 'gaol'; did you mean 'goal'"),
        ({"zzz": 1}, r"no task parameter 'zzz'; known are \['corner', 'goal', 'mass'\]"),
        ({"goal": None}, "also needs"),
        ({"goal": [0.1, 0.2, 0.3]}, r"'goal' of Test-v0 has shape \(2,\), got \[0.1, 0.2, 0.3\]"),
        ({"mass": 11.0}, "'mass' of Test-v0 lies in .*, got 11.0"),
        ({"goal": [np.nan, 0.0]}, "'goal' of Test-v0 lies in"),
        ({"corner": 1.5}, "'corner' of Test-v0 is int64, got 1.5"),
        ({"corner": 4}, "'corner' of Test-v0 lies in Discrete.4., got 4"),
    ],
)
def test_wrong_tasks_are_refused_by_name_and_value(change, message):
    task = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        validate_task(Family(), task)


@pytest.mark.parametrize("text", ["goal=0.3,-0.2;mass=2.5;corner=3", ["corner=3", " goal=0.3,-0.2;mass=2.5"]])
def test_parsed_task_equals_the_validated_one(text):
    parsed, wanted = parse_task(Family(), text), validate_task(Family(), GOOD)
    assert parsed.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.array_equal(parsed[name], value)
        assert parsed[name].dtype == value.dtype


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.3,-0.2", "written like goal=0.3,-0.2, got '0.3,-0.2'"),
        ("goal=left", "'goal' takes numbers separated by commas, got 'left'"),
        ("goal=0.3;mass=1;corner=1", r"'goal' of Test-v0 has shape \(2,\)"),
        ("goal=0.3,-0.2;mass=1;corner=2.7", r"'corner' of Test-v0 is int64, got 2\.7"),
        ("goal=0.3,0.9,2;mass=1;corner=2", r"has shape \(2,\), got \[0.3, 0.9, 2.0\]"),
        ("gaol=0.3,-0.2", "did you mean 'goal'"),
        ("goal=0.3,-0.2", r"also needs \['corner', 'mass'\]"),
    ],
)
def test_text_that_is_no_task_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_task(Family(), text)


def test_stacking_and_picking_are_inverse():
    singles = [{"a": np.array([k, 2.0 * k]), "b": np.array(k)} for k in range(3)]
    stacked = stack_tasks(singles)
    assert stacked["a"].shape == (3, 2)
    assert num_tasks(stacked) == 3
    assert all(np.array_equal(task_at(stacked, 2)[name], singles[2][name]) for name in "ab")


@pytest.mark.parametrize("tasks", [{}, {"a": np.zeros(2), "b": np.zeros(3)}])
def test_entries_that_disagree_about_their_number_are_refused(tasks):
    with pytest.raises(ValueError, match="same leading length K"):
        num_tasks(tasks)


def test_single_tasks_in_a_list_are_no_tasks():
    with pytest.raises(ValueError, match=r"got \[\{'x': 1\}\]; metarl.tasks.stack_tasks makes them from single ones"):
        num_tasks([{"x": 1}])  # type: ignore[arg-type]


def test_splits_of_one_seed_share_no_draw_and_each_can_be_repeated():
    def draw(split: str) -> np.ndarray:
        return split_rng(np.random.default_rng(7), split).uniform(size=1000)

    assert np.array_equal(draw("train"), draw("train"))
    assert not set(draw("train")) & set(draw("test"))


def test_split_generators_move_with_their_source():
    rng = np.random.default_rng(7)
    assert split_rng(rng, "train").uniform() != split_rng(rng, "train").uniform()


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"'train', 'validation', 'test'.*got 'trian'"):
        split_rng(np.random.default_rng(0), "trian")


# ---------------------------------------------------------------------------------------------------------------------
# The registry


def test_registered_family_is_made_and_remembers_how(registry):
    metarl.register("Test-v0", Family)
    family = metarl.make("Test-v0", arms=3)
    assert family.arms == 3
    assert family.spec == FamilySpec("Test-v0", {"arms": 3})
    assert metarl.registered()["Test-v0"] == "A family for these tests."


def test_an_id_has_one_factory(registry):
    metarl.register("Test-v0", Family)
    metarl.register("Test-v0", Family)
    with pytest.raises(ValueError, match="'Test-v0' is registered already"):
        metarl.register("Test-v0", lambda: Family())


def test_unknown_family_names_the_nearest():
    with pytest.raises(ValueError, match="'PointNavigaton-v0'; did you mean 'PointNavigation-v0'"):
        metarl.make("PointNavigaton-v0")


def test_unknown_argument_of_a_family_is_refused_by_name():
    with pytest.raises(ValueError, match=r"BernoulliBandit-v0 cannot be made with .*'levers': 3"):
        metarl.make("BernoulliBandit-v0", levers=3)


def test_family_that_cannot_be_imported_is_listed_and_does_not_hide_the_others(monkeypatch):
    group = registry_module.ENTRY_POINT_GROUP
    broken = importlib.metadata.EntryPoint("Broken-v0", "no_such_module:Family", group)
    points = {**registry_module._entry_points(), "Broken-v0": broken}
    monkeypatch.setattr(registry_module, "_entry_points", lambda: points)
    listed = metarl.registered()
    assert listed["Broken-v0"] == "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"
    assert listed["PointNavigation-v0"].startswith("A point in the plane")


def test_entry_points_load_classes_of_their_own_name():
    points = importlib.metadata.entry_points(group=registry_module.ENTRY_POINT_GROUP)
    ours = [point for point in points if point.module == "metarl_envs.bandits"]
    assert len(ours) == 2
    for point in ours:
        assert point.load().id == point.name


def test_a_fresh_interpreter_finds_the_families_and_imports_nothing_before_it_must():
    code = """if True:
        import sys, metarl
        early = [name for name in ("torch", "gymnasium", "metarl_envs") if name in sys.modules]
        assert not early, early
        assert metarl.make("TabularMDP-v0", states=3).observation_space.n == 3
        assert "metarl_envs" in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
