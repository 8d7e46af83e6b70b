"""Models that stable-baselines3 saved: theirs load, and one that would run other code is refused."""

import base64
import json
import pickle
import re
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_runs import same_params, tiny

import metarl
from metarl import MetaLearner
from metarl.policies.cnn import CNNPolicy
from metarl.policies.mlp import MLPPolicy
from metarl.policies.module import ModulePolicy
from metarl.policies.spaces import Spaces
from metarl.policies.stacked_module import StackedModule
from metarl.sb3 import from_sb3, to_sb3


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def with_bomb(path: Path, target: Path, key: str) -> None:
    """Put a pickle that makes the file `target` into a saved model."""
    rewrite(path, key, {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Bomb(target))).decode()})


def rewrite(path: Path, key: str, value: Any) -> None:
    """Set an entry of a saved model."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(files["data"])
    data[key] = value
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"data": json.dumps(data).encode()}).items():
            archive.writestr(name, content)


@pytest.mark.parametrize("key", ["policy_class", "an_entry_of_its_own"])
def test_a_model_that_runs_code_is_refused(tmp_path, key):
    path, target = tmp_path / "m.zip", tmp_path / "exploded"
    PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu").save(path)
    assert from_sb3(path).params  # before
    with_bomb(path, target, key)
    for given in (path, str(tmp_path / "m")):
        with pytest.raises(ValueError, match=rf"m\.zip needs pathlib.* for its {key}, .*pass trust=True"):
            from_sb3(given)
    assert not target.exists()
    if key != "policy_class":
        from_sb3(path, trust=True)
        assert target.exists()  # the control: this is what loading does


def test_a_schedule_of_the_users_own_needs_trust(tmp_path):
    PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu", learning_rate=lambda x: x).save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"for its l.*pass trust=True, or load it yourself"):
        from_sb3(tmp_path / "m")
    assert from_sb3(tmp_path / "m", trust=True).params


def test_models_of_theirs_and_of_ours_need_none(tmp_path):
    TD3("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save(tmp_path / "td3")
    assert from_sb3(tmp_path / "td3", algorithm="td3", std=0.3).params
    learner = tiny(normalize_obs=True)  # whose policy becomes a features extractor of ours
    for one in (learner, tiny()):
        to_sb3(one, device="cpu").save(tmp_path / "ours")
        assert from_sb3(tmp_path / "ours").params
    assert same_params(from_sb3(tmp_path / "ours").params, from_sb3(to_sb3(tiny(), device="cpu")).params)


def test_a_file_that_is_not_there_is_named_as_it_was_given(tmp_path):
    for trust in (False, True):
        with pytest.raises(FileNotFoundError, match=r"there is no model .*/nowhere\.zip$"):
            from_sb3(tmp_path / "nowhere.zip", trust=trust)
        with pytest.raises(ValueError, match=r"nowhere\.pkl' is no file that VecNormalize\.save wrote: there is no"):
            from_sb3(to_sb3(tiny(), device="cpu"), vec_normalize=tmp_path / "nowhere.pkl", trust=trust)


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "m.zip").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"m\.zip is no model that stable-baselines3 saved"):
        from_sb3(tmp_path / "m.zip")


def test_what_our_modules_import_is_not_ours_to_call(tmp_path):
    """`metarl.sb3.policies` imports MetaLearner, which would import the package that its family names."""
    PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu").save(tmp_path / "m.zip")
    call = b"cmetarl.sb3.policies\nMetaLearner\n(S'maml_trpo'\nS'gym:package_of_a_header:Env-v0'\ntR."
    rewrite(tmp_path / "m.zip", "own", {":type:": "x", ":serialized:": base64.b64encode(call).decode()})
    with pytest.raises(ValueError, match=r"needs metarl\.sb3\.policies\.MetaLearner for its own, .*trust=True"):
        from_sb3(tmp_path / "m.zip")


def test_the_id_of_an_environment_in_a_model_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "package_of_a_header.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu").save(tmp_path / "m.zip")
    rewrite(tmp_path / "m.zip", "env", "package_of_a_header:Env-v0")
    with pytest.raises(ValueError, match=r"needs 'package_of_a_header:Env-v0' for its env, .*pass trust=True"):
        from_sb3(tmp_path / "m.zip")
    with pytest.raises(RuntimeError, match="imported"):  # the control: this is what loading does
        from_sb3(tmp_path / "m.zip", trust=True)


def test_the_file_of_a_vec_normalize_runs_no_code(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = PPO("MlpPolicy", env, n_steps=64, device="cpu")
    model.learn(64)
    path, target = tmp_path / "normalize.pkl", tmp_path / "exploded"
    env.save(path)
    found, same = from_sb3(model.policy, vec_normalize=path), from_sb3(model.policy, vec_normalize=env)
    assert same_params(found.params, same.params)
    path.write_bytes(pickle.dumps(Bomb(target)))
    for given in (path, str(path)):
        with pytest.raises(ValueError, match=r"normalize\.pkl needs pathlib.*pass trust=True, or load it yourself"):
            from_sb3(model.policy, vec_normalize=given)
    assert not target.exists()
    with pytest.raises(ValueError, match=r"normalize\.pkl' is no file that VecNormalize\.save wrote"):
        from_sb3(model.policy, vec_normalize=path, trust=True)
    assert target.exists()  # the control: this is what loading does


def test_the_suffix_of_a_vec_normalize_may_be_left_out(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = PPO("MlpPolicy", env, n_steps=64, device="cpu")
    env.save(str(tmp_path / "normalize.pkl"))
    for trust in (False, True):
        found = from_sb3(model.policy, vec_normalize=tmp_path / "normalize", trust=trust)
        assert same_params(found.params, from_sb3(model).params)


@pytest.mark.parametrize(
    ("what", "said"),
    [(torch.nn.Tanh(), " needs torch.*Tanh, .*pass trust=True"),
     (gym.spaces.Discrete(2), "' is no file that .*statistics are none"),
     (3.0, "' is no file that .*statistics are none")],
    ids=["network", "space", "number"],
)  # fmt: skip
def test_a_vec_normalize_holds_statistics_and_spaces_only(tmp_path, what, said):
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = PPO("MlpPolicy", env, n_steps=64, device="cpu")
    env.obs_rms = what
    env.save(str(tmp_path / "normalize.pkl"))
    with pytest.raises(ValueError, match=rf"normalize\.pkl{said}"):
        from_sb3(model.policy, vec_normalize=tmp_path / "normalize.pkl")


def test_what_is_checked_is_what_is_loaded(tmp_path, monkeypatch):
    path, target = tmp_path / "m.zip", tmp_path / "exploded"
    PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu").save(path)
    load = PPO.load.__func__

    def swapped(kind: type, *args: Any, **more: Any) -> Any:
        with_bomb(path, target, "own")  # between the two
        return load(kind, *args, **more)

    monkeypatch.setattr(PPO, "load", classmethod(swapped))
    assert from_sb3(path).params and not target.exists()
    from_sb3(path, trust=True)
    assert target.exists()  # the control


# ---------------------------------------------------------------------------------------------------------------------
# Sizes, and older files


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


HUGE: dict[str, tuple[Any, str]] = {
    "bytes": (Calls(bytearray, 10**12), "asks for more than it holds: bytearray"),
    "numbers": (Calls(set, Calls(range, 10**10)), "asks for more than it holds: range"),
    "array": (Calls(np.ndarray, (10**7, 10**6)), "asks for more than it holds: ndarray"),
    "empty array": (Calls(np.zeros(1).__reduce__()[0], np.ndarray, (10**7, 10**6), b"b"), "_reconstruct"),
    "layer": (Calls(torch.nn.Linear, 10**6, 10**6), "it calls torch.nn.modules.linear.Linear"),
    "buffer": (Calls(RolloutBuffer, 10**9, None, None), "it calls stable_baselines3.common.buffers.RolloutBuffer"),
    "space": (Calls(gym.spaces.Box, 0.0, 1.0, (10**7, 10**6)), "it calls gymnasium.spaces.box.Box"),
    "scalar": (Calls(np.float64(1).__reduce__()[0], np.dtype("V1000000000")), "asks for more than it holds: scalar"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "m.zip"
    PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu").save(path)
    return path


def serialized(value: Any, protocol: int = 4) -> dict[str, str]:
    return {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(value, protocol)).decode()}


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("name", HUGE)
def test_a_pickle_asks_for_nothing_larger_than_itself(tmp_path, small, name, protocol):
    what, said = HUGE[name]
    path = tmp_path / "m.zip"
    path.write_bytes(small.read_bytes())
    rewrite(path, "own", serialized(what, protocol))
    with pytest.raises(ValueError, match=rf"m\.zip cannot be loaded: its own is no pickle .*{re.escape(said)}"):
        from_sb3(path)


@pytest.mark.parametrize("code", [b"(I1000000\nI1000000\nitorch.nn.modules.linear\nLinear\n.",
                                  b"(ctorch.nn.modules.linear\nLinear\nI1000000\nI1000000\no."])  # fmt: skip
def test_nor_by_the_ways_of_old_pickles(tmp_path, small, code):
    path = tmp_path / "m.zip"
    path.write_bytes(small.read_bytes())
    rewrite(path, "own", {":type:": "x", ":serialized:": base64.b64encode(code).decode()})
    with pytest.raises(ValueError, match=r"it calls torch\.nn\.modules\.linear\.Linear"):
        from_sb3(path)


@pytest.mark.parametrize("sizes", [[10**6, 10**6], {"pi": [8], "vf": [10**6, 10**6]}])
def test_a_network_that_the_settings_claim_is_no_larger_than_the_file(tmp_path, small, sizes):
    path = tmp_path / "m.zip"
    path.write_bytes(small.read_bytes())
    rewrite(path, "policy_kwargs", {"net_arch": sizes})
    with pytest.raises(ValueError, match=r"m\.zip asks for a network or buffers that are far larger than the file"):
        from_sb3(path)


def test_nor_are_the_buffers(tmp_path, small):
    path = tmp_path / "m.zip"
    path.write_bytes(small.read_bytes())
    rewrite(path, "n_steps", 10**15)
    with pytest.raises(ValueError, match=r"m\.zip asks for a network or buffers that are far larger than the file"):
        from_sb3(path)


def test_nor_what_an_archive_unpacks_to(tmp_path):
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b" " * (2**27))
    with pytest.raises(ValueError, match=r"m\.zip is no model .*: it unpacks to 134,217,728 bytes"):
        from_sb3(path)


OLD = {MLPPolicy: "metarl.policies", ModulePolicy: "metarl.policies", CNNPolicy: "metarl.policies_cnn",
       StackedModule: "metarl.modules", Spaces: "metarl.spaces"}  # fmt: skip
"""Where the classes of a converted policy were."""


@pytest.mark.parametrize("kind", ["module", "normalised", "cnn"])
@pytest.mark.parametrize("trust", [False, True])
def test_models_of_earlier_versions_load(tmp_path, monkeypatch, kind, trust):
    if kind == "cnn":
        family = metarl.make("PointNavigationPixels-v0", size=8, horizon=4)
        learner = MetaLearner("maml_vpg", family, channels=(2,), hidden=(4,), device="cpu")
    else:
        own = {"policy": torch.nn.Linear(2, 2)} if kind == "module" else {"normalize_obs": True}
        learner = tiny(**own).learn(1, eval_every=0)
    model = to_sb3(learner, device="cpu")
    with monkeypatch.context() as patch:
        for found, module in OLD.items():
            patch.setattr(found, "__module__", module)
            if module not in sys.modules:
                patch.setitem(sys.modules, module, types.ModuleType(module))
            patch.setattr(sys.modules[module], found.__name__, found, raising=False)
        model.save(tmp_path / "m.zip")
    names = {"module": "ModulePolicy", "normalised": "MLPPolicy", "cnn": "CNNPolicy"}
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        data = json.loads(archive.read("data"))
    text = base64.b64decode(data["policy_kwargs"][":serialized:"])
    assert names[kind].encode() in text and b"metarl.policies.mlp" not in text  # the control: it names the old place
    found, expected = from_sb3(tmp_path / "m", trust=trust), from_sb3(model)
    assert same_params(found.params, expected.params)
