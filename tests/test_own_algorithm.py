"""docs/your_own_algorithm.md: its examples run as they stand there, and what they make keeps the contract."""

import re
import sys

import pytest
import torch
from documents import DOCS, blocks

import metarl

PAGE = DOCS / "your_own_algorithm.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="metarl is not run from its repository")


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    ran: list[dict] = []
    for block in blocks(PAGE.read_text(), "python"):
        if name := re.match(r"# (\w+)\.py\n", block):
            (tmp_path / f"{name[1]}.py").write_text(block)
            monkeypatch.delitem(sys.modules, name[1], raising=False)
        else:
            ran.append({})
            exec(block, ran[-1])
    search, residual = ran
    assert search["learner"].algorithm == "random_search"
    for run in ran:
        learner, again = run["learner"], run["again"]
        assert learner.state.iteration == again.state.iteration > 0
        assert all(torch.equal(x, again.state.params[name]) for name, x in learner.state.params.items())
    assert residual["learner"].policy.kind == residual["policy"].policy.kind == "ResidualPolicy"
    zero = residual["family"].observation_space.sample()
    assert residual["policy"].predict(zero, deterministic=True)[0].shape == (2,)
    assert metarl.check_algorithm(search["random_search"], n_tasks=2, episodes=2, hidden=(4,)) == []
