"""The short forms of the kill campaign and of the fuzzers in experiments/reliability."""

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")

FOLDER = Path(__file__).parents[2] / "experiments" / "reliability"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    if not FOLDER.exists():
        pytest.skip("the experiments are not part of this copy")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


# ---------------------------------------------------------------------------------------------------------------------
# Kills

KINDS = ["maml_trpo", "rl2", "few-shot", "loop", "workers"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_and_resumed_is_the_run_that_never_was(kind, monkeypatch, tmp_path):
    kills = module("kill_campaign", monkeypatch).campaign(2, 4, tmp_path, [kind])
    assert len(kills) >= 2
    assert {kill.outcome for kill in kills} == {"same"}, kills


@pytest.mark.parametrize("operation", ["write", "before sync", "after sync", "before rename", "after rename"])
def test_a_kill_inside_a_write_strikes_where_it_should_and_changes_nothing(operation, monkeypatch, tmp_path):
    campaign = module("kill_campaign", monkeypatch)
    whole = campaign.reference("few-shot", tmp_path)
    assert whole.counts[operation] > 4
    run, log = tmp_path / "run", tmp_path / "log"

    def attempt() -> None:
        campaign.Injector(operation, 5).install()
        campaign.start_or_resume("few-shot", run)

    assert campaign.in_a_fork(attempt, log) == -9
    left = [p.name for p in run.iterdir() if p.name.startswith(".")]
    if operation in ("before sync", "after sync", "before rename"):  # a write may be that of a row to the metrics
        assert left
    assert campaign.in_a_fork(lambda: campaign.start_or_resume("few-shot", run), log) == 0, log.read_text()
    assert campaign.differences(run, whole.path) == []
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_the_campaign_sees_a_run_that_is_another(monkeypatch, tmp_path):
    campaign = module("kill_campaign", monkeypatch)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny(seed=seed).learn(2, run_dir=tmp_path / name, eval_every=1, eval_tasks=2)
    assert campaign.differences(tmp_path / "b", tmp_path / "a") == []
    assert set(campaign.differences(tmp_path / "c", tmp_path / "a")) == {
        "latest.safetensors", "best.safetensors", "metrics", "config"
    }  # fmt: skip


def test_a_kill_at_a_moment_kills_and_a_failure_is_told_apart(monkeypatch, tmp_path):
    campaign, log = module("kill_campaign", monkeypatch), tmp_path / "log"
    assert campaign.in_a_fork(lambda: time.sleep(60), log, after=0.05) == -9
    assert campaign.in_a_fork(lambda: None, log, after=5.0) == 0
    assert campaign.in_a_fork(lambda: [][1], log) == 1
    assert "IndexError" in log.read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Fuzzers


@pytest.mark.parametrize("face", ["command line", "loaders", "python"])
def test_odd_calls_work_or_are_refused_with_a_clear_error(face, monkeypatch, tmp_path):
    found = module("fuzz", monkeypatch).fuzz(face, 20, 7, tmp_path)
    assert found == []


@pytest.mark.parametrize(
    ("call", "what"),
    [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: {}["x"], "KeyError"), (lambda: sys.exit(1), "SystemExit"),
     (lambda: int(""), None), (lambda: sys.exit(2), None), (lambda: None, None),
     (lambda: (_ for _ in ()).throw(ValueError()), "an error without a word")],
)  # fmt: skip
def test_the_fuzzers_tell_what_is_not_in_order(call, what, monkeypatch):
    found = module("fuzz", monkeypatch).outcome(call)
    assert found is None if what is None else found.startswith(what)


def test_the_fuzzers_notice_a_hang(monkeypatch):
    fuzz = module("fuzz", monkeypatch)
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    assert fuzz.outcome(lambda: time.sleep(60)) == "took over 0.2 seconds"


def test_every_spoilt_file_differs_from_the_whole_one(monkeypatch, tmp_path):
    fuzz = module("fuzz", monkeypatch)
    files = fuzz.make_files(tmp_path)
    whole = (files.run / "latest.safetensors").read_bytes()
    ways, other = set(), 0
    for seed in range(40):
        path = tmp_path / "x.safetensors"
        path.write_bytes(whole)
        ways.add(fuzz.spoil(path, np.random.default_rng(seed)))
        other += path.read_bytes() != whole
    assert ways == {"rewritten", "truncated", "bits", "cut", "noise"}
    assert other >= 36  # a rewritten entry may be given the value that it has
    torch.set_num_threads(1)
