"""The command line: `metarl train`, `evaluate`, `adapt`, `list`."""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import rich
import rich.table
import tyro

from metarl.tasks import did_you_mean

OVERVIEW = """metarl: policies that learn to adapt

  metarl train ALGORITHM FAMILY [options]   meta-train; writes a run directory
  metarl train --resume RUN                 go on with an interrupted run
  metarl evaluate RUN [options]             adaptation curve on test tasks: table, CSV, JSON, PNG
  metarl adapt RUN --task NAME=VALUE        adapt to one environment and save the policy
  metarl list                               algorithms and task families

Each takes --help; `metarl train ALGORITHM --help` lists the algorithm's settings."""


class UsageError(ValueError):
    """A command line that makes no sense."""


# ---------------------------------------------------------------------------------------------------------------------
# train


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Meta-train on a task family."""

    family: tyro.conf.Positional[str]
    """Task family, as `metarl list` shows it."""
    iterations: int = 100
    """Meta-iterations in total."""
    seed: int = 0
    """Together with the settings this determines every number of the run."""
    out: Path | None = None
    """Run directory, new or empty; by default runs/FAMILY-ALGORITHM-seedSEED."""
    device: str = "auto"
    """auto (the GPU where there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads; by default as many as there are cores."""
    family_kwargs: tuple[str, ...] = ()
    """Arguments of the family, like arms=10 horizon=1."""
    eval_every: int = 10
    """Evaluate on test tasks after so many iterations; 0 never does."""
    eval_tasks: int = 20
    """Test tasks of these evaluations."""
    eval_steps: int | None = None
    """Inner steps of these evaluations; by default as many as in training."""
    checkpoint_every: int = 10
    """Write the latest state after so many iterations (and whenever training ends or breaks off)."""
    progress: bool = True
    """Show progress."""


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Go on with an interrupted run, bit for bit as if it had never stopped."""

    resume: Path
    """Run directory."""
    iterations: int | None = None
    """New total of meta-iterations; by default what the run was started with."""
    device: str = "auto"
    """auto (the GPU where there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads; by default as many as there are cores."""
    progress: bool = True
    """Show progress."""


def train_command(argv: Sequence[str]) -> int:
    from metarl import algorithms

    if any(word == "--resume" or word.startswith("--resume=") for word in argv):
        return _resume(tyro.cli(ResumeOptions, prog="metarl train", args=argv))
    if not argv or argv[0] in ("-h", "--help"):
        rich.print("usage: metarl train ALGORITHM FAMILY [options]\n       metarl train --resume RUN [options]\n\n"
                   f"algorithms: {', '.join(algorithms.ALGORITHMS)}\n"
                   "`metarl train ALGORITHM --help` lists the settings.")  # fmt: skip
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    config_type = algorithms.get(name).Config
    combined: Any = dataclasses.make_dataclass(
        "Train",
        [("options", Annotated[TrainOptions, tyro.conf.arg(name="")]),
         ("config", Annotated[config_type, tyro.conf.arg(name="")])],
    )  # fmt: skip
    combined.__doc__ = f"Meta-train {name} on a task family.\n\n{algorithms.get(name).__doc__}"
    _reject_unknown(rest, [f.name for t in (TrainOptions, config_type) for f in dataclasses.fields(t)])
    try:
        parsed = tyro.cli(combined, prog=f"metarl train {name}", args=rest)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return _train(name, parsed.options, parsed.config)


def _reject_unknown(argv: Sequence[str], names: Sequence[str]) -> None:
    """The nearest known option for an unknown one; tyro's own message leaves it out where words follow."""
    known = {"help", "h", *(n.replace("_", "-") for n in names), *("no-" + n.replace("_", "-") for n in names)}
    for word in argv:
        option = word.lstrip("-").partition("=")[0].replace("_", "-")
        if word.startswith("--") and option not in known:
            raise UsageError(f"there is no option --{option}{did_you_mean(option, sorted(known - {'h'}))}")


def _train(name: str, options: TrainOptions, config: Any) -> int:
    from metarl.learner import MetaLearner
    from metarl.tasks import make

    _set_threads(options.threads)
    family = make(options.family, **_parse_kwargs(options.family_kwargs))
    out = options.out or Path("runs") / f"{options.family}-{name}-seed{options.seed}"
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    learner = MetaLearner(name, family, seed=options.seed, device=options.device, **settings)
    if options.iterations < 1:
        raise UsageError(f"--iterations must be at least 1, got {options.iterations}")
    schedule = {k: getattr(options, k) for k in ("eval_every", "eval_tasks", "eval_steps", "checkpoint_every")}
    return _learn(learner, options.iterations, out, options.progress, schedule)


def _resume(options: ResumeOptions) -> int:
    from metarl.checkpoint import read_json
    from metarl.learner import MetaLearner
    from metarl.train import CONFIG

    _set_threads(options.threads)
    settings = read_json(options.resume / CONFIG)
    learner = MetaLearner.load(options.resume, device=options.device)
    total = settings["iterations"] if options.iterations is None else options.iterations
    remaining = total - learner.state.iteration
    if remaining <= 0:
        rich.print(f"{options.resume} has done its {learner.state.iteration} iterations; --iterations sets a new total")
        return 0
    return _learn(learner, remaining, options.resume, options.progress, settings["schedule"])


def _learn(learner: Any, iterations: int, out: Path, progress: bool, schedule: dict[str, Any]) -> int:
    family, config = learner.family, learner.config
    rich.print(f"[bold]{learner.algorithm}[/] on [bold]{family.id}[/]: {iterations} iterations of {config.n_tasks} "
               f"tasks × {config.episodes} episodes × {family.horizon} steps, on {learner.device}, in {out}")  # fmt: skip
    try:
        learner.learn(iterations, run_dir=out, progress_bar=progress, **schedule)
    except KeyboardInterrupt:
        rich.print(f"stopped after iteration {learner.state.iteration}, which is saved. Go on with:\n"
                   f"  metarl train --resume {out}")  # fmt: skip
        return 130
    rich.print(f"done: {learner.state.iteration} iterations, {learner.state.env_steps:,} environment steps. Next:\n"
               f"  metarl evaluate {out}")  # fmt: skip
    return 0


def _parse_kwargs(words: Sequence[str]) -> dict[str, Any]:
    import ast

    out = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"arguments of a family are written like arms=10, got {word!r}")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


