"""Files that stable-baselines3 saved, read without running code that they choose.

Its models are pickles in a zip archive, the file of a `VecNormalize` is one pickle, and loading a pickle runs whatever
it names. Here they are read with nothing at hand but the classes of spaces, arrays, networks and stable-baselines3
itself, none of which is imported for it.
"""

import base64
import io
import json
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


class _Plain(pickle.Unpickler):
    """Reads a pickle with these kinds of classes and plain data."""

    def __init__(self, data: bytes, kinds: tuple[type, ...] = _KINDS):
        super().__init__(io.BytesIO(data))
        self._kinds = kinds

    def find_class(self, module: str, name: str) -> Any:
        found = getattr(sys.modules.get(module), name, None)  # nothing is imported for it
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # a pickle inside of the pickle
            return lambda data: torch.load(io.BytesIO(data), weights_only=True)
        if name in _PLAIN.get(module, ()) and found is not None:
            return found
        # Not what a module imports from elsewhere: MetaLearner makes, and so imports, the family that it is told.
        ours = module in _OURS and getattr(found, "__module__", None) == module
        if isinstance(found, type) and (issubclass(found, self._kinds) or ours):
            return found
        raise NotPlainError(f"{module}.{name}")


def checked_model(path: Path) -> io.BytesIO:
    """The content of the model at `path`, for stable-baselines3 to load: what is checked is what is loaded. Raises
    ValueError where loading it would run code that is not stable-baselines3's."""
    path = _with_suffix(path, ".zip")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            data = json.loads(archive.read("data").decode()) if "data" in archive.namelist() else {}
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path} is no model that stable-baselines3 saved: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is no model that stable-baselines3 saved: its data is {data!r:.40}")
    if "env" in data:  # which loading would make, importing its package; `save` never writes one
        raise ValueError(f"{path} needs {data['env']!r:.80} for its env, {_REFUSED}, or load it yourself and pass the "
                         "model")  # fmt: skip
    for key, value in data.items():
        if isinstance(value, dict) and ":serialized:" in value:
            try:
                _Plain(base64.b64decode(value[":serialized:"])).load()
            except Exception as error:  # whatever a pickle can do wrong
                raise ValueError(
                    f"{path} needs {error} for its {key}, {_REFUSED}, or load it yourself and pass the model"
                ) from None
    return io.BytesIO(content)


def read_vec_normalize(path: Path, trust: bool) -> Any:
    """What `VecNormalize.save` wrote to `path`. Raises ValueError where that would run other code than
    stable-baselines3's, unless `trust`, or where it is no such file."""
    wrong = f"vec_normalize={str(path)!r} is no file that VecNormalize.save wrote"
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
