"""Predictor: the interface of policies for one environment, with or without a memory."""

from typing import Any, Protocol

import numpy as np


class Predictor(Protocol):
    """A policy for one environment. An episode with any of them:

        state = None
        obs, _ = env.reset()
        while not over:
            action, state = policy.predict(obs, state)
            obs, reward, terminated, truncated, _ = env.step(action)
            state = policy.observe(state, reward)
            over = terminated or truncated

    A policy without a memory returns `state` unchanged, so stable-baselines3's own loop, which does not pass rewards,
    gives the same result.
    """

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions for one observation or a batch of them, and the state for `observe` or the next `predict`.

        Args:
            state: None before the first step.
            episode_start: where an episode begins; by default the step without a `state` does.
        """
        ...

    def observe(self, state: Any, reward: Any) -> Any:
        """The state after the step that `predict` took, now that its reward is known."""
        ...

    def fresh(self) -> "Predictor":
        """The same policy with an empty memory."""
        ...
