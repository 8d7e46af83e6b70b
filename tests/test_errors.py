"""What a user can get wrong: each message names the thing, shows the value, says what to do, and nothing is damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Text
from probes import Stops, TwoArms
from tiny_runs import TINY, contents, point, tiny

import metarl
from metarl import AdaptedPolicy, MetaLearner


class Wheels(Stops):
    """Actions that no policy here has."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = Text(3)


class Pixels(Stops):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Dict({"camera": gym.spaces.Box(0, 1, (4, 4))})


class Infinite(Stops):
    def reward(self, task: Any, t: int) -> float:
        return float("inf") if int(task["steps"]) == 2 else 1.0


class Blind(Stops):
    def observation(self, task: Any, t: int) -> float:
        return float("nan") if t == 1 else t


def damaged(directory: Path) -> Path:
    path = directory / "latest.safetensors"
    tiny().save(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)
    return path


def of_another_family(directory: Path) -> Path:
    path = directory / "latest.safetensors"
    tiny().save(path)
    return path


def learn(family: Any = None, **settings: Any) -> Callable[[Path], Any]:
    settings = TINY | settings
    return lambda directory: MetaLearner("maml_trpo", family or point(), **settings).learn(1, run_dir=directory)


def adapt(task: Any) -> Callable[[Path], Any]:
    return lambda directory: tiny().adapt(task)


CASES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    # what is done: (the call, what its message has to contain: the value and the remedy)
    "unknown family": (
        learn("PointNavigation-v1"), ["'PointNavigation-v1'", "did you mean 'PointNavigation-v0'?", "`metarl list`"]),
    "unknown family, like none": (
        learn("Chess"), ["'Chess'", "`metarl list` shows all of them"]),
    "unknown algorithm": (
        lambda directory: MetaLearner("mamltrpo", point()), ["'mamltrpo'", "did you mean 'maml_trpo'?"]),
    "unknown setting": (
        learn(n_task=3), ["maml_trpo", "'n_task'", "did you mean 'n_tasks'?"]),
    "task parameter of another name": (
        adapt({"target": [0.1, 0.2]}), ["PointNavigation-v0", "'target'", "known are ['goal']"]),
    "task parameter missing": (
        adapt({}), ["PointNavigation-v0 also needs ['goal']"]),
    "task that is a string": (
        adapt("goal=0.1,0.2"), ["a task of PointNavigation-v0 is a dict with the keys ['goal']", "'goal=0.1,0.2'"]),
    "task parameter of another shape": (
        adapt({"goal": [0.1, 0.2, 0.3]}), ["'goal'", "(2,)", "got [0.1, 0.2, 0.3]"]),
    "task parameter that is not finite": (
        adapt({"goal": [0.1, np.inf]}), ["'goal'", "must be finite", "got [0.1, inf]"]),
    "task parameter that is no number": (
        adapt({"goal": ["a", "b"]}), ["'goal'", "float32", "got ['a', 'b']"]),
    "action space that is not supported": (
        learn(Wheels()), ["StopsProbe-v0", "Text(1, 3", "supported are Box, Discrete, MultiDiscrete and MultiBinary"]),
    "observation space that is not supported": (
        learn(Pixels()), ["StopsProbe-v0", "Dict('camera': Box", "gymnasium.wrappers.FlattenObservation"]),
    "no tasks": (
        learn(n_tasks=0), ["n_tasks must be at least 1", "got 0"]),
    "no episodes": (
        learn(episodes=-2), ["episodes must be at least 1", "got -2"]),
    "inner step size of zero": (
        learn(inner_lr=0.0), ["inner_lr must be positive", "got 0.0"]),
    "negative inner step size": (
        learn(inner_lr=-0.1), ["inner_lr must be positive", "got -0.1"]),
    "step size that is no number": (
        learn(inner_lr=float("nan")), ["inner_lr must be positive", "got nan"]),
    "trust region of zero": (
        learn(max_kl=0.0), ["max_kl must be positive", "got 0.0"]),
    "negative seed": (
        learn(seed=-1), ["seed must not be negative", "got -1"]),
    "seed that is no number": (
        learn(seed="one"), ["seed must be a whole number", "got 'one'"]),
    "workers that are no whole number": (
        learn(workers=1.5), ["workers must be a whole number", "got 1.5"]),
    "device that is none": (
        learn(device="gpu"), ["'gpu'", "auto, cpu or cuda"]),
    "reward that is not finite": (
        learn(Infinite(), n_tasks=3), ["StopsProbe-v0", "reward inf", "step 0 of episode 0 of task 1", "'steps'",
                                       "stopped before this update"]),
    "observation that is not finite": (
        learn(Blind(), n_tasks=3), ["StopsProbe-v0", "observation [nan, nan]", "step 0 of episode 0 of task 1"]),
    "damaged checkpoint": (
        lambda directory: MetaLearner.load(damaged(directory)),
        ["latest.safetensors is damaged", "checksum", "Use another checkpoint"]),
    "missing checkpoint": (
        lambda directory: MetaLearner.load(directory / "nothing"), ["there is no checkpoint", "nothing"]),
    "checkpoint of another family": (
        lambda directory: MetaLearner.load(of_another_family(directory), family=TwoArms()),
        ["latest.safetensors is a checkpoint of another family", "PointNavigation-v0", "TwoArmsProbe-v0"]),
    "checkpoint that is no policy": (
        lambda directory: AdaptedPolicy.load(of_another_family(directory)),
        ["latest.safetensors holds a learner, not a policy", "use MetaLearner.load"]),
    "family with arguments that it does not have": (
        lambda directory: metarl.make("PointNavigation-v0", size=3), ["PointNavigation-v0", "{'size': 3}", "'size'"]),
}  # fmt: skip


@pytest.mark.parametrize(("call", "parts"), CASES.values(), ids=CASES.keys())
def test_an_error_names_the_thing_shows_the_value_and_says_what_to_do(tmp_path, call, parts):
    with pytest.raises(ValueError) as caught:
        call(tmp_path)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    "call", [learn("Chess"), learn(Wheels()), learn(Pixels()), learn(n_tasks=0), learn(inner_lr=0.0), learn(seed=-1)],
    ids=["family", "actions", "observations", "tasks", "step size", "seed"],
)  # fmt: skip
def test_nothing_is_written_before_it(tmp_path, call):
    with pytest.raises(ValueError):
        call(tmp_path)
    assert contents(tmp_path) == {}


def test_a_call_without_an_error_raises_none(tmp_path):
    learn()(tmp_path)
    adapt({"goal": np.array([0.1, 0.2])})(tmp_path)
    MetaLearner.load(tmp_path)
