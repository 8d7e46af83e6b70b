"""Whether a model that stable-baselines3 saved holds only what its own models hold.

Its files are pickles in a zip archive, and loading one runs whatever it names. Before that happens the pickles are
read here with nothing at hand but the classes of spaces, arrays, networks and stable-baselines3 itself.
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
import torch
from stable_baselines3.common.buffers import BaseBuffer
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


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = getattr(sys.modules.get(module), name, None)  # nothing is imported for it
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # a pickle inside of the pickle
            return lambda data: torch.load(io.BytesIO(data), weights_only=True)
        if name in _PLAIN.get(module, ()) and found is not None:
            return found
        if isinstance(found, type) and (issubclass(found, _KINDS) or module in _OURS):
            return found
        raise ValueError(f"{module}.{name}")


def check_plain(path: Path) -> None:
    """Raise ValueError where loading the model at `path` would run code that is not stable-baselines3's."""
    path = path if path.exists() else path.with_name(path.name + ".zip")
    if not path.exists():
        return  # stable-baselines3 says so
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data")) if "data" in archive.namelist() else {}
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path} is no model that stable-baselines3 saved: {error}") from None
    for key, value in data.items():
        if isinstance(value, dict) and ":serialized:" in value:
            try:
                _Plain(io.BytesIO(base64.b64decode(value[":serialized:"]))).load()
            except Exception as error:  # whatever a pickle can do wrong
                raise ValueError(
                    f"{path} needs {error} for its {key}, which is neither stable-baselines3's nor imported already. "
                    "If you trust the file, pass trust=True, or load it yourself and pass the model"
                ) from None
