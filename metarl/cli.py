"""The command line: `metarl train`, `evaluate`, `adapt`, `render`, `benchmark`, `list`."""

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import rich
import rich.console
import rich.table
import rich.text
import tyro

from metarl.options import UsageError as UsageError
from metarl.options import parse
from metarl.suggestions import did_you_mean
from metarl.vector.survival import STOPPING

OVERVIEW = """metarl: policies that learn to adapt

  metarl train ALGORITHM FAMILY [options]   meta-train; writes a run directory
  metarl train --resume RUN                 go on with an interrupted run
  metarl evaluate RUN [options]             adaptation curve on test tasks: table, CSV, JSON, PNG
  metarl adapt RUN --task NAME=VALUE        adapt to one environment and save the policy
  metarl render RUN [--task NAME=VALUE]     film an episode before and after adaptation
  metarl compare RUN...                     runs side by side on the same tasks: tables, curves
  metarl benchmark SUITE --out DIR          compare ways to adapt under one protocol
  metarl list                               algorithms and task families

Each takes --help; `metarl train ALGORITHM --help` lists the algorithm's settings."""


SCHEDULE = ("eval_every", "eval_tasks", "eval_step_sizes", "checkpoint_every")
"""The arguments of `learn`, apart from the iterations, that a run stores."""


# ---------------------------------------------------------------------------------------------------------------------
# train


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Meta-train on a task family."""

    family: tyro.conf.Positional[str]
    """Task family: an id shown by `metarl list`, or file.py:NAME, a family (or a function that returns one) in a Python
    file."""
    iterations: int = 100
    """Total number of meta-iterations."""
    seed: int = 0
    """Random seed; together with the settings it determines every number of the run."""
    start_from: Path | None = None
    """Start training from the policy and learned step sizes of a run (its best state) or checkpoint."""
    trust: bool = False
    """Import whatever package or file that checkpoint names, and use whatever arguments it contains for its family."""
    out: Path | None = None
    """Run directory, new or empty; by default runs/FAMILY-ALGORITHM-seedSEED."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads; by default one per core."""
    workers: int | None = None
    """Worker processes for environments without a batched form; 0 disables them. By default they start only when they
    speed up rollouts, and at most --threads of them."""
    family_kwargs: tuple[str, ...] = ()
    """Arguments of the family, such as arms=10 horizon=1, or parameters={"g":{"box":[5,15]}} for gym:Pendulum-v1."""
    eval_every: int = 10
    """Iterations between evaluations on validation tasks, which select the best state; 0 disables them."""
    eval_tasks: int = 20
    """Number of validation tasks per evaluation (further draws from the training distribution)."""
    eval_step_sizes: tuple[float, ...] = ()
    """Step sizes of the inner steps in these evaluations, one per step; by default as in training."""
    checkpoint_every: int = 10
    """Write the latest state after this many iterations (and whenever training ends or is interrupted)."""
    progress: bool = True
    """Show progress."""


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Continue an interrupted run, bit for bit as if it had never stopped."""

    resume: Path
    """Run directory."""
    iterations: int | None = None
    """New total number of meta-iterations; by default the number that the run was started with."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads; by default one per core."""
    workers: int | None = None
    """Worker processes for environments without a batched form; 0 disables them. By default they start only when they
    speed up rollouts, and at most --threads of them."""
    progress: bool = True
    """Show progress."""
    family: str | None = None
    """Task family, needed if the run was given an object in Python or names untrusted code: ID or file.py:NAME."""
    algorithm: str | None = None
    """Algorithm, needed if the run was given a module in Python or names an untrusted file: file.py, file.py:NAME."""
    trust: bool = False
    """Import whatever package or file the checkpoint names, and use whatever arguments it contains for its family."""


