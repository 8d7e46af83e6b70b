"""Kill training runs, again and again, and see whether what is resumed is the run that was never killed, bit for bit.

A trial starts a run of one of five kinds, kills it with SIGKILL one to three times (at a moment, or inside a write, a
sync or a rename of one of its files), resumes it after each and compares the finished run with an uninterrupted one:
both checkpoints byte for byte, the metrics but for times, the configuration. Everything follows from the seed but what
the clock decides: how far a run has come at a moment.

    python experiments/reliability/kill_campaign.py --kills 100 --seed 0 --out experiments/reliability
"""

import argparse
import builtins
import contextlib
import csv
import importlib
import json
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metarl
from metarl import MetaLearner
from metarl.checkpoint import CheckpointError
from metarl.supervised import FewShotLearner, Sinusoid
from metarl.training.directory import BEST, CONFIG, LATEST, RunDirectory

for _slow in (
    "stable_baselines3.common.logger",
    "tensorboard",
    "torch.utils.tensorboard",
    "gymnasium.envs.classic_control",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(_slow)  # once here, not in every fork

TOTAL = 7
"""Iterations of a run. Checkpoints after every second, evaluations after every third."""
SCHEDULE: dict[str, Any] = {"eval_every": 3, "eval_tasks": 3, "checkpoint_every": 2}


# ---------------------------------------------------------------------------------------------------------------------
# Five kinds of run: each makes a new learner, or loads one


def _learner(algorithm: str, family: Callable[[], Any], workers: int | None = 0, **config: Any) -> Callable[..., Any]:
    def make(run: Path | None) -> Any:
        if run is not None:
            return MetaLearner.load(run, family=family(), device="cpu", workers=workers)
        return MetaLearner(algorithm, family(), seed=3, device="cpu", workers=workers, **config)

    return make


def _few_shot(run: Path | None) -> Any:
    if run is not None:
        return FewShotLearner.load(run, Sinusoid(), device="cpu")
    return FewShotLearner(Sinusoid(), seed=3, device="cpu", n_tasks=5, hidden=(7, 5), inner_steps=2)


def _pendulum() -> Any:
    return metarl.from_gymnasium("Pendulum-v1", {"g": metarl_box(5.0, 15.0)}, horizon=6)


def metarl_box(low: float, high: float) -> Any:
    from gymnasium.spaces import Box

    return Box(low, high)


KINDS: dict[str, Callable[..., Any]] = {
    "maml_trpo": _learner("maml_trpo", lambda: metarl.make("PointNavigation-v0", horizon=7), n_tasks=3, episodes=3,
                          hidden=(7, 5)),
    "rl2": _learner("rl2", lambda: metarl.make("BernoulliBandit-v0", arms=3), n_tasks=5, trials=3, trial_episodes=7,
                    hidden=13, minibatches=2, epochs=2),
    "few-shot": _few_shot,
    "workers": _learner("maml_ppo", _pendulum, 2, n_tasks=2, episodes=2, hidden=(5,), normalize_obs=True),
    "loop": _learner("promp", _pendulum, 0, n_tasks=2, episodes=3, hidden=(7,), normalize_obs=True),
}  # fmt: skip


def start_or_resume(kind: str, run: Path) -> None:
    """What a user does: resume if there is a checkpoint, else start."""
    try:
        learner = KINDS[kind](run if run.exists() else None)
    except CheckpointError:
        if (run / LATEST).exists():
            raise
        learner = KINDS[kind](None)
    remaining = TOTAL - learner.state.iteration
    if remaining or not (run / LATEST).exists():
        learner.learn(remaining, run_dir=run, **SCHEDULE)
    if hasattr(learner, "close"):
        learner.close()


# ---------------------------------------------------------------------------------------------------------------------
# Kills

OPERATIONS = ("write", "before sync", "after sync", "before rename", "after rename")


class Injector:
    """Counts the file operations of this process on a run's files; ends it with SIGKILL in a given one of them."""

    def __init__(self, operation: str | None = None, number: int = 0):
        self.operation, self.number = operation, number
        self.counts = dict.fromkeys(OPERATIONS, 0)

    def reached(self, operation: str) -> bool:
        self.counts[operation] += 1
        return operation == self.operation and self.counts[operation] == self.number

    def install(self) -> None:
        """Put itself around the functions of this process through which files are written."""
        sync, rename, path_open, plain_open = os.fsync, os.replace, pathlib.Path.open, builtins.open

        def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **more: Any) -> Any:
                for when in ("before", "after"):
                    if when == "after":
                        out = function(*args, **more)
                    if self.reached(f"{when} {name}"):
                        die()
                return out

            return wrapped

        def opened(open_: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **more: Any) -> Any:
                file = open_(*args, **more)
                return Torn(file, self) if any(c in getattr(file, "mode", "") for c in "wxa") else file

            return wrapped

        os.fsync, os.replace = around("sync", sync), around("rename", rename)
        pathlib.Path.open = opened(path_open)  # type: ignore[method-assign]
        builtins.open = opened(plain_open)  # type: ignore[assignment]


