"""docs/stable_baselines3.md: its examples run."""

from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, blocks

DOCUMENT = ROOT / "docs" / "stable_baselines3.md"


@pytest.mark.skipif(not DOCUMENT.exists(), reason="metarl is not run from its repository")
def test_the_examples_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = blocks(DOCUMENT.read_text(), "python")
    assert len(code) >= 4
    for block in code:
        exec(compile(block, str(DOCUMENT), "exec"), names)
