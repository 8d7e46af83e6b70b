"""A file of a user's own that defines a family, and users with and without a record of what they have trained with."""

import sys
from pathlib import Path

import pytest

from metarl import source_files
from metarl.families import files, trusted_files

REFERENCE = "family.py:make_family"

CODE = """
import os
import pathlib
from os import system

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from {helpers} import SCALE

with open(os.environ["MARK"], "a") as mark:
    mark.write("imported\\n")


class Push(gym.Env):
    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    metadata = {{"render_modes": ["rgb_array"], "render_fps": 10}}

    def __init__(self, direction, render_mode=None):
        self.direction, self.render_mode = direction, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(0.0, 0.1)
        return np.array([self.x], np.float32), {{}}

    def step(self, action):
        self.x += SCALE * float(action[0])
        return np.array([self.x], np.float32), self.direction * float(action[0]), False, False, {{}}

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)


class Pushing:
    id = "Pushing-v0"
    observation_space, action_space = Push.observation_space, Push.action_space
    task_space = gym.spaces.Dict({{"direction": Box(-1.0, 1.0, (), np.float32)}})

    def __init__(self, horizon=4, flavour="plain"):
        self.horizon, self.flavour = horizon, flavour

    def sample(self, n, rng, split="train"):
        return {{"direction": rng.uniform(-1.0, 1.0, n).astype(np.float32)}}

    def make(self, task, render_mode=None):
        return Push(float(task["direction"]), render_mode)


def make_family(**kwargs):
    return Pushing(**kwargs)


family = Pushing(7)
number = 3


def make_nothing():
    pass


def make_trouble():
    return 1 / 0
"""


def write_family(folder: Path, name: str = "family.py", helpers: str = "pushing_helpers") -> Path:
    """The file, and beside it the module that it imports."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{helpers}.py").write_text("SCALE = 0.1\n")
    (folder / name).write_text(CODE.format(helpers=helpers))
    return folder / name


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "\n# edited\n")


def imports(mark: Path) -> int:
    """How often the file was executed."""
    return len(mark.read_text().splitlines()) if mark.exists() else 0


def forget_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process of the same user: nothing is imported or named yet."""
    for name in [*source_files._FILES, "pushing_helpers"]:
        sys.modules.pop(name, None)
    monkeypatch.setattr(source_files, "_FILES", {})
    monkeypatch.setattr(source_files, "_SOURCES", {})
    monkeypatch.setattr(files, "_named", [])
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "pytest-" not in entry])


def become_somebody_else(monkeypatch: pytest.MonkeyPatch, record: Path) -> None:
    """As a new process of a user who has trained with nothing yet."""
    forget_process(monkeypatch)
    monkeypatch.setenv(trusted_files.VARIABLE, str(record))
