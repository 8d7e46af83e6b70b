"""`metarl benchmark` and `metarl compare`: run them and show what was found."""

import dataclasses
from pathlib import Path
from typing import Any

import rich.console
import tyro

from metarl.options import UsageError


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Compare contenders under one protocol: train each within a budget, adapt it to the same frozen tasks."""

    suite: tyro.conf.Positional[str]
    """A suite file (TOML), the name of a suite that comes with metarl (minutes), or the id of one task family."""
    out: Path = Path("runs/benchmark")
    """Directory of the results. Cells that it has results of are skipped, cells that broke off go on."""
    contenders: tuple[str, ...] = ()
    """With a family: the contenders to compare, by name."""
    seeds: int = 3
    """With a family: how many training seeds."""
    budget: int = 1_000_000
    """With a family: environment steps for training."""
    jobs: int = 1
    """Cells to run at once, each in a process with one thread."""
    figures: bool = True
    """Draw the adaptation curves as well (needs matplotlib)."""


def run(options: BenchmarkOptions, say: Any) -> int:
    """Run the command. -> the exit status: 1 if a cell failed."""
    from metarl.benchmark import figures, results
    from metarl.benchmark import run as benchmark
    from metarl.benchmark.suite import EXAMPLES, of_words, read
    from metarl.families.registry import registered
    from metarl.report.figures import MissingExtraError, save_figure

    if options.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {options.jobs}")
    named = options.suite.endswith(".toml") or (EXAMPLES / f"{options.suite}.toml").exists()
    if named and options.contenders:
        raise UsageError("--contenders is for one family; a suite file names its own")
    if not named and not options.contenders:
        known = f", or a suite: {', '.join(p.stem for p in sorted(EXAMPLES.glob('*.toml')))}"
        if options.suite not in registered():
            raise UsageError(f"{options.suite!r} is not a task family (`metarl list` shows them){known}")
        raise UsageError(f"name the contenders for {options.suite}: --contenders maml_trpo scratch oracle random")
    suite = read(options.suite) if named else of_words(
        [options.suite], options.contenders, options.seeds, options.budget
    )  # fmt: skip
    total, done = len(suite.cells()), [0]

    def report(cell: Any, outcome: str) -> None:
        done[0] += 1
        say(f"[{done[0]}] {cell.contender} on {cell.family}, seed {cell.seed}: {outcome}")

    say(f"{total} cell{'s' if total > 1 else ''} in {options.out}")
    try:
        failed = benchmark.run(suite, options.out, options.jobs, report)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        raise
    written = results.write(options.out)
    console = _console()
    curves = results.curves(options.out)
    for family in curves:
        console.print(results.table(options.out, family))
    if options.figures and curves:
        try:
            written.append(save_figure(figures.figure(curves), options.out / "adaptation.png"))
        except MissingExtraError as error:
            say(f"no picture: {error}")
    say("wrote " + ", ".join(str(path) for path in written))
    if failed:
        say(f"{len(failed)} of {total} cells failed; the same command tries them again")
    return 1 if failed else 0


def _console() -> rich.console.Console:
    """The terminal; or a file, which has no 80 columns to fit into."""
    console = rich.console.Console()
    return console if console.is_terminal else rich.console.Console(width=160)


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Evaluate runs on the same test tasks and put them side by side, grouped by algorithm, family and settings."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or directories of them. Runs that differ only in their seed form one group."""
    tasks: int = 40
    """Test tasks."""
    episodes: int = 20
    """Episodes per task before and after every step."""
    steps: int | None = None
    """Inner steps; by default 3. For RL2: further episodes in the trial, by default as in training."""
    checkpoint: str = "best"
    """Which state of each run: best (by its periodic evaluations) or latest."""
    seed: int = 12345
    """Seed of the tasks and episodes, the same for all runs."""
    out: Path = Path("runs/comparison")
    """Directory of the tables (CSV, Markdown, LaTeX) and figures (PNG, PDF, SVG)."""
    figures: bool = True
    """Draw learning and adaptation curves as well (needs matplotlib)."""


def compare(options: CompareOptions, say: Any) -> int:
    """Run the command. -> the exit status."""
    from metarl.benchmark import figures
    from metarl.benchmark.compare import Compared, found_runs, grouped, table, write
    from metarl.learner import MetaLearner
    from metarl.report.figures import MissingExtraError, save_figure
    from metarl.training.directory import BEST, LATEST

    names = {"best": BEST, "latest": LATEST}
    if options.checkpoint not in names:
        raise UsageError(f"--checkpoint must be best or latest, got {options.checkpoint!r}")
    compared = []
    for group in grouped(found_runs(options.runs)):
        evaluations = []
        for run in group.runs:
            path = run.path / names[options.checkpoint]
            learner = MetaLearner.load(path if path.exists() else run.path / LATEST, device="auto")
            with rich.console.Console().status(f"adapting {run.path}"):
                evaluations.append(learner.evaluate(
                    options.tasks, episodes=options.episodes, steps=options.steps, seed=options.seed
                ))  # fmt: skip
            learner.close()
        compared.append(Compared(group, tuple(evaluations)))
    console = _console()
    title = f"{options.tasks} test tasks, {options.episodes} episodes each: mean return [95% over seeds and tasks]"
    console.print(table(compared, title))
    written = write(compared, options.out)
    if options.figures:
        try:
            picture = figures.comparison(compared)
            written += [save_figure(picture, options.out / f"comparison.{end}") for end in ("png", "pdf", "svg")]
        except MissingExtraError as error:
            say(f"no picture: {error}")
    say("wrote " + ", ".join(str(path) for path in written))
    return 0
