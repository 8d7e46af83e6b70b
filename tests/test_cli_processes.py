"""The command line in processes of its own: signals, exit statuses, every command once."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import TRAIN, by_hand
from tiny_runs import iterations_logged, rows_without_time, same_params

import metarl
from metarl import AdaptedPolicy, MetaLearner, cli
from metarl.training.train import BEST

# ---------------------------------------------------------------------------------------------------------------------
# In processes of their own


def metarl_command(*argv: str) -> list[str]:
    return [sys.executable, "-c", "from metarl.cli import main; main()", *argv]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_run_is_saved_says_how_to_go_on_and_ends_as_if_it_had_not_been_stopped(tmp_path, number):
    out = tmp_path / "a run"
    argv = [*TRAIN, "--iterations", "1000000", "--eval-every", "3", "--checkpoint-every", "1000", "--out", str(out)]
    process = subprocess.Popen(
        metarl_command(*argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits: ignore
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while iterations_logged(out) < 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        text, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (130, "")
    done = MetaLearner.load(out).state.iteration
    assert done >= 3  # an iteration may be logged and not yet count
    assert f"stopped after iteration {done}, which is saved. Go on with:\n  metarl train --resume '{out}'" in text

    total = done + 2
    assert cli.run(["train", "--resume", str(out), "--iterations", str(total), "--threads", "1", "--no-progress"]) == 0
    whole = by_hand(total, eval_every=3, run_dir=tmp_path / "whole")
    loaded = MetaLearner.load(out)
    assert same_params(loaded.state.params, whole.state.params)
    assert rows_without_time(out) == rows_without_time(tmp_path / "whole")
    assert (out / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()


def test_the_commands_end_to_end(tmp_path):
    def call(*argv: str) -> str:
        done = subprocess.run(metarl_command(*argv), cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "done: 2 iterations, 80 environment steps" in call(*TRAIN, "--iterations", "2", "--out", "run")
    assert "wrote run/evaluation/adaptation.csv" in call("evaluate", "run", "--tasks", "2", "--no-figures")
    assert "wrote p.safetensors" in call("adapt", "run", "--task", "goal=0.3,-0.2", "--out", "p")
    assert "PointNavigation-v0" in call("list")
    action, _ = AdaptedPolicy.load(tmp_path / "p").predict(np.zeros(2, np.float32))
    assert action.shape == (2,)


def test_an_error_in_a_process_of_its_own(tmp_path):
    done = subprocess.run(metarl_command("trian"), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no command 'trian'; did you mean 'train'?\n"


# ---------------------------------------------------------------------------------------------------------------------
# Images, and normalised observations


@pytest.mark.parametrize("module", ["metarl", "metarl.cli"])
def test_the_commands_work_without_the_script_on_the_path(module):
    def call(*argv: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-m", module, *argv], capture_output=True, text=True)

    assert "PointNavigation-v0" in call("list").stdout
    assert call("--version").stdout == f"metarl {metarl.__version__}\n"
    assert "usage: metarl evaluate" in call("evaluate", "--help").stdout
    wrong = call("lisst")
    assert wrong.returncode == 2
    assert "did you mean 'list'?" in wrong.stderr
