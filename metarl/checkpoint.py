"""What is on disk and how it comes back.

A checkpoint is one safetensors file: tensors, and in its header a JSON text with everything else. One file can be
replaced in one atomic step; loading it runs no code. A checksum over both finds damage that the format does not.
Equal states make equal files.
"""

import dataclasses
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

FORMAT = 1
_HEADER = "metarl"
S = TypeVar("S")


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of the right kind."""


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file that is either old or new, never half: temporary file, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, atomically."""
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises CheckpointError naming the file if it is missing or is no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {path.parent} the directory of a run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and the JSON-able `meta` to one file."""
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    text = json.dumps({"format": FORMAT, **meta}, sort_keys=True)
    header = {_HEADER: f"{_digest(tensors, text)} {text}"}  # one entry: safetensors mixes several by hash
    atomic_write(Path(path), safetensors.torch.save(tensors, metadata=header))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the `meta` that `save` wrote.

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint of this package, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or is no checkpoint: {error}. Use another checkpoint of the run"
        ) from None
    if _HEADER not in header:
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of metarl")
    digest, _, text = header[_HEADER].partition(" ")
    try:
        meta = json.loads(text)
        newer = meta["format"] > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}. Use another checkpoint of the run") from None
    if newer:
        raise CheckpointError(f"{path} has format {meta['format']}, this version reads up to {FORMAT}: upgrade metarl")
    if digest != _digest(tensors, text):
        raise CheckpointError(f"{path} is damaged: its checksum does not match. Use another checkpoint of the run")
    return tensors, meta


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack_state(state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state (a dataclass of tensors, dicts of tensors and counters) -> tensors and JSON-able rest."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif isinstance(value, dict):
            tensors |= {f"{field.name}/{name}": x for name, x in value.items()}
        else:
            rest[field.name] = value
    return tensors, rest


def on_device(state: S, device: torch.device | str) -> S:
    """A copy of a state with its tensors on `device`."""
    moved: dict[str, Any] = {}
    for field in dataclasses.fields(state):  # type: ignore[arg-type]
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.detach().to(device, copy=True)
        elif isinstance(value, dict):
            moved[field.name] = {name: x.detach().to(device, copy=True) for name, x in value.items()}
    return dataclasses.replace(state, **moved)  # type: ignore[type-var]


def unpack_state(
    kind: type[S], tensors: dict[str, Tensor], rest: dict[str, Any], like: S, device: torch.device | str
) -> S:
    """The inverse of `pack_state`.

    Args:
        like: a state of the right shapes.

    Raises:
        CheckpointError: the tensors are not those of `like`.
    """
    expected, counters = pack_state(like)
    if rest.keys() != counters.keys():
        raise CheckpointError(f"the checkpoint holds the counters {sorted(rest)}, this learner has {sorted(counters)}")
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    wanted = {name: tuple(x.shape) for name, x in expected.items()}
    if shapes != wanted:
        differing = sorted(n for n in {*shapes, *wanted} if shapes.get(n) != wanted.get(n))
        got, want = ({n: s.get(n) for n in differing} for s in (shapes, wanted))
        raise CheckpointError(f"the checkpoint holds tensors of the shapes {got}, this learner needs {want}")
    values: dict[str, Any] = dict(rest)
    for field in dataclasses.fields(like):  # type: ignore[arg-type]
        prefix = field.name + "/"
        if field.name in tensors:
            values[field.name] = tensors[field.name].to(device)
        elif field.name not in rest:
            # In the order of `like`: the file sorts by name, and sums over parameters follow the dict's order.
            named = {n: tensors[n].to(device) for n in expected if n.startswith(prefix)}
            values[field.name] = {name.removeprefix(prefix): value for name, value in named.items()}
    return kind(**values)