def train_command(argv: Sequence[str]) -> int:
    from metarl import algorithms
    from metarl.algorithms.source import named

    if any(word == "--resume" or word.startswith("--resume=") for word in argv):
        return _resume(parse(ResumeOptions, "metarl train", argv))
    if not argv or argv[0] in ("-h", "--help"):
        _say("usage: metarl train ALGORITHM FAMILY [options]\n       metarl train --resume RUN [options]\n\n"
             f"algorithms: {', '.join((*algorithms.ALGORITHMS, *sorted(algorithms.announced())))}, or one of your own: "
             "file.py, file.py:NAME\n`metarl train ALGORITHM --help` lists the settings.")  # fmt: skip
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    algorithm = named(name)
    config_type = algorithm.Config
    combined: Any = dataclasses.make_dataclass(
        "Train",
        [("options", Annotated[TrainOptions, tyro.conf.arg(name="")]),
         ("config", Annotated[config_type, tyro.conf.arg(name="")])],
    )  # fmt: skip
    combined.__doc__ = f"Meta-train {name} on a task family.\n\n{algorithm.__doc__ or ''}"
    parsed = parse(combined, f"metarl train {name}", rest, TrainOptions, config_type)
    return _train(name, parsed.options, parsed.config)


def _say(text: str, bold: str = "", error: bool = False) -> None:
    """Print `bold` and `text` without interpreting markup or breaking lines, so that paths can be copied."""
    console = rich.console.Console(stderr=error, soft_wrap=True, highlight=False)
    console.print(rich.text.Text.assemble((bold, "bold red" if error else "bold"), text))


def _train(name: str, options: TrainOptions, config: Any) -> int:
    from metarl.families.registry import make
    from metarl.learner import MetaLearner

    if options.iterations < 1:
        raise UsageError(f"--iterations must be at least 1, got {options.iterations}")
    _set_threads(options.threads)
    family = make(options.family, **_parse_kwargs(options.family_kwargs))
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    learner = MetaLearner(name, family, seed=options.seed, device=options.device, workers=options.workers, **settings)
    out = options.out or Path("runs") / f"{_file_name(options.family)}-{learner.algorithm}-seed{options.seed}"
    if options.start_from is not None:
        with _notes():
            learner.start_from(options.start_from, trust=options.trust)
    schedule = {k: getattr(options, k) for k in SCHEDULE}
    return _learn(learner, options.iterations, out, options.progress, schedule)


def _file_name(family: str) -> str:
    """The family's part of a run directory's name, without folders or characters that file names cannot contain."""
    from metarl.families.files import reference_in

    if (reference := reference_in(family)) is not None:
        file, _, name = reference.rpartition(":")
        family = f"{family.removesuffix(reference)}{Path(file).stem}-{name}"
    return family.replace(":", "-").replace("/", "-")


def _resume(options: ResumeOptions) -> int:
    from metarl.learner import MetaLearner
    from metarl.training.directory import RunDirectory, check_same_family

    _set_threads(options.threads)
    RunDirectory(options.resume).check_idle()
    total, schedule = _planned(options)
    with _notes(), _once_it_is_sound():
        learner = MetaLearner.load(options.resume, options.family, device=options.device, workers=options.workers,
                                   algorithm=options.algorithm, trust=options.trust)  # fmt: skip
        check_same_family(options.resume, learner._family_in_file, learner.describe()["family"])
    remaining = total - learner.state.iteration
    if remaining <= 0:
        _say(f"{options.resume} has done its {learner.state.iteration} iterations; --iterations sets a new total")
        return 0
    return _learn(learner, remaining, options.resume, options.progress, schedule)


