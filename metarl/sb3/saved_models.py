"""Files that stable-baselines3 saved, read without running code that they choose.

Its models are pickles in a zip archive, the file of a `VecNormalize` is one pickle, and loading a pickle runs whatever
it names. Here they are read with nothing at hand but the classes of spaces, arrays, networks and stable-baselines3
itself, none of which is imported for it. Nothing that a pickle asks for is larger than what its file holds, whatever
sizes it names.
"""

import base64
import io
import json
import math
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from metarl.checkpoint import DamagedError, limited_to

_PLAIN = {
    "builtins": {"set", "frozenset", "slice", "complex", "range", "bytearray"},
    "collections": {"OrderedDict", "deque", "defaultdict"},
    "numpy": {"dtype", "ndarray", "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter"},
    "numpy.random._pickle": {"__generator_ctor", "__bit_generator_ctor"},
    "numpy.random._pcg64": {"PCG64"},
    "numpy.random.bit_generator": {"SeedSequence", "__pyx_unpickle_SeedSequence"},
    "stable_baselines3.common.utils": {"FloatSchedule", "ConstantSchedule", "LinearSchedule"},
    "stable_baselines3.common.type_aliases": {"TrainFreq", "TrainFrequencyUnit"},
    "stable_baselines3.common.running_mean_std": {"RunningMeanStd"},
    "stable_baselines3.common.vec_env.vec_normalize": {"VecNormalize"},
}
_PLAIN |= {f"numpy.{core}.numeric": {"_frombuffer"} for core in ("core", "_core")}
_PLAIN |= {f"numpy.{core}.multiarray": {"_reconstruct", "scalar"} for core in ("core", "_core")}
_OURS = (
    "metarl.policies.mlp",
    "metarl.policies.module",
    "metarl.policies.cnn",
    "metarl.policies.spaces",
    "metarl.policies.stacked_module",
    "metarl.sb3.policies",
)
"""What `to_sb3` puts into a model."""
_KINDS = (gym.Space, nn.Module, BaseBuffer, torch.optim.Optimizer)
_REFUSED = "which is neither stable-baselines3's nor imported already. If you trust the file, pass trust=True"


class NotPlainError(ValueError):
    """A pickle that names something else; the message is its name."""


_MOVED = {
    ("metarl.policies", "MLPPolicy"): "metarl.policies.mlp",
    ("metarl.policies", "ModulePolicy"): "metarl.policies.module",
    ("metarl.policies_cnn", "CNNPolicy"): "metarl.policies.cnn",
    ("metarl.modules", "StackedModule"): "metarl.policies.stacked_module",
    ("metarl.spaces", "Spaces"): "metarl.policies.spaces",
    ("metarl.spaces", "Image"): "metarl.policies.spaces",
}
"""Where the classes are that models of earlier versions name elsewhere."""
_MARGIN = 2**26
"""Bytes that the entries of a small archive may have when they are unpacked."""


_InPython: Any = pickle._Unpickler  # whose steps can be looked at


