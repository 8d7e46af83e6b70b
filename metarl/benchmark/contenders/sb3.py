"""Stable-baselines3's algorithms, from scratch in every task."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3 import PPO

from metarl.benchmark.contract import Policies, Test, Training, stacked
from metarl.rollout.acting import Memoryless
from metarl.sb3 import as_vec_env, from_sb3
from metarl.tasks import TaskFamily, task_at

ENVS = 8
"""Environments of a task side by side."""


@dataclass(frozen=True)
class ScratchPPO:
    """PPO of stable-baselines3 with its default settings (or `options`), from scratch in each task."""

    options: dict[str, Any] = field(default_factory=dict)
    label: str = "from scratch, PPO (stable-baselines3)"

    def fits(self, family: TaskFamily) -> str:
        space: Any = family.action_space
        if hasattr(space, "low") and not (np.isfinite(space.low) & np.isfinite(space.high)).all():
            return f"stable-baselines3 needs bounded actions, these are {space}"
        return ""

    def sees(self, family: TaskFamily) -> TaskFamily:
        return family

    def train(self, run: Training) -> int:
        """Learns nothing before it meets the task."""
        return run.seed

    def adapt(self, learned: int, test: Test) -> Iterator[Policies]:
        models = [self._model(test, k, learned) for k in range(test.n_tasks)]
        yield self._policies(models, 0)
        steps = test.adaptation.episodes * test.family.horizon
        for unit in range(test.adaptation.steps):
            for model in models:
                model.learn(steps, reset_num_timesteps=unit == 0)
            yield self._policies(models, (unit + 1) * test.adaptation.episodes)

    def _model(self, test: Test, k: int, seed: int) -> Any:
        env = as_vec_env(test.family, ENVS, task_at(test.tasks, k), seed=test.seed + k)
        unit = test.adaptation.episodes * test.family.horizon
        rollout = max(1, min(2048, unit) // ENVS)
        settings: dict[str, Any] = {"n_steps": rollout, "batch_size": min(64, rollout * ENVS), "device": "cpu"}
        return PPO("MlpPolicy", env, seed=(seed * 1000 + k) % 2**31, **settings | self.options)

    def _policies(self, models: list[Any], episodes: int) -> Policies:
        each = [from_sb3(model) for model in models]
        return Policies(Memoryless(each[0].policy, stacked([one.params for one in each])), {}, episodes)
