"""A training whose state is a number: what `train` does with it is written down."""

from typing import Any

from metarl.training.train import BEST, Outputs, Progress, Schedule, train


class Fake:
    """A state that counts iterations; everything that `train` does is written down."""

    def __init__(self, scores: dict[int, float] | None = None, fail: tuple[str, int] = ("", 0)):
        self.scores, self.fail = scores or {}, fail
        self.kept: tuple[int, float | None] | None = None
        self.saved: list[tuple[str, int, float | None]] = []
        self.evaluated: list[int] = []
        self.rows: list[dict[str, Any]] = []
        self.row: dict[str, Any] = {}

    def _maybe_fail(self, where: str, state: int) -> None:
        if (where, state) == self.fail:
            raise KeyboardInterrupt

    def step(self, state: int) -> tuple[int, dict[str, Any]]:
        self._maybe_fail("step", state + 1)
        return state + 1, {"return/step_0": 0.0, "time/rollout": 1, "time/update": 1, "time/steps_per_second": 1.0}

    def evaluate(self, state: int) -> dict[str, Any]:
        self._maybe_fail("evaluate", state)
        self.evaluated.append(state)
        return {"eval/score": self.scores.get(state, 0.0)}

    def save(self, name: str, state: int, best: float | None) -> None:
        if name == BEST:
            self._maybe_fail("save best", state)
        self.saved.append((name, state, best))

    def keep(self, state: int, best: float | None) -> None:
        self.kept = state, best

    def record(self, key: str, value: Any) -> None:
        self.row[key] = value

    def dump(self, step: int) -> None:
        self._maybe_fail("log", step)
        self.rows.append(self.row)
        self.row = {}

    def callback(self, stats: dict[str, Any]) -> bool | None:
        self._maybe_fail("callback", stats["iteration"])
        return None

    def train(self, iterations: int, start: int = 0, **options: Any) -> None:
        schedule = Schedule(iterations, start, options.pop("eval_every", 1), options.pop("checkpoint_every", 100))
        progress = Progress(options.pop("progress_bar", False))
        options = {"evaluate": self.evaluate, "callback": self.callback, "progress": progress, **options}
        train(start, self.step, schedule, Outputs(self.keep, self.save, self), **options)
