"""Put small bugs into a module, one at a time, and see whether the tests notice. See README.md beside this file."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from mutants import Mutant, mutants, sample  # noqa: E402
from targets import tests_of  # noqa: E402

NEEDED = ("metarl", "envs", "tests", "docs", "experiments", "README.md", "pyproject.toml", "constraints.txt",
          "Makefile", "LICENSE")  # fmt: skip
NOT_NEEDED = shutil.ignore_patterns("__pycache__", ".*", "runs", "*.safetensors")


def copy_tree(root: Path, to: Path) -> None:
    """What the tests need of the repository."""
    for name in NEEDED:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=NOT_NEEDED)
        elif (root / name).exists():
            shutil.copy2(root / name, to / name)


def run_tests(tree: Path, files: Sequence[str], timeout: float) -> tuple[str, str]:
    """-> "passed", "failed" or "timeout", and the last line that pytest said. Stops at the first failure."""
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'envs'}", "OMP_NUM_THREADS": "1",
                   "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files]
    process = subprocess.Popen(
        argv, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "timeout", ""
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    last = failed[0] if failed else output.strip().rpartition("\n")[2]
    return ("passed" if process.returncode == 0 else "failed"), last


def survivors(tree: Path, module: str, chosen: Sequence[Mutant], files: Sequence[str], timeout: float) -> list[Mutant]:
    """The mutants of a module that no test notices."""
    path, out = tree / module, list[Mutant]()
    source = path.read_text()
    for number, mutant in enumerate(chosen, 1):
        path.write_text(mutant.apply(source))
        try:
            outcome, last = run_tests(tree, files, timeout)
        finally:
            path.write_text(source)
        say(f"[{number}/{len(chosen)}] {'SURVIVED' if outcome == 'passed' else outcome} "
            f"{module}:{mutant.describe(source)}  {last if outcome == 'failed' else ''}")  # fmt: skip
        if outcome == "passed":
            out.append(mutant)
    return out


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="+", help="like metarl/outer/objective.py")
    parser.add_argument("--sample", type=int, help="mutants of each module; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--lines", help="mutants in these lines only, like 40-80")
    parser.add_argument("--kinds", nargs="+", help="mutants of these kinds only, like operator 'argument left out'")
    parser.add_argument("--tests", nargs="+", help="test files; by default those of targets.py")
    parser.add_argument("--list", action="store_true", help="show the mutants and run nothing")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    options = parser.parse_args(argv)
    result, total, missed = {}, 0, 0
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        tree = Path(directory)
        copy_tree(options.root, tree)
        for module in options.modules:
            source = (tree / module).read_text()
            found = mutants(source)
            if options.lines:
                first, _, last = options.lines.partition("-")
                found = [mutant for mutant in found if int(first) <= mutant.line <= int(last or first)]
            if options.kinds:
                found = [mutant for mutant in found if mutant.kind in options.kinds]
            chosen = sample(found, options.sample, options.seed)
            files = options.tests or tests_of(module, tree)
            say(f"{module}: {len(chosen)} of {len(found)} mutants; {' '.join(files)}")
            if options.list:
                for mutant in chosen:
                    say(mutant.describe(source))
                continue
            start = time.monotonic()
            outcome, last = run_tests(tree, files, 3600)
            if outcome != "passed":
                say(f"the tests fail without any mutant: {last}")
                return 2
            lost = survivors(tree, module, chosen, files, 60 + 3 * (time.monotonic() - start))
            result[module] = {"mutants": len(chosen), "survivors": [mutant.describe(source) for mutant in lost]}
            total, missed = total + len(chosen), missed + len(lost)
            say(f"{module}: {len(chosen) - len(lost)} of {len(chosen)} noticed")
            if options.out:
                options.out.write_text(json.dumps(result, indent=1) + "\n")
    if total:
        say(f"in all {total - missed} of {total} noticed ({(total - missed) / total:.0%})")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
