"""Checkpoints: what is written comes back, whatever is damaged is refused, and nothing in a file is ever run."""

import dataclasses
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from tiny_runs import contents, same_params
from torch import Tensor

from metarl import checkpoint
from metarl.checkpoint import CheckpointError, atomic_write, load, pack_state, read_json, save, unpack_state, write_json


@dataclass(frozen=True)
class State:
    params: dict[str, Tensor]
    moments: dict[str, Tensor]
    scale: Tensor
    iteration: int = 0
    note: str | None = None


def state() -> State:
    params = {"z": torch.randn(3, 2), "a": torch.randn(4), "m": torch.randn(())}
    return State(params, {}, torch.tensor([1.5, -2.0]), 7, "x")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    save(path, {"w": torch.arange(6.0).reshape(2, 3)}, {"kind": "test", "list": [1, None, "a"]})
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_a_tensor_comes_back_with_its_type_shape_and_bits(tmp_path, dtype):
    value = (torch.arange(12).reshape(3, 4) % 2).to(dtype)
    save(tmp_path / "c", {"x": value}, {})
    found = load(tmp_path / "c")[0]["x"]
    assert found.dtype == dtype
    assert torch.equal(found, value)


@pytest.mark.parametrize("value", [torch.tensor(3.5), torch.zeros(0, 4), torch.arange(6.0).reshape(2, 3).T],
                         ids=["scalar", "empty", "transposed"])  # fmt: skip
def test_odd_shapes_come_back(tmp_path, value):
    save(tmp_path / "c", {"x": value}, {})
    assert torch.equal(load(tmp_path / "c")[0]["x"], value)


def test_views_of_one_storage_come_back(tmp_path):
    flat = torch.arange(6.0)
    save(tmp_path / "c", {"a": flat[:2], "b": flat[2:]}, {})
    found, _ = load(tmp_path / "c")
    assert (found["a"].tolist(), found["b"].tolist()) == ([0, 1], [2, 3, 4, 5])


def test_the_rest_comes_back(file):
    _, meta = load(file)
    assert meta == {"kind": "test", "list": [1, None, "a"], "format": checkpoint.FORMAT}


def test_equal_contents_make_equal_files(tmp_path):
    for name in "abcdefgh":
        save(tmp_path / name, {"x": torch.zeros(1), "y": torch.zeros(2)}, {"one": 1, "two": 2})
    assert len(set(contents(tmp_path).values())) == 1


def through_a_file(path: Path, state: State, like: State) -> State:
    tensors, rest = pack_state(state)
    save(path, tensors, {"state": rest})
    tensors, meta = load(path)
    return unpack_state(State, tensors, meta["state"], like, "cpu")


def test_a_state_comes_back(tmp_path):
    before = state()
    after = through_a_file(tmp_path / "c", before, state())
    assert same_params(after.params, before.params)
    assert torch.equal(after.scale, before.scale)
    assert (after.moments, after.iteration, after.note) == ({}, 7, "x")


def test_parameters_keep_the_order_of_a_fresh_state(tmp_path):
    # Sums over parameters follow the dict's order, so another order would end bit for bit equality.
    after = through_a_file(tmp_path / "c", state(), state())
    assert list(after.params) == ["z", "a", "m"]
    assert [name for name in load(tmp_path / "c")[0] if "/" in name] != ["params/z", "params/a", "params/m"]


# ---------------------------------------------------------------------------------------------------------------------
# Old or new, never half


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(file, monkeypatch, function, error):
    def crash(*_: Any) -> None:
        raise error

    before = contents(file.parent)
    monkeypatch.setattr(os, function, crash)
    with pytest.raises(type(error)):
        save(file, {"w": torch.zeros(2, 3)}, {})
    assert contents(file.parent) == before


def test_without_the_crash_the_file_changes(file):
    before = file.read_bytes()
    save(file, {"w": torch.zeros(2, 3)}, {})
    assert file.read_bytes() != before
    assert list(contents(file.parent)) == [file.name]


