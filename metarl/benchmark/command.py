"""`metarl benchmark`: run a suite and show what it found."""

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
            raise UsageError(f"{options.suite!r} is no task family (`metarl list` shows them){known}")
        raise UsageError(f"name the contenders for {options.suite}: --contenders maml_trpo scratch oracle random")
    suite = read(options.suite) if named else of_words(
        [options.suite], options.contenders, options.seeds, options.budget
    )  # fmt: skip
    total, done = len(suite.cells()), [0]

    def report(cell: Any, outcome: str) -> None:
        done[0] += 1
        say(f"[{done[0]}] {cell.contender} on {cell.family}, seed {cell.seed}: {outcome}")

    say(f"{total} cells in {options.out}")
    failed = benchmark.run(suite, options.out, options.jobs, report)
    written = results.write(options.out)
    console = rich.console.Console()
    curves = results.curves(options.out)
    for family in curves:
        console.print(results.table(options.out, family), width=None if console.is_terminal else 160)
    if options.figures and curves:
        try:
            written.append(save_figure(figures.figure(curves), options.out / "adaptation.png"))
        except MissingExtraError as error:
            say(f"no picture: {error}")
    say("wrote " + ", ".join(str(path) for path in written))
    if failed:
        say(f"{len(failed)} of {total} cells failed; the same command tries them again")
    return 1 if failed else 0