# ---------------------------------------------------------------------------------------------------------------------
# evaluate, adapt, list


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Adapt to test tasks and report the return after 0, 1, 2, ... inner steps."""

    run: tyro.conf.Positional[Path]
    """Run directory, or one checkpoint file."""
    checkpoint: str = "best"
    """Which state of a run: best (by its periodic evaluations) or latest."""
    tasks: int = 100
    """Test tasks."""
    episodes: int | None = None
    """Episodes per task before and after every step; by default as in training."""
    steps: int = 3
    """Inner steps."""
    step_sizes: tuple[float, ...] = ()
    """One step size for every step (then --steps is not needed); by default the training's for all."""
    seed: int | None = None
    """Of tasks and episodes; by default one that follows from the run's seed."""
    device: str = "auto"
    """auto (the GPU where there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads; by default as many as there are cores."""
    out: Path | None = None
    """Where the results go; by default evaluation/ in the run directory."""
    figures: bool = True
    """Draw the picture as well (needs matplotlib)."""


def evaluate_command(argv: Sequence[str]) -> int:
    options = tyro.cli(EvaluateOptions, prog="metarl evaluate", args=argv)
    from metarl import figures
    from metarl.train import RunDirectory

    _set_threads(options.threads)
    learner = _load(options.run, options.checkpoint, options.device)
    directory = options.run if options.run.is_dir() else options.run.parent
    out = options.out or directory / "evaluation"
    with rich.console.Console().status(f"adapting to {options.tasks} test tasks"):
        evaluation = learner.evaluate(
            options.tasks, episodes=options.episodes, steps=options.steps,
            step_sizes=options.step_sizes or None, seed=options.seed, details=True,
        )  # fmt: skip
    rich.print(evaluation.table(f"{learner.family.id}, {learner.algorithm}, iteration {learner.state.iteration}: "
                                f"{options.tasks} test tasks, {evaluation.episodes} episodes each"))  # fmt: skip
    written = evaluation.save(out)
    if options.figures:
        metrics = RunDirectory(directory).metrics()
        picture = figures.evaluation_figure(learner.family, evaluation, metrics)
        written.append(figures.save_figure(picture, out / "adaptation.png"))
    rich.print("wrote " + ", ".join(str(path) for path in written))
    return 0