def test_the_data_is_synced_before_the_file_takes_its_name(tmp_path, monkeypatch):
    order: list[Any] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append(os.fstat(descriptor).st_size))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("replace"), replace(*args)))
    atomic_write(tmp_path / "x", b"12345")
    assert order == [5, "replace"]


def test_a_file_has_the_permissions_that_the_user_asked_for(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_missing_directories_are_made(tmp_path):
    atomic_write(tmp_path / "a" / "b" / "x", b"1")
    assert (tmp_path / "a" / "b" / "x").read_bytes() == b"1"


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_every_truncated_file_is_refused(file):
    whole = file.read_bytes()
    for length in (*range(0, len(whole), 9), len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(file, "is damaged")


@pytest.mark.parametrize("bit", [0x01, 0x20, 0x80])
def test_every_flipped_bit_is_refused(file, bit):
    whole = file.read_bytes()
    assert len(whole) < 1000
    for i in range(len(whole)):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :])
        refused(file)


def test_the_whole_file_is_not_refused(file):
    file.write_bytes(file.read_bytes())
    assert load(file)[0]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_flipped_byte_in_the_numbers_is_found_by_the_checksum(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x01
    file.write_bytes(data)
    refused(file, "checksum does not match")
    assert safetensors.torch.load_file(file)  # which safetensors alone does not notice


def test_appended_bytes_are_refused(file):
    file.write_bytes(file.read_bytes() + b"\0" * 8)
    refused(file, "is damaged")


def test_somebody_elses_safetensors_file_is_refused(tmp_path):
    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "c", metadata={"format": "pt"})
    refused(tmp_path / "c", "no checkpoint of metarl")


@pytest.mark.parametrize("text", ["{broken", "[1, 2]", "{}", '{"format": "new"}'])
def test_damaged_json_is_refused(tmp_path, text):
    header = {"metarl": f"{checkpoint._digest({}, text)} {text}"}
    safetensors.torch.save_file({}, tmp_path / "c", metadata=header)
    refused(tmp_path / "c", "is damaged")


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "c", "there is no checkpoint")


def test_a_directory_is_no_checkpoint(tmp_path):
    refused(tmp_path, "there is no checkpoint")


def test_a_newer_format_asks_for_an_upgrade(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save(tmp_path / "c", {}, {})
    load(tmp_path / "c")
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    refused(tmp_path / "c", r"has format 2, this version reads up to 1: upgrade metarl")


def changed(tensors: dict[str, Tensor], **change: Tensor | None) -> dict[str, Tensor]:
    both = tensors | {name.replace("__", "/"): value for name, value in change.items()}
    return {name: value for name, value in both.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "match"),
    [({"params__a": torch.zeros(5)}, r"params/a': \(5,\)\}, this learner needs \{'params/a': \(4,\)\}"),
     ({"params__a": None}, r"params/a': None\}, this learner needs \{'params/a': \(4,\)\}"),
     ({"params__b": torch.zeros(1)}, r"params/b': \(1,\)\}, this learner needs \{'params/b': None\}")],
    ids=["another shape", "missing", "too many"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, match):
    tensors, rest = pack_state(state())
    with pytest.raises(CheckpointError, match=match):
        unpack_state(State, changed(tensors, **change), rest, state(), "cpu")


def test_counters_that_do_not_fit_are_named():
    tensors, rest = pack_state(state())
    with pytest.raises(CheckpointError, match=r"counters \['iteration'\], this learner has \['iteration', 'note'\]"):
        unpack_state(State, tensors, {"iteration": rest["iteration"]}, state(), "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# No code


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_loading_runs_no_code(tmp_path):
    bomb, target = tmp_path / "bomb.safetensors", tmp_path / "exploded"
    bomb.write_bytes(pickle.dumps(Bomb(target)))
    refused(bomb, "is damaged or is no checkpoint")
    assert not target.exists()
    pickle.loads(bomb.read_bytes())  # the control: this is what a pickle does
    assert target.exists()


def test_a_checkpoint_is_plain_safetensors(file):
    with safetensors.safe_open(file, framework="np") as opened:
        assert np.array_equal(opened.get_tensor("w"), np.arange(6.0).reshape(2, 3))
        assert json.loads(opened.metadata()["metarl"].partition(" ")[2])["kind"] == "test"
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(file.read_bytes())


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "c.json", {"a": [1, 2.5, None], "b": {"c": "é"}})
    assert read_json(tmp_path / "c.json") == {"a": [1, 2.5, None], "b": {"c": "é"}}


@pytest.mark.parametrize("data", [b'{"a": ', b"\xff\xfe", b""])
def test_damaged_json_files_are_named(tmp_path, data):
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"c\.json is damaged"):
        read_json(tmp_path / "c.json")


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"c\.json does not exist; is .* the directory of a run"):
        read_json(tmp_path / "c.json")