class _Plain(_InPython):
    """Reads a pickle with these kinds of classes and plain data.

    Classes of those kinds are made as pickle makes objects, without their constructors, and what is called gets no
    sizes beyond the pickle's own.
    """

    def __init__(self, data: bytes, kinds: tuple[type, ...] = _KINDS):
        super().__init__(io.BytesIO(data))
        self._kinds, self._most = kinds, len(data)

    def find_class(self, module: str, name: str) -> Any:
        module = _MOVED.get((module, name), module)
        found = getattr(sys.modules.get(module), name, None)  # nothing is imported for it
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # a pickle inside of the pickle
            return _tensors_from
        if (name in _PLAIN.get(module, ()) and found is not None) or isinstance(found, torch.dtype):
            return found
        # Not what a module imports from elsewhere: MetaLearner makes, and so imports, the family that it is told.
        ours = module in _OURS and getattr(found, "__module__", None) == module
        if isinstance(found, type) and (issubclass(found, self._kinds) or ours):
            return found
        raise NotPlainError(f"{module}.{name}")

    def _check_call(self, function: Any, args: tuple[Any, ...]) -> None:
        """Raise ValueError for what would allocate more than the pickle holds, or is no way to unpickle an object."""
        name = getattr(function, "__name__", "")
        if isinstance(function, type) and name not in _PLAIN.get(function.__module__, ()) and name != "dtype":
            raise ValueError(f"it calls {function.__module__}.{name}")
        size = 0
        if name in ("_reconstruct", "ndarray"):
            size = math.prod(args[1]) if name == "_reconstruct" and args[2] == b"b" else self._most + 1
        elif name == "_rebuild_tensor_v2":
            held = getattr(args[0], "_untyped_storage", args[0]).nbytes()  # the attribute: a method of it warns
            size = self._most + 1 if math.prod(args[2]) > held else 0
        elif name == "range":
            size = len(range(*args))
        elif name == "bytearray":
            size = args[0] if args and isinstance(args[0], int) else 0
        elif name == "scalar":
            size = 0 if len(args) == 2 else self._most + 1
        if size > self._most:
            raise ValueError(f"it asks for more than it holds: {name}{args!r:.60}")

    def load_reduce(self) -> None:
        self._check_call(self.stack[-2], self.stack[-1])
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check_new(self.stack[-2], self.stack[-1], {})
        super().load_newobj()

    def load_newobj_ex(self) -> None:
        self._check_new(self.stack[-3], self.stack[-2], self.stack[-1])
        super().load_newobj_ex()

    def _check_new(self, kind: Any, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        if more or (args and not issubclass(kind, tuple)):
            self._check_call(kind, args)

    def _instantiate(self, klass: Any, args: tuple[Any, ...]) -> None:
        self._check_call(klass, tuple(args))
        super()._instantiate(klass, args)

    dispatch = _InPython.dispatch | {
        pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_newobj, pickle.NEWOBJ_EX[0]: load_newobj_ex,
    }  # fmt: skip


class _Moved(pickle.Unpickler):
    """Reads any pickle, which may name classes where earlier versions had them."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(_MOVED.get((module, name), module), name)


def _tensors_from(data: bytes) -> Any:
    _check_archive(data)
    return torch.load(io.BytesIO(data), weights_only=True)


def _check_archive(content: bytes) -> None:
    """Raise ValueError if an archive is far larger when it is unpacked."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MARGIN + 20 * len(content):
            raise ValueError(f"it unpacks to {size:,} bytes")


def load_model(kind: Any, path: Path, trust: bool) -> Any:
    """The model of the class `kind` that stable-baselines3 saved to `path`, on the CPU. What is checked is what is
    loaded.

    Raises:
        ValueError: loading it would run code that is not stable-baselines3's, unless `trust`; or allocate far more than
            the file holds.
    """
    if not _with_suffix(path, ".zip").is_file():
        raise FileNotFoundError(f"there is no model {path}")
    path = _with_suffix(path, ".zip")
    content = path.read_bytes()
    data = _data(path, content)
    pickles = {key: base64.b64decode(value[":serialized:"]) for key, value in data.items()
               if isinstance(value, dict) and ":serialized:" in value}  # fmt: skip
    if trust:
        moved = {key: _Moved(io.BytesIO(x)).load() for key, x in pickles.items() if _names_moved(x)}
        return kind.load(io.BytesIO(content), device="cpu", custom_objects=moved)
    if "env" in data:  # which loading would make, importing its package; `save` never writes one
        raise ValueError(f"{path} needs {data['env']!r:.80} for its env, {_REFUSED}, or load it yourself and pass the "
                         "model")  # fmt: skip
    items = {key: _read_item(path, key, value) for key, value in pickles.items()}
    try:
        with limited_to(len(content) // 4):
            return kind.load(io.BytesIO(content), device="cpu", custom_objects=items)
    except (DamagedError, MemoryError) as error:
        raise ValueError(f"{path} asks for a network or buffers that are far larger than the file: {error}") from None


def _data(path: Path, content: bytes) -> dict[str, Any]:
    """What a saved model says of itself."""
    try:
        _check_archive(content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            data = json.loads(archive.read("data").decode()) if "data" in archive.namelist() else {}
    except (zipfile.BadZipFile, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no model that stable-baselines3 saved: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is no model that stable-baselines3 saved: its data is {data!r:.40}")
    return data


def _read_item(path: Path, key: str, data: bytes) -> Any:
    try:
        return _Plain(data).load()
    except NotPlainError as error:
        raise ValueError(f"{path} needs {error} for its {key}, {_REFUSED}, or load it yourself and pass the "
                         "model") from None  # fmt: skip
    except Exception as error:  # whatever a pickle can do wrong
        raise ValueError(f"{path} cannot be loaded: its {key} is no pickle of stable-baselines3's: {error}") from None


def _names_moved(data: bytes) -> bool:
    return any(module.encode() in data and name.encode() in data for module, name in _MOVED)


def read_vec_normalize(path: Path, trust: bool) -> Any:
    """What `VecNormalize.save` wrote to `path`. Raises ValueError where that would run other code than
    stable-baselines3's, unless `trust`, or where it is no such file."""
    wrong = f"vec_normalize={str(path)!r} is no file that VecNormalize.save wrote"
    if not _with_suffix(path, ".pkl").is_file():
        raise ValueError(f"{wrong}: there is no such file")
    try:
        if trust:
            found = load_from_pkl(path)
        else:
            found = _Plain(_with_suffix(path, ".pkl").read_bytes(), (gym.Space,)).load()
            if isinstance(found, VecNormalize) and not _has_statistics(found):
                raise TypeError("its observations' statistics are none")
    except NotPlainError as error:
        raise ValueError(f"{path} needs {error}, {_REFUSED}, or load it yourself and pass the VecNormalize") from None
    except Exception as error:  # whatever a pickle can do wrong
        raise ValueError(f"{wrong}: {error}") from None
    if not isinstance(found, VecNormalize):
        raise ValueError(f"{wrong}: it holds a {type(found).__name__}")
    return found


def _has_statistics(wrapper: VecNormalize) -> bool:
    found = vars(wrapper).get("obs_rms")  # absent without norm_obs
    return found is None or isinstance(found, dict) or (
        isinstance(found, RunningMeanStd) and isinstance(found.mean, np.ndarray) and isinstance(found.var, np.ndarray)
    )  # fmt: skip


def _with_suffix(path: Path, suffix: str) -> Path:
    """The file that stable-baselines3 reads for `path`."""
    return path if path.exists() else path.with_name(path.name + suffix)
