"""docs/algorithms/supervised.md: its examples run, and it has every logged number and every setting."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import blocks
from supervised_twins import blobs, tiny
from tiny_runs import rows_without_time

import metarl
from metarl.supervised import maml

DOCUMENT = Path(metarl.__file__).parents[1] / "docs" / "algorithms" / "supervised.md"


@pytest.mark.skipif(not DOCUMENT.exists(), reason="metarl is not run from its repository")
@pytest.mark.parametrize("number", range(5))
def test_the_document_s_examples_run(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = blocks(DOCUMENT.read_text(), "python")
    assert len(examples) == 5
    if "digits(" in examples[number]:
        pytest.importorskip("sklearn")
    if "glyphs(" in examples[number]:
        pytest.importorskip("matplotlib")
    names: dict[str, Any] = {}
    exec(compile(examples[number], DOCUMENT.name, "exec"), names)
    curve = names["curve"]
    assert curve[-1] < curve[0] and np.isfinite(curve).all()


def test_every_logged_number_is_in_the_document(tmp_path):
    text = DOCUMENT.read_text()
    tiny(blobs(), learned_lr="scalar", learned_mask=True).learn(1, run_dir=tmp_path / "a", eval_every=1, eval_tasks=2)
    tiny(outer="reptile").learn(1, run_dir=tmp_path / "b")
    logged = {name for run in "ab" for name in rows_without_time(tmp_path / run)[0]}
    logged |= {"time/sampling", "time/update"}
    for name in logged:
        shown = name[:-1] + "k" if name[-1].isdigit() else name
        assert f"`{shown}`" in text, name


def test_every_setting_is_in_the_document():
    text = DOCUMENT.read_text()
    missing = [field.name for field in dataclasses.fields(maml.Config) if f"`{field.name}`" not in text]
    assert missing == []
