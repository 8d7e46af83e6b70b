"""Scripts with worker processes: no guard needed, and nothing outlives the script, however it ends."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from process_episodes import tasks_of
from process_families import Noisy
from processes import gone, running, workers_of

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system"),
    pytest.mark.usefixtures("no_process_left"),
]

SCRIPT = """
import os, sys, time
import numpy as np
from process_families import Noisy, Failing
from metarl.vector.process import ProcessVectorEnv

print("main runs", flush=True)

class Mine(Noisy):
    def make(self, task):
        assert task["shift"].shape == (2,)
        return super().make(task)

def go(family, **more):
    env = ProcessVectorEnv(family, 3, 2, 2, **more)
    env.reset(seed=100, options={"tasks": family.sample(3, np.random.default_rng(0))})
    env.step(np.zeros((6, 2), np.float32))
    return env
"""


def script(tail: str, folder: Path, way: str = "file", **more: Any) -> subprocess.Popen:
    text = SCRIPT + textwrap.dedent(tail)
    places = os.pathsep.join(filter(None, [str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": places, "PYTHONWARNINGS": "default"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    if way == "stdin":
        process = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, **pipes)
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        return process
    path = folder / "script.py"
    path.write_text(text)
    return subprocess.Popen([sys.executable, *(["-c", text] if way == "-c" else [str(path)])], **pipes, **more)


@pytest.mark.parametrize("way", ["file", "stdin", "-c"])
def test_a_script_without_a_guard_and_with_its_own_family_works(way, tmp_path):
    process = script("""
        env = go(Mine())
        print("done", env.reset(seed=0)[0].shape)
    """, tmp_path, way)  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (out.splitlines(), err, process.returncode) == (["main runs", "done (6, 3)"], "", 0)
    assert workers_of(process.pid) == []  # though nobody called close


def test_an_exception_at_the_top_of_a_script_leaves_no_process(tmp_path):
    process = script("env = go(Noisy())\nraise SystemExit(3)\n", tmp_path)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (3, "")
    assert workers_of(process.pid) == []


@pytest.mark.parametrize(
    "tail",
    [
        "env = go(Noisy()); print('ready', flush=True); time.sleep(1000)",
        "env = go(Failing('step', 'sleep')); print('ready', flush=True)\nwhile True: env.step(np.zeros((6, 2), 'f4'))",
    ],
    ids=["idle", "busy"],
)
def test_workers_end_when_their_parent_is_killed(tail, tmp_path):
    process = script(tail, tmp_path)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)] == ["main runs", "ready"]
    time.sleep(0.5)
    assert len(workers_of(process.pid)) == 2
    process.kill()
    assert gone(lambda: workers_of(process.pid))
    assert gone(lambda: running(f"sleep\x0098{process.pid}"))
    process.communicate()


def test_a_forked_copy_of_the_parent_leaves_the_workers_alone(tmp_path):
    process = script("""
        env = go(Noisy())
        child = os.fork()
        if child == 0:
            env.close()
            sys.exit()
        os.waitpid(child, 0)
        env.step(np.zeros((6, 2), np.float32))
        print("still there")
    """, tmp_path)  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (out.splitlines(), process.returncode) == (["main runs", "still there"], 0), err


def test_no_shared_memory_has_a_name(start):
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    start(Noisy()).reset(seed=0, options={"tasks": tasks_of(Noisy())})
    assert not os.path.isdir("/dev/shm") or {x for x in os.listdir("/dev/shm") if "metarl" in x} <= before
