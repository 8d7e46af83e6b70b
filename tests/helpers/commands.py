"""Commands that take little time, in this process, and what they do in Python."""

import signal
import sys
from typing import Any

import pytest

import metarl
from metarl import MetaLearner, cli

SMALL = ["--n-tasks", "2", "--episodes", "2", "--hidden", "8", "--family-kwargs", "horizon=5", "--eval-tasks", "2",
         "--threads", "1", "--device", "cpu", "--no-progress"]  # fmt: skip
TRAIN = ["train", "maml_trpo", "PointNavigation-v0", *SMALL]


def by_hand(iterations: int, eval_every: int = 10, seed: int = 0, **more: Any) -> MetaLearner:
    """What TRAIN does, in Python."""
    learner = MetaLearner("maml_trpo", metarl.make("PointNavigation-v0", horizon=5), seed=seed, device="cpu",
                          n_tasks=2, episodes=2, hidden=(8,))  # fmt: skip
    return learner.learn(iterations, eval_tasks=2, eval_every=eval_every, **more)


def main(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """`metarl ARGV` in this process -> exit status."""
    monkeypatch.setattr(sys, "argv", ["metarl", *argv])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code