def _planned(options: ResumeOptions) -> tuple[int, dict[str, Any]]:
    """A run's total number of iterations and its schedule; without a valid config.json, --iterations gives the
    total."""
    from metarl.checkpoint import CheckpointError
    from metarl.training.directory import LATEST, read_config

    try:
        settings = read_config(options.resume)
        schedule = settings["schedule"]
        if unknown := schedule.keys() - set(SCHEDULE):
            raise CheckpointError(f"{options.resume}/config.json has the schedule {sorted(unknown)}, which this "
                                  f"version does not know: upgrade metarl, or take it out")  # fmt: skip
        return settings["iterations"] if options.iterations is None else options.iterations, schedule
    except CheckpointError as error:
        if not (options.resume / LATEST).exists() or "upgrade metarl" in str(error):
            raise
        if options.iterations is None:
            raise type(error)(f"{error}. The checkpoint beside it has all settings but the number of iterations: "
                                  f"go on with metarl train --resume {shlex.quote(str(options.resume))} --iterations "
                                  "TOTAL, which writes it anew") from None  # fmt: skip
        return options.iterations, {}


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Print warnings intended for users as notes, without the source line that Python would show."""

    def say(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
        if issubclass(category, UserWarning):
            _say(f" {message}", bold="note:", error=True)
        else:
            shown(message, category, *where, **rest)

    with warnings.catch_warnings():
        shown = warnings.showwarning
        warnings.showwarning = say
        yield


@contextlib.contextmanager
def _once_it_is_sound() -> Iterator[None]:
    """Defer warnings until the block has ended without an error, which would contradict them."""
    with warnings.catch_warnings(record=True) as held:
        yield
    for one in held:
        warnings.showwarning(one.message, one.category, one.filename, one.lineno)


def _learn(learner: Any, iterations: int, out: Path, progress: bool, schedule: dict[str, Any]) -> int:
    from metarl.training.directory import LATEST, RunDirectoryError
    from metarl.training.lock import DirectoryInUseError

    family, config = learner.family, learner.config
    episodes = f"{config.episodes} episodes"
    if config.unit == "episode":
        episodes = f"{config.episodes} trials of {config.inner_steps + 1} episodes"
    _say(f": {iterations} iterations of {config.n_tasks} tasks, {episodes}, {family.horizon} steps, "
         f"on {learner.device}, in {out}", bold=f"{learner.algorithm} on {family.id}")  # fmt: skip
    try:
        with _notes():
            learner.learn(iterations, run_dir=out, progress_bar=progress, **schedule)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # a closed terminal takes no words
            _say(f"stopped after iteration {learner.state.iteration}, which is saved. Go on with:\n"
                 f"  metarl train --resume {shlex.quote(str(out))}")  # fmt: skip
        return STOPPED
    except OSError as error:
        if not isinstance(error, RunDirectoryError | DirectoryInUseError) and (out / LATEST).exists():
            way = f" the last checkpoint is intact. Go on with metarl train --resume {shlex.quote(str(out))}"
            _say(way, bold="note:", error=True)
        raise
    finally:
        learner.close()
    _say(f"done: {learner.state.iteration} iterations, {learner.state.env_steps:,} environment steps. Next:\n"
         f"  metarl evaluate {shlex.quote(str(out))}")  # fmt: skip
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
    """The state of the run to use: best (by its periodic evaluations) or latest."""
    split: tuple[str, ...] = ("test",)
    """Splits to draw tasks from: test, or other splits of the family such as ood; several are shown side by side."""
    tasks: int = 100
    """Number of tasks per split."""
    episodes: int | None = None
    """Episodes per task before and after every step (for RL2: trials); by default as in training."""
    steps: int | None = None
    """Inner steps, by default 3; for RL2 the episodes of a trial after the first, by default as in training."""
    step_sizes: tuple[float, ...] = ()
    """One step size per step (--steps is then not needed). By default those used in training; the sizes of further
    steps are chosen on validation tasks."""
    seed: int | None = None
    """Seed of tasks and episodes; by default derived from the run's seed."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads; by default one per core."""
    workers: int | None = None
    """Worker processes for environments without a batched form; 0 disables them. By default they start only when they
    speed up rollouts, and at most --threads of them."""
    out: Path | None = None
    """Directory for the results; by default evaluation/ in the run directory."""
    figures: bool = True
    """Also draw the figure (needs matplotlib)."""
    family: str | None = None
    """Task family, needed if the run was given an object in Python or names untrusted code: ID or file.py:NAME."""
    algorithm: str | None = None
    """Algorithm, needed if the run was given a module in Python or names an untrusted file: file.py, file.py:NAME."""
    trust: bool = False
    """Import whatever package or file the checkpoint names, and use whatever arguments it contains for its family."""


