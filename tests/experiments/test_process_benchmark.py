"""The benchmark of worker processes: it measures every way, and reports those that fail."""

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import nothing_left

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes need a POSIX system")


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    with nothing_left():
        yield


def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = Path(__file__).parents[2] / "experiments" / "benchmarks"
    if not folder.exists():
        pytest.skip("the benchmarks are not part of this copy")
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("process_backend")


def test_the_benchmark_measures_every_way_and_reports_those_that_fail(monkeypatch, tmp_path):
    benchmark = load_benchmark(monkeypatch)
    real = benchmark.start

    def start(way, *more):
        if way == "subproc":
            raise OSError("too many processes")
        return real(way, *more)

    monkeypatch.setattr(benchmark, "start", start)
    benchmark.main(["--only", "cheap", "--sizes", "3", "--repeats", "1", "--seconds", "0.01", "--out", str(tmp_path)])
    rows = {row["way"]: row for row in json.loads((tmp_path / "process_backend.json").read_text())["rows"]}
    assert list(rows) == ["automatic", "loop", "processes", "sync", "async", "subproc"]
    assert rows.pop("subproc")["failed"] == "OSError: too many processes"
    for row in rows.values():
        assert row["failed"] is None
        assert row["env-steps per second"] == pytest.approx(3000 / row["ms per step"])
        assert row["ratio"] == pytest.approx(row["ms per step"] / rows["automatic"]["ms per step"])


def test_the_benchmark_s_environments_never_end(monkeypatch):
    benchmark = load_benchmark(monkeypatch)
    env = benchmark.OneTask("CartPole-v1").make()
    env.reset(seed=0)
    steps = [env.step(1) for _ in range(50)]  # always to the right: it falls after ten
    assert not any(terminated or truncated for _, _, terminated, truncated, _ in steps)
    assert all(env.observation_space.contains(obs) for obs, *_ in steps)