class Torn:
    """A file whose write may stop half way."""

    def __init__(self, file: Any, injector: Injector):
        self._file, self._injector = file, injector

    def write(self, data: Any) -> Any:
        if self._injector.reached("write"):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            die()
        return self._file.write(data)

    def __enter__(self) -> "Torn":
        self._file.__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        return self._file.__exit__(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def in_a_fork(function: Callable[[], None], log: Path, after: float | None = None) -> int:
    """Run `function` in a copy of this process, killed `after` seconds. -> its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for own in (1, 2):
                os.dup2(file, own)
            torch.set_num_threads(1)
            function()
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    if after is not None:
        end = time.monotonic() + after
        while time.monotonic() < end and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)  # of a zombie too: it is not waited for yet
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def survivors(parent: int) -> int:
    """How many workers of a process are there."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += (
                    f"metarl.vector.worker import main; main(({parent},".encode() in (entry / "cmdline").read_bytes()
                )
            except OSError:
                continue
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Comparison


def differences(run: Path, whole: Path) -> list[str]:
    """In what a finished run is not the uninterrupted one."""
    out = []
    for name in (LATEST, BEST):
        if not (run / name).exists() or (run / name).read_bytes() != (whole / name).read_bytes():
            out.append(name)
    rows = [[{k: v for k, v in row.items() if not k.startswith("time/")} for row in RunDirectory(r).metrics()]
            for r in (run, whole)]  # fmt: skip
    out += ["metrics"] if repr(rows[0]) != repr(rows[1]) else []  # repr: NaN equals itself
    configs = [json.loads((r / CONFIG).read_text()) for r in (run, whole)]
    return out + (["config"] if configs[0] != configs[1] else [])


@dataclass
class Kill:
    """One kill, and what became of the run."""

    trial: int
    kind: str
    where: str
    """ "moment", or the file operation."""
    point: float
    """Of a moment the seconds, of an operation its number."""
    iteration: int
    """Rows of metrics at the kill."""
    outcome: str = ""


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: where it is, how long it took, and how often it did what to files."""

    path: Path
    seconds: float
    counts: dict[str, int]


def reference(kind: str, directory: Path) -> Reference:
    """Do the run that the others are compared with."""
    path, log, counts = directory / f"whole-{kind}", directory / "log.txt", directory / "counts.json"

    def run() -> None:
        injector = Injector()
        injector.install()
        start_or_resume(kind, path)
        counts.write_text(json.dumps(injector.counts))

    begin = time.monotonic()
    if in_a_fork(run, log):
        raise RuntimeError(f"the uninterrupted run {kind} failed:\n{log.read_text()}")
    return Reference(path, time.monotonic() - begin, json.loads(counts.read_text()))


def rows_of(run: Path) -> int:
    """Rows of metrics, whole or not."""
    path = run / "metrics.csv"
    return max(0, path.read_text(errors="replace").count("\n") - 1) if path.exists() else 0


def trial(number: int, kind: str, whole: Reference, directory: Path, rng: np.random.Generator) -> list[Kill]:
    """Kill a run up to three times, resume it each time, and compare."""
    run, log, kills = directory / f"{number}-{kind}", directory / "log.txt", list[Kill]()
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        if rng.random() < 0.5:
            where, after = "moment", float(rng.uniform(0, whole.seconds))
            injector = Injector()
        else:
            where, after = str(rng.choice(OPERATIONS)), None
            injector = Injector(where, int(rng.integers(1, max(2, whole.counts[where] // (1 + len(kills))))))

        def attempt(injector: Injector = injector) -> None:
            injector.install()
            start_or_resume(kind, run)

        status = in_a_fork(attempt, log, after)
        if status == 1:
            kills.append(Kill(number, kind, where, after or injector.number, rows_of(run),
                              "error: " + log.read_text().strip().splitlines()[-1]))  # fmt: skip
            return kills
        if status == -signal.SIGKILL:
            kills.append(Kill(number, kind, where, after or injector.number, rows_of(run)))
        if status == 0:
            break  # done before the kill came
    if not kills:
        return kills
    failed = in_a_fork(lambda: start_or_resume(kind, run), log)
    outcome = "error: " + log.read_text().strip().splitlines()[-1] if failed else ""
    try:
        outcome = outcome or ", ".join(differences(run, whole.path)) or "same"
    except Exception as error:
        outcome = f"error: {error!r}"
    left = [p.name for p in run.iterdir() if p.name.startswith(".")]
    outcome += f" ({len(left)} temporary files left)" if left else ""
    for kill in kills:
        kill.outcome = outcome
    return kills


def campaign(kills: int, seed: int, directory: Path, kinds: Sequence[str] = tuple(KINDS)) -> list[Kill]:
    """At least this many kills, over the kinds in turn."""
    wholes = {kind: reference(kind, directory) for kind in kinds}
    out, number = list[Kill](), 0
    while len(out) < kills:
        kind = kinds[number % len(kinds)]
        out += trial(number, kind, wholes[kind], directory, np.random.default_rng([seed, number]))
        number += 1
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        kills = campaign(options.kills, options.seed, Path(directory))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "kill_campaign.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(kills[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(kill), "point": round(kill.point, 3)} for kill in kills)
    bad = [kill for kill in kills if kill.outcome != "same"]
    for kind in KINDS:
        own = [kill for kill in kills if kill.kind == kind]
        print(f"{kind:10} {len(own):4} kills, {sum(kill.outcome == 'same' for kill in own):4} the same")
    print(f"{len(kills)} kills in {time.monotonic() - begin:.0f} s, {len(bad)} not the same", *bad, sep="\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