def evaluate_command(argv: Sequence[str]) -> int:
    options = parse(EvaluateOptions, "metarl evaluate", argv)
    from metarl.algorithms.contract import EPISODE
    from metarl.report import figures
    from metarl.report.evaluation import Evaluation, file_name, side_by_side
    from metarl.splits import check_split
    from metarl.training.directory import RunDirectory

    _set_threads(options.threads)
    learner = _load(options, options.device, options.workers)
    directory = options.run if options.run.is_dir() else options.run.parent
    out = options.out or directory / "evaluation"
    splits = tuple(dict.fromkeys(options.split))
    for split in splits:
        check_split(learner.family, split)
    found: dict[str, Evaluation] = {}
    for split in splits:
        with rich.console.Console().status(f"adapting to {options.tasks} {split} tasks"):
            found[split] = learner.evaluate(
                options.tasks, episodes=options.episodes, steps=options.steps, split=split,
                step_sizes=options.step_sizes or None, seed=options.seed, details=True,
            )  # fmt: skip
    evaluation = found[splits[0]]
    console = rich.console.Console()
    title = (f"{learner.family.id}, {learner.algorithm}, iteration {learner.state.iteration}: {options.tasks} "
             f"{' and '.join(splits)} tasks, {evaluation.episodes} episodes each")  # fmt: skip
    table = evaluation.table(title) if len(found) == 1 else side_by_side(list(found.values()), title)
    console.print(table, width=None if console.is_terminal else 120)  # a file has no 80 columns to fit into
    for split, one in found.items():
        if one.unit == EPISODE:
            where = "" if len(found) == 1 else f"{split} tasks: "
            _say(f"{where}return of a whole trial of {one.returns.shape[1]} episodes: {one.returns.sum(1).mean():.2f}")
    written = [path for one in found.values() for path in one.save(out)]
    if options.figures:
        metrics = RunDirectory(directory).metrics()
        try:
            if len(found) == 1:
                picture = figures.evaluation_figure(learner.family, evaluation, metrics)
            else:
                picture = figures.comparison_figure(list(found.values()), metrics)
            name = file_name("adaptation", "-".join(splits), "png")
            written.append(figures.save_figure(picture, out / name))
        except figures.MissingExtraError as error:  # the numbers are there all the same
            _say(f"no picture: {error}")
    _say("wrote " + ", ".join(str(path) for path in written))
    return 0


@dataclasses.dataclass(frozen=True)
class AdaptOptions:
    """Adapt to one environment and save the policy."""

    run: tyro.conf.Positional[Path]
    """Run directory, or one checkpoint file."""
    task: tuple[str, ...]
    """The environment's parameters, such as goal=0.3,-0.2."""
    checkpoint: str = "best"
    """The state of the run to use: best (by its periodic evaluations) or latest."""
    steps: int | None = None
    """Inner steps; by default as many as in training."""
    step_sizes: tuple[float, ...] = ()
    """One step size per step (--steps is then not needed). By default those used in training; the sizes of further
    steps are chosen on validation tasks."""
    episodes: int | None = None
    """Episodes before and after every step; by default as in training."""
    seed: int | None = None
    """Seed of the episodes."""
    out: Path = Path("policy")
    """File for the adapted policy; .safetensors is added."""
    family: str | None = None
    """Task family, needed if the run was given an object in Python or names untrusted code: ID or file.py:NAME."""
    algorithm: str | None = None
    """Algorithm, needed if the run was given a module in Python or names an untrusted file: file.py, file.py:NAME."""
    trust: bool = False
    """Import whatever package or file the checkpoint names, and use whatever arguments it contains for its family."""


