"""What is on disk and how it comes back.

A checkpoint is one safetensors file: tensors, and in its header a JSON text with everything else. One file can be
replaced in one atomic step; loading it runs no code. A checksum over both finds damage that the format does not.
Equal states make equal files. A checksum is no signature: whoever writes a file can compute one, so what a header says
is checked before it is acted on (`reading`, `limited_to`; `metarl.families.saved` for what it may import).
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
"""Seconds after which a temporary file beside a file that is written counts as one that a killed process left."""
_MUCH = 2**22
"""Numbers that loading may allocate beyond a multiple of what the file holds (16 MB in float32)."""
S = TypeVar("S")


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of the right kind."""


class DamagedError(CheckpointError):
    """A file whose content cannot be used at all, so that an older one has to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def atomic_write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file that is either old or new, never half: temporary file, sync, rename.

    Args:
        mode: of a new file, less what the umask takes away.

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
    """Delete what killed processes left beside the files `names` while they were writing them."""
    with os.scandir(directory) as entries:
        found = [(e.path, m["name"]) for e in entries if (m := _TEMPORARY.fullmatch(e.name))]
    for path, name in found:
        with contextlib.suppress(OSError):  # gone already, or somebody else's
            if name in names and time.time() - os.stat(path).st_mtime >= older_than:
                os.unlink(path)


def keep_previous(path: Path, previous: Path) -> None:
    """Give the file at `path`, about to be replaced, the name `previous` as well; `path` is there all the time."""
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
    """Readable JSON, atomically."""
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and the JSON-able `meta` to one file.

    Raises:
        CheckpointError: a tensor has values that are not finite; nothing is written then.
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
    """Raises CheckpointError naming the file if it is missing or is no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is {path.parent} the directory of a run?") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the `meta` that `save` wrote, the tensors in memory of their own.

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint of this package, or of a newer format.
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
    """Make what the file at `path` says: whatever its header lacks or misstates ends in one error that names the file,
    and nothing much larger than its `tensors` is allocated on its word."""
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
    """Within it, tensors made of a given size may have `numbers` numbers together, with a margin.

    A header that claims layers of a billion units is refused before memory is asked for.
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
    """The name of the first tensor with NaN or infinite values, None if there is none."""
    return next((n for n, x in tensors.items() if x.is_floating_point() and not bool(x.isfinite().all())), None)


def not_finite_in(state: Any) -> str | None:
    """Likewise, of a state."""
    return not_finite(pack_state(state)[0]) if dataclasses.is_dataclass(state) else None


def in_own_memory(state: S) -> S:
    """The same state with no tensor that is a view into another.

    Products round differently for the same numbers at another alignment. A loaded state has its own memory, so the
    one that was never saved needs it too, for both to go on with the same bits.
    """
    return _mapped(state, own_memory)


def own_memory(value: Tensor) -> Tensor:
    """The tensor itself, or a copy where it is a view into another."""
    whole = value.is_contiguous() and value.storage_offset() == 0
    return value if whole else value.clone(memory_format=torch.contiguous_format)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Data with `function` of every tensor in it."""
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
    """A state, a dataclass of data -> tensors and JSON-able rest.

    Data are tensors, numbers, words and None, and lists, tuples, dicts and dataclasses of data. Tensors, and dicts of
    nothing else, go by their field's name; of any other nesting the rest has the structure.

    Raises:
        TypeError: something that is no data; the message names its place.
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
    """The structure of data; its tensors go into `tensors`, under their places."""
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
    raise TypeError(f"a state is data, and {place} is {value!r}: keep tensors, numbers, words, None, and lists, "
                    "tuples, dicts (by words) and dataclasses of these")  # fmt: skip


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
    """The places of the tensors in a packed structure."""
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
    """Raise DamagedError for tensors of other types than the `expected` ones of the same names, or not finite ones."""
    for name, value in tensors.items():
        if value.dtype != expected[name].dtype:
            raise DamagedError(f"{name!r} holds {value.dtype}, which should be {expected[name].dtype}")
    if (bad := not_finite(tensors)) is not None:
        raise DamagedError(f"{bad!r} has values that are not finite")
