"""`metarl benchmark`: every option reaches what it is for, and mistakes are one line."""

import dataclasses

import pytest

from metarl import cli
from metarl.benchmark import run, suite
from metarl.benchmark.command import BenchmarkOptions
from metarl.options import UsageError


@pytest.fixture
def called(monkeypatch, tmp_path):
    found = {}

    def stand_in(chosen, out, jobs, report):
        found.update(suite=chosen, out=out, jobs=jobs)
        return []

    monkeypatch.setattr(run, "run", stand_in)
    return found


def test_options_reach_the_benchmark(called, tmp_path):
    words = ["benchmark", "PointNavigation-v0", "--contenders", "random", "promp", "--seeds", "4", "--budget", "77",
             "--jobs", "3", "--out", str(tmp_path / "b"), "--no-figures"]  # fmt: skip
    options = {field.name for field in dataclasses.fields(BenchmarkOptions)} - {"suite"}
    assert options == {word.removeprefix("--").removeprefix("no-") for word in words if word.startswith("--")}
    assert cli.run(words) == 0
    assert not (tmp_path / "b" / "adaptation.png").exists()
    assert (called["jobs"], called["out"]) == (3, tmp_path / "b")
    chosen = called["suite"]
    assert list(chosen.contenders) == ["random", "promp"] and chosen.seeds == 4
    assert chosen.families["PointNavigation-v0"].budget == 77


def test_a_suite_by_its_file_and_by_its_name(called, tmp_path):
    assert cli.run(["benchmark", "minutes", "--out", str(tmp_path)]) == 0
    assert called["suite"] == suite.read("minutes")
    (tmp_path / "mine.toml").write_text(
        '[families.PointNavigation-v0]\n[contenders.random]\n[contenders.mean]\nkind = "multi_task"\n'
    )
    assert cli.run(["benchmark", str(tmp_path / "mine.toml"), "--out", str(tmp_path)]) == 0
    assert list(called["suite"].contenders) == ["random", "mean"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "'nosuch' is not a task family .*or a suite: minutes"),
        (["PointNavigation-v0"], "name the contenders for PointNavigation-v0: --contenders"),
        (["minutes", "--contenders", "random"], "a suite file names its own"),
        (["minutes", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["gone.toml"], "there is no suite gone.toml"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises((UsageError, ValueError), match=message):
        cli.run(["benchmark", *words])


def test_a_failed_cell_is_the_exit_status(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "run", lambda chosen, *_: chosen.cells()[:1])
    words = ["benchmark", "PointNavigation-v0", "--contenders", "random", "--out", str(tmp_path)]
    assert cli.run(words) == 1
    assert "1 of 3 cells failed; the same command tries them again" in capsys.readouterr().out


def test_an_interruption_says_what_goes_on(monkeypatch, tmp_path, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupted)
    words = ["benchmark", "PointNavigation-v0", "--contenders", "random", "--seeds", "1", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        cli.run(words)
    assert "1 cell in" in (out := capsys.readouterr().out) and "interrupted; the same command goes on" in out


def test_a_whole_small_benchmark(tmp_path, capsys):
    (tmp_path / "s.toml").write_text(
        "seeds = 1\ntasks = { validation = 2, test = 2 }\n"
        "adaptation = { steps = 1, episodes = 2, eval_episodes = 2 }\n"
        '[families.nav]\nid = "PointNavigation-v0"\nkwargs = { horizon = 5 }\nbudget = 400\n'
        "[contenders.random]\n[contenders.random_init]\n"
    )
    assert cli.run(["benchmark", str(tmp_path / "s.toml"), "--out", str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "2 cells in" in out and "random on nav, seed 0: done" in out and "nav: 2 test tasks" in out
    assert (tmp_path / "b" / "adaptation.png").exists()
