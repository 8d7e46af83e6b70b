"""Small learners, runs and environments for the tests of training, checkpoints, evaluation and the command line."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import nn

import metarl
from metarl import MetaLearner
from metarl.tasks import TaskFamily
from metarl.training.train import METRICS, RunDirectory

TINY: dict[str, Any] = {"n_tasks": 2, "episodes": 2, "hidden": (8,)}
TOTAL = 5
"""Iterations of a run that has several evaluations and checkpoints."""
SCHEDULE: dict[str, Any] = {"eval_every": 2, "eval_tasks": 2, "checkpoint_every": 2}


def point(horizon: int = 5) -> TaskFamily:
    """2D navigation in a few steps."""
    return metarl.make("PointNavigation-v0", horizon=horizon)


def tiny(family: Any = None, seed: int = 0, **config: Any) -> MetaLearner:
    """A learner whose iterations take hundredths of a second."""
    return MetaLearner("maml_trpo", family or point(), seed=seed, device="cpu", **(TINY | config))


def same_params(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal bit for bit and in the same order."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def rows_without_time(run: Path) -> list[dict[str, Any]]:
    """The logged rows without what a clock measured."""
    rows = RunDirectory(run).metrics()
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory`."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def iterations_logged(run: Path) -> int:
    """How many rows a running process has written so far."""
    path = run / METRICS
    return max(0, path.read_text().count("\n") - 1) if path.exists() else 0


class Walk(gym.Env):
    """A plain environment of no family, with the spaces of 2D navigation: reward for going right."""

    def __init__(self, limit: float = 0.1, obs_dim: int = 2):
        self.observation_space = Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = Box(-limit, limit, (2,), np.float32)
        self.lengths: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.lengths.append(0)
        self.position = np.zeros(2, np.float32)
        return self.position, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.lengths[-1] += 1
        self.position = self.position + np.asarray(action, np.float32)
        return self.position, float(action[0]), False, False, {}


def module(outputs: int = 2) -> nn.Module:
    """A network for the observations of 2D navigation, with the same weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, outputs))


def learner_of(algorithm: str, family: Any, **more: Any) -> MetaLearner:
    """A learner of MAML-TRPO or RL2 whose iterations take hundredths of a second."""
    own: dict[str, Any] = {"maml_trpo": {"episodes": 2, "hidden": (8,)}}.get(
        algorithm, {"trials": 2, "trial_episodes": 2, "minibatches": 1, "hidden": 8}
    )
    return MetaLearner(algorithm, family, device="cpu", **({"n_tasks": 2} | own | more))


def pixels(horizon: int = 4) -> metarl.TaskFamily:
    """2D navigation from small images, in a few steps."""
    return metarl.make("PointNavigationPixels-v0", horizon=horizon, size=8)
