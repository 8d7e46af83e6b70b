"""Mistakes on the command line are one line on stderr and a status; faults of the package are not dressed up."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TRAIN, main
from tiny_runs import contents

from metarl import cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three iterations, started from the command line."""
    path = tmp_path_factory.mktemp("cli") / "run"
    assert cli.run([*TRAIN, "--iterations", "3", "--eval-every", "2", "--out", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["trian"], "there is no command 'trian'; did you mean 'train'?"),
     (["train", "maml_trop", "X"], "no algorithm is called 'maml_trop'; did you mean 'maml_trpo'?"),
     (["train", "maml_trpo", "PointNavigatio-v0"], "called 'PointNavigatio-v0'; did you mean 'PointNavigation-v0'?"),
     ([*TRAIN, "--inner-lrr", "0.1"], "there is no option --inner-lrr; did you mean 'inner-lr'?"),
     ([*TRAIN, "--n_task=3"], "there is no option --n-task; did you mean 'n-tasks'?"),
     ([*TRAIN, "--n-tasks", "0"], "n_tasks must be at least 1, got 0"),
     ([*TRAIN, "--inner-lr", "-0.5"], "inner_lr must be positive and finite, got -0.5"),
     ([*TRAIN, "--iterations", "0"], "--iterations must be at least 1, got 0"),
     ([*TRAIN, "--threads", "0"], "--threads must be at least 1, got 0"),
     ([*TRAIN, "--seed", "-1"], "seed must not be negative, got -1"),
     ([*TRAIN, "--device", "gpu"], "device must be auto, cpu or cuda, got 'gpu'"),
     ([*TRAIN, "--family-kwargs", "horizon"], "arguments of a family are written like arms=10, got 'horizon'"),
     ([*TRAIN, "--family-kwargs", "horizn=3"], "PointNavigation-v0 cannot be made with {'horizn': 3}"),
     ([*TRAIN, "--family-kwargs", "horizon=0"], "horizon must be at least 1, got 0"),
     (["train", "--resume", "{run}", "--iteration", "3"], "no option --iteration; did you mean 'iterations'?"),
     (["evaluate", "{run}", "--step", "3"], "there is no option --step; did you mean 'steps'?"),
     (["evaluate", "{run}", "--checkpoint", "worst"], "--checkpoint must be one of ['best', 'latest'], got 'worst'"),
     (["evaluate", "{run}", "--tasks", "0"], "n_tasks must be at least 1, got 0"),
     (["evaluate", "{run}/nothing"], "there is no checkpoint {run}/nothing"),
     (["adapt", "{run}", "--task", "gaol=1,2"], "v0 has no task parameter 'gaol'; did you mean 'goal'?"),
     (["adapt", "{run}", "--task", "goal"], "a task is written like goal=0.3,-0.2, got 'goal'"),
     (["adapt", "{run}", "--task", "goal=inf,0"], "task parameter 'goal' of PointNavigation-v0 must be finite"),
     (["adapt", "{run}", "--tsk", "goal=0,0"], "there is no option --tsk; did you mean 'task'?"),
     (["list", "--al"], "there is no option --al")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_an_error_is_one_line_on_stderr_and_status_2(run, monkeypatch, capsys, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(monkeypatch, *(word.replace("{run}", str(run)) for word in argv)) == 2
    out, err = capsys.readouterr()
    assert message.replace("{run}", str(run)) in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert contents(tmp_path) == {}


def test_an_error_is_shown_as_it_is(monkeypatch, capsys):
    def fail(argv: Any) -> int:
        raise ValueError("pip install 'metarl-torch[plot]' [/tmp]\n  and\na  line that is " + "long " * 40)

    monkeypatch.setitem(cli.COMMANDS, "list", fail)
    assert main(monkeypatch, "list") == 2
    expected = "error: pip install 'metarl-torch[plot]' [/tmp] and a line that is " + " ".join(["long"] * 40)
    assert capsys.readouterr().err == expected + "\n"


def test_a_traceback_is_there_for_who_asks(monkeypatch):
    monkeypatch.setenv("METARL_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["metarl", "trian"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(cli.UsageError):
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(monkeypatch):
    def fail(argv: Any) -> int:
        raise AssertionError

    monkeypatch.setitem(cli.COMMANDS, "list", fail)
    monkeypatch.setattr(sys, "argv", ["metarl", "list"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(AssertionError):
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_missing_option_is_status_2(monkeypatch, capsys, run):
    assert main(monkeypatch, "adapt", str(run)) == 2
    assert "--task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["arms=10"], {"arms": 10}), (["scale=0.5", "name=left"], {"scale": 0.5, "name": "left"}),
     (["goal=(1, 2)", "on=True", "what=None"], {"goal": (1, 2), "on": True, "what": None}), (["a=b=c"], {"a": "b=c"})],
)  # fmt: skip
def test_arguments_of_a_family(words, expected):
    assert cli._parse_kwargs(words) == expected


def test_threads_are_as_many_as_asked_for_or_as_there_are_cores():
    cli._set_threads(2)
    assert torch.get_num_threads() == 2
    cli._set_threads(None)
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))
