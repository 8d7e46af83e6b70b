"""The README and the documents: their code runs, their commands exist, what they point to is there."""

import contextlib
import re
from typing import Any

import numpy as np
import pytest
from documents import ROOT, blocks, commands
from tiny_runs import tiny

import metarl
from metarl import cli
from metarl.benchmark import command

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]

pytestmark = pytest.mark.skipif(not README.exists(), reason="metarl is not run from its repository")


def targets(text: str) -> set[str]:
    """What a document points to in this repository: the targets of its links, and paths in `code`."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)}
    paths = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", prose))
    own = {path for path in paths if path.split("/")[0] in TOP}
    return {target for target in links if target and not re.match(r"[a-z]+:", target)} | own


TOP = {path.name for path in ROOT.iterdir() if path.name not in ("runs", ".venv")}


def reach(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> list[Any]:
    """What a command line comes down to, without doing it."""
    seen: list[Any] = []
    learner = tiny()

    class Reached(Exception):
        pass

    def stop(*arguments: Any, **options: Any) -> None:
        seen.append((arguments, options))
        raise Reached

    monkeypatch.setattr(cli, "_train", stop)
    monkeypatch.setattr(cli, "_resume", stop)
    monkeypatch.setattr(cli, "_load", lambda *_: learner)
    monkeypatch.setattr(learner, "evaluate", stop)
    monkeypatch.setattr(learner, "adapt", stop)
    monkeypatch.setattr(command, "compare", stop)
    monkeypatch.setattr(command, "run", stop)
    with contextlib.suppress(Reached):
        assert cli.run(argv) == 0
    return seen


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(blocks(README.read_text(), "python")[0], "README.md", "exec"), names)
    assert names["learner"].state.iteration > 0
    assert np.isfinite(names["evaluation"].returns).all()
    assert names["env"].action_space.contains(names["action"])
    assert metarl.MetaLearner.load("learner.safetensors", family=names["family"]).state.iteration > 0


@pytest.mark.parametrize("argv", [c for path in DOCUMENTS for c in commands(path.read_text())], ids=" ".join)
def test_every_command_line_is_understood(argv, monkeypatch):
    seen = reach(monkeypatch, argv)
    assert len(seen) == (0 if argv[0] in ("list", "--help", "--version") or "--help" in argv else 1)


def test_every_algorithm_and_family_in_a_command_line_exists():
    trained = [c for path in DOCUMENTS for c in commands(path.read_text()) if c[0] == "train" and c[1][0] != "-"]
    assert trained
    for _, algorithm, family, *_ in trained:
        assert algorithm in metarl.learner.algorithms.ALGORITHMS  # type: ignore[attr-defined]
        assert family in metarl.registered()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_everything_that_is_pointed_to_exists(path):
    missing = [target for target in sorted(targets(path.read_text()))
               if not (ROOT / target).exists() and not (path.parent / target).exists()]  # fmt: skip
    assert missing == []


def test_the_readers_of_documents_find_what_is_there_and_what_is_not(monkeypatch):
    # The control of the tests above.
    text = ("See [a](docs/nothing.md#x), [b](https://x.org/y), `metarl/nothing.py`, `return/step_k`.\n"
            "```bash\nmake test  # all\nmetarl train maml_trpo X-v0 \\\n  --inner-lr 0.5\n.venv/bin/metarl lits\n```\n"
            "```python\nx = 1\n```\n")  # fmt: skip
    assert targets(text) == {"docs/nothing.md", "metarl/nothing.py"}
    assert commands(text) == [["train", "maml_trpo", "X-v0", "--inner-lr", "0.5"], ["lits"]]
    assert blocks(text, "python") == ["x = 1\n"]
    assert len(reach(monkeypatch, ["train", "maml_trpo", "X-v0", "--inner-lr", "0.5"])) == 1
    with pytest.raises(cli.UsageError, match="no option --inner-rl"):
        reach(monkeypatch, ["train", "maml_trpo", "X-v0", "--inner-rl", "0.5"])
