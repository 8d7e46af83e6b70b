"""docs/custom_families.md: its examples run as they stand there, learn where they say so, and say what is true."""

import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import blocks

import metarl
from metarl import cli
from metarl.families.registry import ENTRY_POINT_GROUP
from metarl.tasks import TaskFamily

DOCUMENT = Path(metarl.__file__).parents[1] / "docs" / "custom_families.md"

pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="metarl is not run from its repository")


def examples() -> list[str]:
    return blocks(DOCUMENT.read_text(), "python") if DOCUMENT.exists() else []


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*WARN.*")  # Gymnasium's
        exec(compile(code, DOCUMENT.name, "exec"), names)
    return names


def test_there_are_the_three_ways_and_each_is_checked_and_trained():
    assert len(examples()) == 4
    for code in examples():
        assert "check_family(family)" in code and ".learn(" in code


def test_any_gymnasium_environment(capsys):
    names = run(examples()[0])
    assert names["learner"].state.iteration == 2 and np.isfinite(names["policy"].returns).all()
    assert "'g' (a keyword of the constructor): uniform in Box(5.0, 15.0" in capsys.readouterr().out


def test_a_configured_environment():
    pytest.importorskip("Box2D")
    family = run(examples()[1])["family"]
    env = family.make({"gravity": 7.0})
    env.reset(seed=0), env.reset(seed=1)
    assert env.unwrapped.world.gravity.y == -7.0


@pytest.mark.parametrize("index", [2, 3], ids=["class", "tensors"])
def test_the_other_two_learn_to_adapt(index):
    # E|direction| = 1/2: knowing the direction's sign, 10 steps earn at most 5; a blind policy earns 0.
    names = run(examples()[index])
    before, after = names["curve"]
    assert abs(before) < 1.0
    assert after > before + 0.5
    assert isinstance(names["family"], TaskFamily)


def test_the_two_are_the_same_family():
    slow, fast = (run(code.partition("check_family(family)")[0])["family"] for code in examples()[2:])
    tasks = [family.sample(5, np.random.default_rng(0))["direction"] for family in (slow, fast)]
    np.testing.assert_array_equal(*tasks)
    envs = [family.make({"direction": np.float32(0.5)}) for family in (slow, fast)]
    starts = np.array([[env.reset(seed=s)[0][0] for s in range(300)] for env in envs])
    assert abs(starts.mean(1)).max() < 0.03 and abs(starts.std(1) - 0.1).max() < 0.02
    action = np.array([0.5], np.float32)
    assert [env.step(action)[1] for env in envs] == [0.25, 0.25]


def test_the_entry_point_is_the_one_that_is_read():
    (text,) = blocks(DOCUMENT.read_text(), "toml")
    assert list(tomllib.loads(text)["project"]["entry-points"]) == [ENTRY_POINT_GROUP]


def test_the_prefixes_work_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = [
        "--n-tasks",
        "2",
        "--episodes",
        "2",
        "--iterations",
        "1",
        "--eval-every",
        "0",
        "--hidden",
        "4",
        "--no-progress",
    ]
    kwargs = ["--family-kwargs", 'parameters={"g": {"box": [5, 15]}}', "horizon=5"]
    assert cli.run(["train", "maml_trpo", "visible:gym:Pendulum-v1", *kwargs, *size]) == 0
    (run_directory,) = (tmp_path / "runs").iterdir()
    assert run_directory.name == "visible-gym-Pendulum-v1-maml_trpo-seed0"
    assert cli.run(["adapt", str(run_directory), "--checkpoint", "latest", "--task", "g=9"]) == 0


def test_what_it_says_of_cart_pole_is_so():
    from gymnasium.spaces import Box

    with pytest.warns(UserWarning, match=r"\['polemass_length'\] from 'length'"):
        metarl.from_gymnasium("CartPole-v1", {"length": Box(0.3, 0.8)})
