"""The repository's documents, for the tests that hold them to the code."""

import re
import shlex
from pathlib import Path

import metarl

ROOT = Path(metarl.__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def generalised(name: str) -> str:
    """A logged name with its step as k, as docs/logging.md writes it."""
    return re.sub(r"_\d+$", "_k", name)


def commands(text: str) -> list[list[str]]:
    """The words of every `metarl ...` line in the shell blocks."""
    lines = [line for block in blocks(text, "(?:bash|sh|console)") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0].rpartition("/")[2] == "metarl"]
