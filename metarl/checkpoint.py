"""Saving and loading checkpoints.

A checkpoint is one safetensors file: tensors, and a JSON text with everything else in its header. A single file can be
replaced atomically, and loading it runs no code. A checksum over both detects damage that the format itself does not.
Equal states give equal files. A checksum is not a signature, since anyone who writes a file can compute one: the header
is therefore checked before it is used (`reading`, `limited_to`; `metarl.families.saved` decides what it may import).
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FORMAT = 1
_HEADER = "metarl"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}")
_ABANDONED = 3600.0
"""Age in seconds after which a temporary file is considered left behind by a killed process."""
_MUCH = 2**22
"""How many numbers loading may allocate in addition to a multiple of the file's content (16 MB in float32)."""
S = TypeVar("S")


class CheckpointError(ValueError):
    """A file that is not a complete checkpoint of the right kind."""


class DamagedError(CheckpointError):
    """A file whose content cannot be used at all, so that an older checkpoint has to be used."""


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def atomic_write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file atomically, by a temporary file, sync and rename: it is either old or new, never partly written.

    Args:
        mode: permissions of a new file, before the umask is applied.

    Raises:
        OSError: the disk is full, or there is no permission; the message names `path`, which keeps its old content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(path.parent, {path.name}, older_than=_ABANDONED)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _discard(temporary)
        kept = "what it held before is intact" if path.exists() else "nothing was written"
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}; {kept}") from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # whatever broke the writing is what counts
        temporary.unlink(missing_ok=True)


def remove_temporaries(directory: Path, names: set[str], older_than: float = 0.0) -> None:
    """Delete temporary files that killed processes left behind while writing the files `names`."""
    with os.scandir(directory) as entries:
        found = [(e.path, m["name"]) for e in entries if (m := _TEMPORARY.fullmatch(e.name))]
    for path, name in found:
        with contextlib.suppress(OSError):  # gone already, or somebody else's
            if name in names and time.time() - os.stat(path).st_mtime >= older_than:
                os.unlink(path)


def keep_previous(path: Path, previous: Path) -> None:
    """Also link the file at `path`, which is about to be replaced, as `previous`; `path` exists throughout."""
    if not path.exists():
        return
    temporary = path.with_name(f".{previous.name}.{uuid.uuid4().hex}")
    try:
        os.link(path, temporary)
    except OSError:  # a filesystem without hard links
        atomic_write(previous, path.read_bytes())
        return
    os.replace(temporary, previous)
    _discard(temporary)  # a rename between two names of one file does nothing


