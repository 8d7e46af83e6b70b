"""Small learners of RL², and one that has learned to tell two arms apart."""

from functools import cache
from typing import Any

import numpy as np
from probes import TwoArms

from metarl import MetaLearner
from metarl.policies.gru import GRUPolicy

SMALL: dict[str, Any] = {"n_tasks": 4, "trials": 2, "trial_episodes": 3, "hidden": 6, "epochs": 2, "minibatches": 3}


def small(family: Any = None, seed: int = 0, **config: Any) -> MetaLearner:
    """A learner whose iterations take hundredths of a second."""
    return MetaLearner("rl2", family or TwoArms(), seed=seed, device="cpu", **(SMALL | config))


@cache
def trained_on_two_arms(kind: type[GRUPolicy] = GRUPolicy) -> tuple[MetaLearner, np.ndarray]:
    """A trained learner and its returns on test tasks, [4 episodes]."""
    learner = small(n_tasks=64, trials=1, trial_episodes=4, hidden=16, outer_lr=1e-2, epochs=5, minibatches=2)
    learner.policy = kind(learner.policy.spaces, 16)
    learner.learn(25, eval_every=0)
    return learner, learner.evaluate(100, episodes=4).mean