@dataclasses.dataclass(frozen=True)
class AdaptOptions:
    """Adapt to one environment and save the policy."""

    run: tyro.conf.Positional[Path]
    """Run directory, or one checkpoint file."""
    task: tuple[str, ...]
    """The environment's parameters, like goal=0.3,-0.2."""
    checkpoint: str = "best"
    """Which state of a run: best (by its periodic evaluations) or latest."""
    steps: int | None = None
    """Inner steps; by default as many as in training."""
    step_sizes: tuple[float, ...] = ()
    """One step size for every step (then --steps is not needed); by default the training's for all."""
    episodes: int | None = None
    """Episodes before and after every step; by default as in training."""
    seed: int | None = None
    """Of the episodes."""
    out: Path = Path("policy")
    """File for the adapted policy; .safetensors is added."""


def adapt_command(argv: Sequence[str]) -> int:
    options = tyro.cli(AdaptOptions, prog="metarl adapt", args=argv)
    from metarl.tasks import parse_task

    learner = _load(options.run, options.checkpoint, "cpu")
    task = parse_task(learner.family, options.task)
    policy = learner.adapt(
        task, steps=options.steps, step_sizes=options.step_sizes or None, episodes=options.episodes, seed=options.seed
    )
    assert policy.returns is not None
    for step, value in enumerate(policy.returns):
        rich.print(f"return after {step} inner steps: {value:.2f}")
    rich.print(f"wrote {policy.save(options.out)}; in Python: metarl.AdaptedPolicy.load(...).predict(observation)")
    return 0


def _load(run: Path, checkpoint: str, device: str) -> Any:
    from metarl.learner import MetaLearner
    from metarl.train import BEST, LATEST

    if not run.is_dir():
        return MetaLearner.load(run, device=device)
    files = {"best": BEST, "latest": LATEST}
    if checkpoint not in files:
        raise UsageError(f"--checkpoint must be one of {list(files)}, got {checkpoint!r}")
    path = run / files[checkpoint]
    return MetaLearner.load(path if path.exists() else run / LATEST, device=device)


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Show algorithms and task families."""


def list_command(argv: Sequence[str]) -> int:
    tyro.cli(ListOptions, prog="metarl list", args=argv)
    from metarl import algorithms
    from metarl.tasks import registered

    for title, rows in (
        ("algorithms", {n: (algorithms.get(n).__doc__ or "").splitlines()[0] for n in algorithms.ALGORITHMS}),
        ("task families", registered()),
    ):
        rich.print(f"[bold]{title}[/]")
        grid = rich.table.Table.grid(padding=(0, 2))
        for name, line in rows.items():
            grid.add_row("  " + name, line)
        rich.print(grid)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_command, "evaluate": evaluate_command, "adapt": adapt_command, "list": list_command,
}  # fmt: skip


def run(argv: Sequence[str]) -> int:
    """Run one command. -> the exit status. Raises ValueError for what is the user's to mend."""
    if not argv or argv[0] in ("-h", "--help"):
        rich.print(OVERVIEW, flush=True)
        return 0 if argv else 2
    if argv[0] == "--version":
        from metarl import __version__

        rich.print(f"metarl {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise UsageError(f"there is no command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}")
    return COMMANDS[argv[0]](argv[1:])


def main() -> None:
    """The `metarl` command. METARL_TRACEBACK=1 shows where an error came from."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill saves the run, as Ctrl-C does
    try:
        sys.exit(run(sys.argv[1:]))
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("METARL_TRACEBACK"):
            raise
        rich.get_console().stderr = True
        rich.get_console().print("[bold red]error:[/]", str(error), highlight=False, markup=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