def write_json(path: Path, value: Any) -> None:
    """Write human-readable JSON, atomically."""
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and the JSON-serialisable `meta` to one file.

    Raises:
        CheckpointError: a tensor has values that are not finite; nothing is written.
        OSError: see `atomic_write`.
    """
    if (name := not_finite(tensors)) is not None:
        kept = "; what it held before is kept" if Path(path).exists() else ""
        raise CheckpointError(f"{path} was not written: {name!r} has values that are not finite{kept}")
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    text = json.dumps({"format": FORMAT, **meta}, sort_keys=True)
    header = {_HEADER: f"{_digest(tensors, text)} {text}"}  # one entry: safetensors mixes several by hash
    atomic_write(Path(path), safetensors.torch.save(tensors, metadata=header))


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises CheckpointError, naming the file, if it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {path.parent} the directory of a run?") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the `meta` that `save` wrote, with the tensors in separately allocated memory.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint of this package, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # A copy starts at an aligned address, as a tensor that was computed does; a view of the file starts
            # anywhere, and products of the same numbers then round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # what the library raises depends on where the damage is
        reason = str(error) or type(error).__name__
        raise DamagedError(f"{path} is damaged or is no checkpoint: {reason}. Use another checkpoint") from None
    if _HEADER not in header:
        raise DamagedError(f"{path} is a safetensors file, but no checkpoint of metarl")
    digest, _, text = header[_HEADER].partition(" ")
    try:
        meta = json.loads(text)
        newer = meta["format"] > FORMAT
        checked = digest == _digest(tensors, text)
    except Exception as error:
        raise DamagedError(f"{path} is damaged: {error!r}. Use another checkpoint of the run") from None
    if newer:
        raise CheckpointError(f"{path} has format {meta['format']}, this version reads up to {FORMAT}: upgrade metarl")
    if not checked:
        raise DamagedError(f"{path} is damaged: its checksum does not match. Use another checkpoint of the run")
    return tensors, meta


@contextlib.contextmanager
def reading(path: Path, tensors: dict[str, Tensor]) -> Iterator[None]:
    """A block that builds objects from the file at `path`: missing or wrong entries in its header become one error that
    names the file, and nothing much larger than its `tensors` may be allocated."""
    try:
        with limited_to(sum(value.numel() for value in tensors.values())):
            yield
    except KeyError as error:
        raise DamagedError(f"{path} is damaged: its header lacks {error}") from error
    except Exception as error:
        if isinstance(error, CheckpointError) and str(path) in str(error):
            raise
        kind = type(error) if isinstance(error, CheckpointError) else DamagedError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{path} does not fit: {reason}") from error


class limited_to(TorchDispatchMode):
    """A block in which tensors created by size may hold `numbers` numbers in total, with a margin.

    A header that claims layers of a billion units is refused before memory is allocated.
    """

    def __init__(self, numbers: int):
        super().__init__()
        self.left = _MUCH + 4 * numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        at = 1 if func.overloadpacket.__name__.startswith("new_") else 0
        size = args[at] if len(args) > at and isinstance(args[at], list | tuple) else ()
        if all(isinstance(n, int) for n in size):
            self.left -= math.prod(size)
            if self.left < 0:
                raise DamagedError(f"the header claims tensors like {tuple(size)}, far larger than the file's own")
        return func(*args, **(kwargs or {}))


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# States


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinite values, or None."""
    return next((n for n, x in tensors.items() if x.is_floating_point() and not bool(x.isfinite().all())), None)


def not_finite_in(state: Any) -> str | None:
    """Likewise, of a state."""
    return not_finite(pack_state(state)[0]) if dataclasses.is_dataclass(state) else None


def in_own_memory(state: S) -> S:
    """The same state, with no tensor a view of another.

    Products of the same numbers can round differently at another alignment. A loaded state has its own memory, so a
    state that was never saved needs it too for both to continue with the same bits.
    """
    return _mapped(state, own_memory)


def own_memory(value: Tensor) -> Tensor:
    """The tensor itself, or a copy if it is a view of another."""
    whole = value.is_contiguous() and value.storage_offset() == 0
    return value if whole else value.clone(memory_format=torch.contiguous_format)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Data with `function` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _mapped(x, function) for name, x in value.items()}
    if isinstance(value, list):
        return [_mapped(x, function) for x in value]
    if isinstance(value, tuple):
        parts = [_mapped(x, function) for x in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _mapped(getattr(value, field.name), function) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value


def pack_state(state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state (a dataclass of data) -> its tensors, and the rest as JSON-serialisable data.

    Data are tensors, numbers, strings and None, and lists, tuples, dicts and dataclasses of data. Tensors, and dicts
    that contain only tensors, are stored under their field's name; the structure of any other nesting is part of the
    rest.

    Raises:
        TypeError: something is not data; the message names where.
    """
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif isinstance(value, dict) and all(isinstance(x, Tensor) for x in value.values()):
            tensors |= {f"{field.name}/{name}": x for name, x in value.items()}
        else:
            rest[field.name] = _packed(field.name, value, tensors)
    return tensors, rest


def _packed(place: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """The structure of data; its tensors are added to `tensors`, keyed by their path."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[place] = value
        return {"tensor": place}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: _packed(f"{place}/{name}", x, tensors) for name, x in value.items()}}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(f"{place}/{i}", x, tensors) for i, x in enumerate(value)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {"dataclass": {name: _packed(f"{place}/{name}", getattr(value, name), tensors) for name in names}}
    raise TypeError(f"a state is data, but {place} is {value!r}: use tensors, numbers, strings, None, and lists, "
                    "tuples, dicts (with string keys) and dataclasses of these")  # fmt: skip


