"""docs/contenders.md: its contender runs in its suite, and every contender of the package is in its table."""

import re

import pytest
from documents import DOCS, blocks

from metarl import algorithms, cli
from metarl.benchmark import contenders, results

PAGE = DOCS / "contenders.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="metarl is not run from its repository")


def test_the_contender_of_the_page_runs_in_the_suite_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(PAGE.read_text(), "python")
    (tmp_path / "nearest.py").write_text(code)
    (suite,) = (block for block in blocks(PAGE.read_text(), "toml") if block.startswith("# suite.toml"))
    (tmp_path / "suite.toml").write_text(suite)
    assert cli.run(["benchmark", "suite.toml", "--out", "runs/nearest", "--no-figures"]) == 0
    curve = results.curves(tmp_path / "runs" / "nearest")["navigation"]["nearest"]
    assert curve.label == "best of ten specialists" and curve.episodes == (0, 10) and not curve.exceeded


def test_the_first_suite_of_the_page_can_be_read(tmp_path):
    from metarl.benchmark.suite import read

    first = blocks(PAGE.read_text(), "toml")[0]
    (tmp_path / "s.toml").write_text(first)
    assert list(read(tmp_path / "s.toml").contenders) == ["random", "oracle", "maml_trpo", "small"]


def test_the_table_has_every_contender():
    table = PAGE.read_text().partition("| contender |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`(\w+)`", table))
    assert set(contenders.BUILT_IN) <= listed and set(algorithms.ALGORITHMS) & listed == {"maml_trpo", "rl2"}
