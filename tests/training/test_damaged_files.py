"""Files whose headers and tensors are not what they should be: one error that names the file, and no memory taken."""

import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from saved_files import KINDS, OLD
from tiny_runs import TINY, tiny

import metarl
from metarl import MetaLearner, checkpoint
from metarl.checkpoint import CheckpointError, DamagedError

VALUES: tuple[Any, ...] = (None, [], {}, "x", "", -1, 0, 1.5, 10**12, 1e308, float("nan"), True, [[1]], {"a": 1})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a header, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(meta: Any, place: tuple[Any, ...], value: Any, delete: bool = False) -> Any:
    meta = json.loads(json.dumps(meta))
    inner = meta
    for key in place[:-1]:
        inner = inner[key]
    if delete:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return meta


def refused_or_loaded(load: Callable[[Path], Any], path: Path) -> bool:
    """Whether the file is refused, which has to happen in one way."""
    try:
        load(path)
    except CheckpointError as error:
        text = str(error)
    else:
        return False
    assert str(path) in text and "\n" not in text, text
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_rewritten_header_is_refused_in_one_line_or_loads(tmp_path, kind):
    source, load = KINDS[kind]
    tensors, meta = checkpoint.load(source)
    path, refused, tried = tmp_path / "x.safetensors", 0, 0
    for place in places(meta):
        # Every entry of a list of settings is checked by the same code, and a learner takes a while to make.
        for value in (
            VALUES
            if len(place) == 1 or kind in ("policy", "recurrent")
            else VALUES[zlib.crc32(repr(place).encode()) % 5 :: 5]
        ):
            checkpoint.save(path, tensors, changed(meta, place, value))
            refused += refused_or_loaded(load, path)
            tried += 1
        checkpoint.save(path, tensors, changed(meta, place, None, delete=True))
        refused += refused_or_loaded(load, path)
        tried += 1
    assert refused > tried / 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_as_it_is_loads(kind):
    source, load = KINDS[kind]
    assert not refused_or_loaded(load, source)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_tensors_of_another_type_are_refused(tmp_path, kind, dtype):
    source, load = KINDS[kind]
    tensors, meta = checkpoint.load(source)
    name = next(name for name, x in tensors.items() if x.dtype == torch.float32)
    checkpoint.save(tmp_path / "x.safetensors", tensors | {name: tensors[name].to(dtype)}, meta)
    with pytest.raises(CheckpointError, match=f"holds {dtype}, which should be torch.float32"):
        load(tmp_path / "x.safetensors")


def with_value(source: Path, path: Path, value: float) -> str:
    """A file with one value in it that `checkpoint.save` would refuse. -> the tensor's name."""
    tensors, meta = checkpoint.load(source)
    name = sorted(name for name, x in tensors.items() if x.is_floating_point())[0]
    tensors[name].view(-1)[0] = value
    text = json.dumps({"format": checkpoint.FORMAT, **meta}, sort_keys=True)
    header = {"metarl": f"{checkpoint._digest(tensors, text)} {text}"}
    safetensors.torch.save_file(tensors, path, metadata=header)
    return name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, kind, value):
    source, load = KINDS[kind]
    with_value(source, tmp_path / "x.safetensors", value)
    with pytest.raises(DamagedError, match="has values that are not finite"):
        load(tmp_path / "x.safetensors")
    with_value(source, tmp_path / "y.safetensors", 0.5)  # the control
    load(tmp_path / "y.safetensors")


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


LIES = {
    "learner": [("config", "hidden"), [10**6, 10**6]],
    "rl2": [("config", "hidden"), 10**6],
    "few-shot": [("config", "hidden"), [10**6, 10**6]],
    "policy": [("policy", "hidden"), [10**6, 10**6]],
    "recurrent": [("policy", "hidden"), 10**6],
}
LIMITED = """
import resource, sys
sys.path[:0] = {path!r}
from saved_files import KINDS, OLD
from metarl.checkpoint import CheckpointError
load = KINDS[{kind!r}][1]
load(KINDS[{kind!r}][0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load({file!r})
except CheckpointError as error:
    print(error, "GREW", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", LIES)
def test_a_header_that_claims_terabytes_takes_no_memory(tmp_path, kind):
    tensors, meta = checkpoint.load(KINDS[kind][0])
    place, value = LIES[kind]
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, tensors, changed(meta, place, value))
    code = LIMITED.format(path=[str(Path(__file__).parents[1] / "helpers"), *sys.path], kind=kind, file=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    text, _, grown = done.stdout.partition("GREW")
    assert "far larger than the file's own" in text and str(path) in text, done.stdout + done.stderr
    assert int(grown) < 100  # MB


def test_large_files_may_be_large(tmp_path):
    learner = MetaLearner("reptile", metarl.make("PointNavigation-v0"), device="cpu", **TINY | {"hidden": (3000, 3000)})
    learner.save(tmp_path / "l")
    assert MetaLearner.load(tmp_path / "l", device="cpu").config.hidden == (3000, 3000)


def test_a_damaged_file_leaves_the_learner_alone(tmp_path):
    shutil.copy(OLD / "policy.safetensors", tmp_path / "p.safetensors")
    learner = tiny()
    before = learner.state
    with pytest.raises(CheckpointError):
        learner.start_from(tmp_path / "p.safetensors")
    assert learner.state is before