def adapt_command(argv: Sequence[str]) -> int:
    options = parse(AdaptOptions, "metarl adapt", argv)
    from metarl.tasks import parse_task

    learner = _load(options, "cpu")
    task = parse_task(learner.family, options.task)
    with _notes():
        policy = learner.adapt(task, steps=options.steps, step_sizes=options.step_sizes or None,
                               episodes=options.episodes, seed=options.seed)  # fmt: skip
    assert policy.returns is not None
    what = learner.config.unit
    for step, value in enumerate(policy.returns):
        rate = "" if policy.success_rates is None else f", success rate {policy.success_rates[step]:.0%}"
        _say(f"return after {step} {what}{'' if step == 1 else 's'}: {value:.2f}{rate}")
    _say(f"wrote {policy.save(options.out)}; in Python: metarl.{type(policy).__name__}.load(...).predict(observation)")
    return 0


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """Record a video of an episode before and after adaptation to one environment."""

    run: tyro.conf.Positional[Path]
    """Run directory, or one checkpoint file."""
    task: tuple[str, ...] = ()
    """The environment's parameters, such as goal=0.3,-0.2; by default a test task."""
    checkpoint: str = "best"
    """The state of the run to use: best (by its periodic evaluations) or latest."""
    steps: int | None = None
    """Inner steps; by default as many as in training."""
    step_sizes: tuple[float, ...] = ()
    """One step size per step (--steps is then not needed). By default those used in training; the sizes of further
    steps are chosen on validation tasks."""
    episodes: int | None = None
    """Episodes per adaptation step; by default as in training."""
    seed: int = 0
    """Seed of the test task and of the recorded episode."""
    stochastic: bool = False
    """Sample actions from the policy instead of using their mean."""
    out: Path | None = None
    """An .mp4 or .gif file; by default adaptation.mp4 in the run directory."""
    family: str | None = None
    """Task family, needed if the run was given an object in Python or names untrusted code: ID or file.py:NAME."""
    algorithm: str | None = None
    """Algorithm, needed if the run was given a module in Python or names an untrusted file: file.py, file.py:NAME."""
    trust: bool = False
    """Import whatever package or file the checkpoint names, and use whatever arguments it contains for its family."""


def render_command(argv: Sequence[str]) -> int:
    options = parse(RenderOptions, "metarl render", argv)
    from metarl.report.render import film
    from metarl.tasks import parse_task, task_at

    learner = _load(options, "cpu")
    directory = options.run if options.run.is_dir() else options.run.parent
    if options.task:
        task = parse_task(learner.family, options.task)
    else:
        task = task_at(learner.sampler.tasks(1, options.seed, 0, split="test"), 0)
        _say("task: " + "; ".join(f"{name}={value}" for name, value in task.items()))
    sizes = options.step_sizes or None
    before = learner.adapt(task, steps=0, episodes=options.episodes).fresh()  # one that remembers has seen an episode
    after = learner.adapt(task, steps=options.steps, step_sizes=sizes, episodes=options.episodes)
    steps = len(after.returns) - 1
    caption = f"after {steps} step{'' if steps == 1 else 's'}"
    if learner.config.unit == "episode":
        caption = f"after {steps + 1} episode{'s' if steps else ''}"
    policies = {"before": before, caption: after}
    path = film(learner.family, task, policies, options.out or directory / "adaptation.mp4",
                seed=options.seed, deterministic=not options.stochastic)  # fmt: skip
    _say(f"wrote {path}")
    return 0


