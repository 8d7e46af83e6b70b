"""stable-baselines3's callbacks in `learn(callback=...)`. docs/stable_baselines3.md says which work.

One meta-iteration is to a callback what one `env.step` and one rollout are in stable-baselines3: `on_rollout_start`,
`on_rollout_end` and `on_step` are called once in each, in this order. `num_timesteps` counts environment steps, or,
where there are none, meta-iterations.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EventCallback
from stable_baselines3.common.logger import Logger

from metarl.training.contract import Kind, Learner

_REFUSED: dict[str, str] = {
    "EvalCallback": "it measures the policy before adaptation; use learn(eval_every=...), whose results a callback "
    'finds in self.locals["stats"]',
    "StopTrainingOnMaxEpisodes": "episodes are counted by the setting: iterations * tasks * episodes * inner steps; "
    "give learn() fewer iterations",
    "ProgressBarCallback": "use learn(progress_bar=True)",
    "LogEveryNTimesteps": "every meta-iteration is logged",
}
_AFTER_EVALUATION = ("StopTrainingOnRewardThreshold", "StopTrainingOnNoModelImprovement")


class Hooks:
    """Calls a stable-baselines3 callback, or a list of callbacks, in the course of `train`.

    Raises:
        ValueError: a callback that makes no sense here; the message says what to use instead.
    """

    def __init__(self, learner: Learner, kind: Kind, callback: Any):
        self.model, self.callback = Model(learner, kind), _prepared(callback)

    def start(self, logger: Logger | None, iterations: int) -> None:
        """Training begins; `logger` is the run's."""
        self.model.logger = Logger(None, []) if logger is None else logger
        self.callback.init_callback(self.model)  # type: ignore[arg-type]
        self.callback.on_training_start({"self": self.model.learner, "iterations": iterations}, {})

    def around(self, step: Callable[[Any], tuple[Any, dict[str, Any]]]) -> Callable[[Any], tuple[Any, dict[str, Any]]]:
        """`step` between `on_rollout_start` and `on_rollout_end`."""

        def hooked(state: Any) -> tuple[Any, dict[str, Any]]:
            self.callback.on_rollout_start()
            new, stats = step(state)
            self.callback.update_locals({"stats": stats})
            self.callback.on_rollout_end()
            return new, stats

        return hooked

    def after_iteration(self, stats: dict[str, Any]) -> bool:
        """Whether to go on."""
        self.callback.update_locals({"stats": stats})
        return bool(self.callback.on_step())

    def end(self) -> None:
        """Training has ended, by itself or by a callback."""
        self.callback.on_training_end()


class Model:
    """The learner, as callbacks see it: everything it has, and what stable-baselines3's models have besides."""

    logger: Logger

    def __init__(self, learner: Any, kind: Kind):
        self.learner, self.kind = learner, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    @property
    def num_timesteps(self) -> int:
        """Environment steps of the whole run, or meta-iterations."""
        return self.kind.timesteps(self.learner.state)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        """The meta-policy's actions, before any adaptation."""
        return self.kind.predictor(self.learner).predict(observation, *args, **kwargs)

    def save(self, path: str | Path) -> None:
        """A checkpoint for `load`; its name ends in `.safetensors` where they wanted `.zip`."""
        path = Path(path)
        path = path.with_suffix("") if path.suffix == ".zip" else path
        self.learner.save(path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors"))

    def get_env(self) -> None:
        """None: the environments belong to the rollouts and change their tasks."""

    def get_vec_normalize_env(self) -> None:
        """None."""


class _AfterEvaluation(EventCallback):
    """Calls its child after the iterations that evaluated, with the name under which it looks for the best score."""

    best_mean_reward = -np.inf

    def _on_step(self) -> bool:
        stats = self.locals["stats"]
        if "eval/score" not in stats:
            return True
        self.best_mean_reward = max(self.best_mean_reward, float(stats["eval/score"]))
        return self._on_event()


class _Function(BaseCallback):
    """One of our own callbacks: a function of the statistics."""

    def __init__(self, function: Callable[[dict[str, Any]], bool | None]):
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return self.function(self.locals["stats"]) is not False


def _prepared(callback: Any) -> BaseCallback:
    """Lists become `CallbackList`s, functions callbacks; what cannot work is refused."""
    if isinstance(callback, Sequence):
        return CallbackList([_prepared(one) for one in callback])
    if isinstance(callback, CallbackList):
        callback.callbacks = [_prepared(one) for one in callback.callbacks]
        return callback
    if not isinstance(callback, BaseCallback):
        return _Function(callback)
    if type(callback).__name__ in _AFTER_EVALUATION:
        return _AfterEvaluation(callback)
    for one in _tree(callback):
        for name, remedy in _REFUSED.items():
            if isinstance(one, getattr(sb3, name, ())):
                raise ValueError(f"{name} does not work in meta-training: {remedy}")
        if type(one).__name__ in _AFTER_EVALUATION:
            raise ValueError(f"{type(one).__name__} is called after evaluations: pass it to learn() itself, "
                             f"not inside of {type(callback).__name__}")  # fmt: skip
    return callback


def _tree(callback: BaseCallback) -> Iterator[BaseCallback]:
    yield callback
    for child in (getattr(callback, "callback", None), *getattr(callback, "callbacks", ())):
        if isinstance(child, BaseCallback):
            yield from _tree(child)