# ---------------------------------------------------------------------------------------------------------------------
# States of any data


@dataclasses.dataclass(frozen=True)
class Part:
    value: torch.Tensor
    weight: float


@dataclasses.dataclass(frozen=True)
class Nested:
    params: dict[str, torch.Tensor]
    history: list[float]
    pair: tuple[torch.Tensor, str]
    parts: dict[str, Part]
    best: float | None = None


def nested(history: list[float], best: float | None = None) -> Nested:
    x = torch.arange(3.0)
    return Nested({"w": x}, history, (x + 1, "word"), {"a": Part(x + 2, 0.5)}, best)


def test_a_state_of_nested_data_comes_back_though_its_lists_have_grown(tmp_path):
    tensors, rest = pack_state(nested([1.0, 2.5], 0.25))
    save(tmp_path / "s", tensors, {"state": rest})
    tensors, meta = load(tmp_path / "s")
    back = unpack_state(Nested, tensors, meta["state"], nested([]), "cpu")
    assert (back.history, back.best, back.pair[1], back.parts["a"].weight) == ([1.0, 2.5], 0.25, "word", 0.5)
    assert back.pair[0].tolist() == [1, 2, 3] and back.parts["a"].value.tolist() == [2, 3, 4]
    assert isinstance(back.parts["a"], Part) and isinstance(back.pair, tuple) and back.params["w"].tolist() == [0, 1, 2]
    moved = checkpoint.on_device(back, "cpu")
    assert moved.parts["a"].value.data_ptr() != back.parts["a"].value.data_ptr()


def test_an_entry_of_a_list_has_the_type_that_its_place_had_before_training():
    like = dataclasses.replace(nested([]), history=[nested([]), Part(torch.zeros(1), 1.0)])
    tensors, rest = pack_state(like)
    back = unpack_state(Nested, tensors, rest, like, "cpu")
    assert [type(x) for x in back.history] == [Nested, Part]


def test_what_is_no_data_is_named_with_its_place():
    with pytest.raises(TypeError, match=r"parts/a/weight is <built-in function print>"):
        pack_state(dataclasses.replace(nested([]), parts={"a": Part(torch.zeros(1), print)}))


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"dict": {"a": {"code": "x"}}}, "has the structure 'code', which is none"),
        ({"dict": {"a": {"list": [], "dict": {}}}}, "has the structure"),
        ({"dict": {"b": {"dataclass": {}}}}, "a dataclass of a type that the state before training does not have"),
    ],
)
def test_a_structure_that_is_none_is_refused(structure, message):
    tensors, rest = pack_state(nested([]))
    tensors = {name: x for name, x in tensors.items() if not name.startswith("parts/")}
    with pytest.raises(checkpoint.DamagedError, match=message):
        unpack_state(Nested, tensors, rest | {"parts": structure}, nested([]), "cpu")


def test_nested_tensors_are_finite_too():
    tensors, rest = pack_state(nested([]))
    with pytest.raises(checkpoint.DamagedError, match="not finite"):
        unpack_state(Nested, tensors | {"pair/0": torch.full((3,), float("nan"))}, rest, nested([]), "cpu")