def _load(options: EvaluateOptions | AdaptOptions | RenderOptions, device: str, workers: int | None = None) -> Any:
    from metarl.learner import MetaLearner
    from metarl.training.train import BEST

    path = options.run
    if path.is_dir():
        if options.checkpoint not in ("best", "latest"):
            raise UsageError(f"--checkpoint must be one of ['best', 'latest'], got {options.checkpoint!r}")
        path = path / BEST if options.checkpoint == "best" and (path / BEST).exists() else path
    with _notes():
        return MetaLearner.load(path, options.family, device=device, workers=workers, algorithm=options.algorithm,
                                trust=options.trust)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Show algorithms and task families."""


def list_command(argv: Sequence[str]) -> int:
    parse(ListOptions, "metarl list", argv)
    from metarl import algorithms
    from metarl.families.registry import further_splits, registered
    from metarl.policies import kinds
    from metarl.splits import SPLITS

    families = {}
    for name, line in registered().items():
        more = further_splits(name)
        families[name] = line + (f" Further split{'' if len(more) == 1 else 's'}: {', '.join(more)}." if more else "")
    for title, rows in (
        ("algorithms", algorithms.descriptions() | OWN_ALGORITHMS),
        (f"task families, with the splits {', '.join(SPLITS)} and those that are named", families),
        ("families of your own, and prefixes", PREFIXES),
        ("kinds of policies", kinds.descriptions()),
    ):
        rich.print(f"[bold]{title}[/]")
        grid = rich.table.Table.grid(padding=(0, 2))
        for name, line in rows.items():
            grid.add_row("  " + name, line)
        rich.print(grid)
    return 0


OWN_ALGORITHMS = {"FILE.py[:NAME]": "An algorithm in a Python file: the file itself, or an object in it."}
PREFIXES = {
    "FILE.py:NAME": "A family in a Python file, or a function or class there that makes one",
    "gym:ID": "A Gymnasium environment as a family, like gym:Pendulum-v1 --family-kwargs \"parameters={'g':[8,10]}\"",
    "visible:ID": "A family with its tasks in the observations, like visible:PointNavigation-v0",
}


def benchmark_command(argv: Sequence[str]) -> int:
    from metarl.benchmark.command import BenchmarkOptions
    from metarl.benchmark.command import run as run_benchmark

    return run_benchmark(parse(BenchmarkOptions, "metarl benchmark", argv), _say)


def compare_command(argv: Sequence[str]) -> int:
    from metarl.benchmark.command import CompareOptions, compare

    return compare(parse(CompareOptions, "metarl compare", argv), _say)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_command, "evaluate": evaluate_command, "adapt": adapt_command,
    "render": render_command, "compare": compare_command,
    "benchmark": benchmark_command, "list": list_command,
}  # fmt: skip


def _command_hint(word: str, rest: Sequence[str]) -> str:
    """The end of the error message about a command that does not exist."""
    if word in ("resume", "continue", "restart"):
        where = " ".join(shlex.quote(x) for x in rest) or "RUN"
        return f"; a run goes on with metarl train --resume {where}"
    return did_you_mean(word, COMMANDS)


def run(argv: Sequence[str]) -> int:
    """Run one command and return the exit status. Raises ValueError for mistakes that the user has to fix."""
    if not argv or argv[0] in ("-h", "--help"):
        _say(OVERVIEW)
        return 0 if argv else 2
    if argv[0] == "--version":
        from metarl import __version__

        _say(f"metarl {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise UsageError(f"there is no command {argv[0]!r}{_command_hint(argv[0], argv[1:])}")
    with warnings.catch_warnings():
        shown = warnings.showwarning
        warnings.showwarning = lambda message, category, *rest: (
            _say(f" {message}", bold="warning:", error=True)
            if category is UserWarning
            else shown(message, category, *rest)
        )
        return COMMANDS[argv[0]](argv[1:])


def main() -> None:
    """The `metarl` command. METARL_TRACEBACK=1 shows the traceback of an error."""
    stop_on_signals()
    try:
        status = run(sys.argv[1:])
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("METARL_TRACEBACK"):
            raise
        with contextlib.suppress(OSError):  # a closed terminal takes no words
            _say(" " + " ".join(str(error).split()), bold="error:", error=True)
        status = 2
    except KeyboardInterrupt:
        status = STOPPED
    sys.exit(status)


STOPPED = 130
"""The exit status after SIGINT, SIGTERM or SIGHUP."""
_ONE_REQUEST = 1.0
"""Seconds within which signals count as a single request: wrappers forward signals that the terminal has already sent,
and service managers send SIGHUP right after SIGTERM."""


def stop_on_signals() -> None:
    """Make the first SIGINT, SIGTERM or SIGHUP raise KeyboardInterrupt, which saves a run, and a second one end the
    process at once with status 130. Signals that are already ignored, such as SIGHUP under nohup, stay ignored."""
    first: list[float] = []

    def stop(number: int, frame: Any) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - first[0] > _ONE_REQUEST:
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopped at once: the latest checkpoint is as it was last written\n")
            os._exit(STOPPED)  # files are replaced whole, and workers notice that this process is gone

    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


if __name__ == "__main__":
    main()
