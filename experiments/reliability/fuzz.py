"""Feed the command line, the loaders and the Python API with what they should refuse, and see whether they do.

A call is in order if it works or raises ValueError, TypeError, OSError or ImportError (which the command line turns
into one line and status 2), or if the command line's parser exits with 0 or 2. Anything else is a finding: another
exception, a hang (over thirty seconds) or more than four gigabytes.

    python experiments/reliability/fuzz.py --calls 5000 --seed 0 --out experiments/reliability
"""

import argparse
import contextlib
import csv
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch

import metarl
from metarl import AdaptedPolicy, MetaLearner, cli
from metarl import checkpoint as checkpoints
from metarl.adapted.recurrent_policy import RecurrentPolicy
from metarl.supervised import FewShotLearner, Sinusoid

IN_ORDER = (ValueError, TypeError, OSError, ImportError)
SECONDS = 30
TINY: dict[str, Any] = {"n_tasks": 2, "episodes": 2, "hidden": (3,)}


class Hang(BaseException):
    """A call took too long."""


class Finding(NamedTuple):
    """A call that was not in order."""

    face: str
    call: str
    what: str


def outcome(function: Callable[[], object]) -> str | None:
    """What was not in order about a call; None: nothing."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            function()
    except IN_ORDER as error:
        return "an error without a word" if not str(error).strip() else None
    except SystemExit as error:
        return None if error.code in (0, 2) else f"SystemExit({error.code!r})"
    except Hang:
        return f"took over {SECONDS} seconds"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:100]} in {Path(place.filename).name}:{place.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Command line

WORDS = [
    "", " ", "-1", "0", "1", "2", "1.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "abc", "None", "True", "[]",
    "()", "{}", "[1,", "a=b", "goal=", "goal=0.1", "goal=0.1,0.2", "goal=nan,0", "=", "==", "--", "-", "--help", "é",
    "\u0000", "../x", "/dev/null", "best", "latest", "auto", "cuda", "cpu", "cuda:99", "maml_trpo",
    "PointNavigation-v0", "gym:",
    "gym:Nothing-v0", "visible:", "visible:PointNavigation-v0", "horizon=3", "horizon=-1", "horizon=None", "id=3",
    "parameters={}", "9" * 25, "0x10", "1_0", "1,2",
]  # fmt: skip
OPTIONS = {
    "train": ["--seed", "--start-from", "--device", "--threads", "--workers", "--family-kwargs", "--eval-every",
              "--eval-tasks", "--eval-step-sizes", "--checkpoint-every", "--inner-lr", "--inner-steps", "--gamma",
              "--hidden", "--min-std", "--inner-optimizer", "--adapts", "--normalize-obs", "--no-normalize-obs",
              "--learned-lr", "--activation", "--network", "--nonsense", "--resume"],
    "evaluate": ["--checkpoint", "--tasks", "--episodes", "--steps", "--step-sizes", "--seed", "--device", "--threads",
                 "--workers", "--out"],
    "adapt": ["--task", "--checkpoint", "--steps", "--step-sizes", "--episodes", "--seed"],
    "list": ["--x"],
}  # fmt: skip
SMALL_RUN = ["--iterations", "1", "--n-tasks", "2", "--episodes", "2", "--no-progress"]


def command(rng: np.random.Generator, run: str, out: str) -> list[str]:
    """A command line of which one to three words are wrong or odd."""
    name = str(rng.choice(["train", "train", "evaluate", "adapt", "list", "trian"]))
    base = {"train": [str(rng.choice(["maml_trpo", "reptile", "rl2", "nothing"])), "PointNavigation-v0",
                      "--family-kwargs", "horizon=3"],
            "evaluate": [run, "--tasks", "2", "--steps", "1", "--no-figures", "--out", out],
            "adapt": [run, "--task", "goal=0.1,0.2", "--out", out + "/p"]}.get(name, [])  # fmt: skip
    if name == "train":
        base += [*(SMALL_RUN if base[0] != "rl2" else SMALL_RUN[:4] + SMALL_RUN[6:]), "--out", out]
    words = [str(rng.choice(WORDS)) for _ in range(rng.integers(0, 3))]
    for _ in range(rng.integers(1, 3)):
        if rng.random() < 0.7 and name in OPTIONS:
            base += [str(rng.choice(OPTIONS[name])), *words]
        elif base:
            base[int(rng.integers(len(base)))] = str(rng.choice(WORDS))
    huge = {"--tasks", "--eval-tasks", "--episodes", "--n-tasks", "--iterations", "--steps", "--inner-steps"}
    for i, word in enumerate(base[:-1]):
        if word in huge and base[i + 1] in ("9" * 25, "0x10"):
            base[i + 1] = "abc"  # what is asked for is done, however long it takes
    return [name, *base]


# ---------------------------------------------------------------------------------------------------------------------
# Loaders

VALUES: list[Any] = [None, True, 0, -1, 1e308, 3, "x", "", [], {}, [1, 2], {"a": 1}, [[]], "maml_trpo", "rl2", "9" * 30]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def changed(value: Any, rng: np.random.Generator) -> Any:
    """A JSON value of which one place is other, gone or additional."""
    value = json.loads(json.dumps(value))
    all_places = list(places(value))[1:]
    if not all_places:
        return VALUES[int(rng.integers(len(VALUES)))]
    *path, last = all_places[int(rng.integers(len(all_places)))]
    at = value
    for key in path:
        at = at[key]
    how = rng.random()
    if how < 0.6:
        at[last] = VALUES[int(rng.integers(len(VALUES)))]
    elif how < 0.8 or not isinstance(at, dict):
        del at[last]
    else:
        at[f"{last}_"] = at.pop(last)
    return value


def spoil(path: Path, rng: np.random.Generator) -> str:
    """Damage a file in one of many ways. -> which."""
    data, how = bytearray(path.read_bytes()), rng.random()
    if how < 0.45 and path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        meta = json.loads(header["metarl"].partition(" ")[2])
        if rng.random() < 0.7:
            meta = changed(meta, rng)
        else:
            name = str(rng.choice(sorted(tensors)))
            other = [tensors[name].double(), tensors[name] * float("nan"), tensors[name][None], tensors[name].int()]
            tensors[name] = other[int(rng.integers(len(other)))]
        text = json.dumps({"format": 1, **meta} if isinstance(meta, dict) else meta, sort_keys=True)
        digest = checkpoints._digest(tensors, text)  # whoever writes such a file on purpose gets it right
        path.write_bytes(safetensors.torch.save(tensors, {"metarl": f"{digest} {text}"}))
        return "rewritten"
    if how < 0.45 and path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(data), rng)))
        return "rewritten"
    if how < 0.6:
        path.write_bytes(data[: int(rng.integers(len(data)))])
        return "truncated"
    if how < 0.8:
        for _ in range(rng.integers(1, 4)):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        return "bits"
    if how < 0.9:
        start = int(rng.integers(len(data)))
        path.write_bytes(data[:start] + data[start + int(rng.integers(1, 20)) :])
        return "cut"
    path.write_bytes(bytes(rng.integers(0, 256, int(rng.integers(0, 64)), dtype=np.uint8)))
    return "noise"


class Files(NamedTuple):
    """Whole files to spoil copies of."""

    run: Path
    few_shot: Path
    recurrent: Path


def make_files(directory: Path) -> Files:
    """A run of each kind, with an adapted policy beside it."""
    family, run, few, rec = (
        metarl.make("PointNavigation-v0", horizon=3),
        *(directory / n for n in ("run", "few", "rec")),
    )
    one = MetaLearner("maml_trpo", family, device="cpu", normalize_obs=True, **TINY)
    one.learn(2, run_dir=run, eval_every=1, eval_tasks=2)
    one.adapt({"goal": [0.1, 0.2]}).save(run / "policy")
    FewShotLearner(Sinusoid(), device="cpu", n_tasks=2, hidden=(3,)).learn(2, run_dir=few)
    two = MetaLearner("rl2", family, device="cpu", n_tasks=2, hidden=3, minibatches=1)
    two.learn(1, run_dir=rec, eval_every=0)
    two.adapt({"goal": [0.1, 0.2]}).save(rec / "policy")
    return Files(run, few, rec)


def load(files: Files, directory: Path, rng: np.random.Generator) -> tuple[str, Callable[[], object]]:
    """Spoil one file of a copy of a run, and a way to read it."""
    source = files[int(rng.integers(3))]
    run = directory / "copy"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run)
    names = sorted(p.name for p in run.iterdir() if p.suffix in (".json", ".csv", ".safetensors"))
    name = str(rng.choice(names))
    how = spoil(run / name, rng)

    def read() -> None:
        if source == files.few_shot:
            FewShotLearner.load(run, Sinusoid(), device="cpu").learn(1, run_dir=run)
            return
        if name.startswith("policy"):
            kind: Any = AdaptedPolicy if source == files.run else RecurrentPolicy
            kind.load(run / "policy").predict(np.zeros(2, np.float32))
            return
        if name.startswith("best"):
            MetaLearner.load(run / name, device="cpu").evaluate(2, episodes=1, steps=1)
            return
        options = ["--iterations", "3", "--no-progress", "--threads", "1", "--device", "cpu"]
        cli.run(["train", "--resume", str(run), *options])

    return f"{source.name}/{name} {how}", read


# ---------------------------------------------------------------------------------------------------------------------
# Python

ODD: list[Any] = [
    None, True, -1, 0, 1, 2, 1.5, float("nan"), float("inf"), -1e300, 1e-300, "", "x", "1", b"1", (), [], {}, [1, 2],
    (0.1,), {"goal": [0.1, 0.2]}, {"goal": "x"}, {"goal": [0.1]}, {"goal": [np.nan, 0]}, {"x": 1}, np.float32(0.5),
    np.array([]), np.array(3), np.zeros((2, 2)), torch.tensor(1.0), object(), print, 2**70, complex(1, 2), [None],
    [[1]], {1: 2}, np.array(["a"]), slice(1), range(3),
]  # fmt: skip
CALLS: dict[str, list[str]] = {
    "new": ["seed", "device", "policy", "workers", "hidden", "gamma", "inner_lr", "inner_steps", "adapts", "min_std",
            "init_std", "normalize_obs", "context", "activation", "learned_lr", "inner_optimizer",
            "algorithm", "family"],
    "learn": ["iterations", "callback", "progress_bar", "eval_every", "eval_tasks", "eval_step_sizes",
              "checkpoint_every"],
    "evaluate": ["n_tasks", "episodes", "steps", "step_sizes", "tasks", "seed", "details"],
    "adapt": ["task", "steps", "episodes", "step_sizes", "horizon", "seed"],
    "predict": ["observation", "state", "episode_start", "deterministic"],
}  # fmt: skip
HUGE = {"n_tasks", "episodes", "steps", "iterations", "eval_tasks", "horizon", "hidden", "inner_steps", "context"}


def python_call(
    rng: np.random.Generator, learner: MetaLearner, policy: AdaptedPolicy
) -> tuple[str, Callable[[], object]]:
    """A call with one to three odd arguments."""
    name = str(rng.choice(list(CALLS)))
    chosen = rng.choice(CALLS[name], min(len(CALLS[name]), int(rng.integers(1, 4))), replace=False)
    odd = {str(key): ODD[int(rng.integers(len(ODD)))] for key in chosen}
    odd = {key: 3 if key in HUGE and type(value) is int and value > 100 else value for key, value in odd.items()}

    def call() -> None:
        if name == "new":
            named = {"algorithm": "maml_trpo", "family": learner.family, "device": "cpu", **TINY} | odd
            MetaLearner(named.pop("algorithm"), named.pop("family"), **named).learn(1, eval_every=0)
        elif name == "learn":
            MetaLearner("maml_trpo", learner.family, device="cpu", **TINY).learn(**{"iterations": 1, **odd})
        elif name == "evaluate":
            learner.evaluate(**{"n_tasks": 2, "episodes": 1, "steps": None, **odd})
        elif name == "adapt":
            named = {"task": {"goal": [0.1, 0.2]}, "episodes": 1, **odd}
            learner.adapt(named.pop("task"), **named)
        else:
            policy.predict(**{"observation": np.zeros(2, np.float32), **odd})

    return f"{name}({', '.join(f'{k}={v!r}' for k, v in odd.items())})", call


# ---------------------------------------------------------------------------------------------------------------------
# All of them

FACES = ("command line", "loaders", "python")


def fuzz(face: str, calls: int, seed: int, directory: Path) -> list[Finding]:
    """Make this many calls of one interface. -> those that were not in order."""
    out, here = list[Finding](), os.getcwd()
    files = make_files(directory)
    learner = MetaLearner.load(files.run, device="cpu")
    policy = AdaptedPolicy.load(files.run / "policy")
    os.chdir(directory)  # default run directories lie there
    try:
        for i in range(calls):
            rng = np.random.default_rng([seed, FACES.index(face), i])
            if face == "command line":
                argv = command(rng, str(files.run), str(directory / f"out{i}"))
                text, call = " ".join(map(repr, argv)), lambda argv=argv: cli.run(argv)
            elif face == "loaders":
                text, call = load(files, directory, rng)
            else:
                text, call = python_call(rng, learner, policy)
            if (what := outcome(call)) is not None:
                out.append(Finding(face, f"{i}: {text}", what))
            torch.set_num_threads(1)
    finally:
        os.chdir(here)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=5000, help="of each of the three faces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faces", nargs="+", default=list(FACES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 30), resource.RLIM_INFINITY))
    findings, rows = list[Finding](), list[dict[str, Any]]()
    for face in options.faces:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            found = fuzz(face, options.calls, options.seed, Path(directory))
        rows.append({"face": face, "calls": options.calls, "not in order": len(found),
                     "kinds": len({x.what for x in found}), "seconds": round(time.monotonic() - begin)})  # fmt: skip
        findings += found
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "fuzz.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    seen: dict[str, Finding] = {}
    for finding in findings:
        seen.setdefault(finding.what, finding)
    print(*rows, *seen.values(), sep="\n")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