def _unpacked(place: str, value: Any, like: Any, tensors: dict[str, Tensor], device: torch.device | str) -> Any:
    """The inverse of `_packed`; the types of dataclasses and named tuples are those of `like`, never a file's."""
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise DamagedError(f"{place!r} has the structure {sorted(value)}, which is none")
    ((kind, inner),) = value.items()
    if kind == "tensor" and isinstance(inner, str):
        return tensors[inner].to(device)
    if kind in ("list", "tuple") and isinstance(inner, list):
        own = list(like) if isinstance(like, list | tuple) else []
        at = [own[min(i, len(own) - 1)] if own else None for i in range(len(inner))]
        parts = [_unpacked(f"{place}/{i}", x, at[i], tensors, device) for i, x in enumerate(inner)]
        if hasattr(like, "_fields") and kind == "tuple":
            return type(like)(*parts)
        return parts if kind == "list" else tuple(parts)
    if kind in ("dict", "dataclass") and isinstance(inner, dict):
        own_of = like if isinstance(like, dict) else {name: getattr(like, name, None) for name in inner}
        named = {n: _unpacked(f"{place}/{n}", x, own_of.get(n), tensors, device) for n, x in inner.items()}
        if kind == "dict":
            return named
        if dataclasses.is_dataclass(like) and not isinstance(like, type):
            return type(like)(**named)
        raise DamagedError(f"{place!r} is a dataclass of a type that the state before training does not have")
    raise DamagedError(f"{place!r} has the structure {kind!r}, which is none")


def on_device(state: S, device: torch.device | str) -> S:
    """A copy of a state with its tensors on `device`."""
    return _mapped(state, lambda x: x.detach().to(device, copy=True))


def _in_structure(value: Any) -> set[str]:
    """The paths of the tensors in a packed structure."""
    if isinstance(value, list):
        return set().union(*map(_in_structure, value))
    if not isinstance(value, dict):
        return set()
    own = {value["tensor"]} if isinstance(value.get("tensor"), str) and len(value) == 1 else set()
    return own.union(*map(_in_structure, value.values()))


def unpack_state(
    kind: type[S], tensors: dict[str, Tensor], rest: dict[str, Any], like: S, device: torch.device | str
) -> S:
    """The inverse of `pack_state`.

    Args:
        like: a state of the right shapes.

    Raises:
        CheckpointError: the tensors are not those of `like`, or not finite.
    """
    expected, counters = pack_state(like)
    if rest.keys() != counters.keys():
        raise CheckpointError(f"the checkpoint holds the counters {sorted(rest)}, this learner has {sorted(counters)}")
    nested, nested_in_like = _in_structure(list(rest.values())), _in_structure(list(counters.values()))
    shapes = {name: tuple(x.shape) for name, x in tensors.items() if name not in nested}
    wanted = {name: tuple(x.shape) for name, x in expected.items() if name not in nested_in_like}
    if shapes != wanted:
        differing = sorted(n for n in {*shapes, *wanted} if shapes.get(n) != wanted.get(n))
        got, want = ({n: s.get(n) for n in differing} for s in (shapes, wanted))
        raise CheckpointError(f"the checkpoint holds tensors of the shapes {got}, this learner needs {want}")
    check_values({name: tensors[name] for name in shapes}, expected)
    check_values({name: tensors[name] for name in nested}, tensors)
    for name, start in counters.items():
        if type(start) is int and (type(rest[name]) is not int or rest[name] < 0):
            raise DamagedError(f"the checkpoint says {name}={rest[name]!r}, which is no count")
    values = {n: _unpacked(n, x, getattr(like, n), tensors, device) for n, x in rest.items()}
    for field in dataclasses.fields(like):  # type: ignore[arg-type]
        prefix = field.name + "/"
        if field.name in tensors:
            values[field.name] = tensors[field.name].to(device)
        elif field.name not in rest:
            # In the order of `like`: the file sorts by name, and sums over parameters follow the dict's order.
            named = {n: tensors[n].to(device) for n in expected if n.startswith(prefix)}
            values[field.name] = {name.removeprefix(prefix): value for name, value in named.items()}
    return kind(**values)


def check_values(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise DamagedError if a tensor's type differs from the `expected` one of that name, or a value is not finite."""
    for name, value in tensors.items():
        if value.dtype != expected[name].dtype:
            raise DamagedError(f"{name!r} holds {value.dtype}, which should be {expected[name].dtype}")
    if (bad := not_finite(tensors)) is not None:
        raise DamagedError(f"{bad!r} has values that are not finite")
