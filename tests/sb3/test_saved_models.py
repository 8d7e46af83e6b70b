"""Models that stable-baselines3 saved: theirs load, and one that would run other code is refused."""

import base64
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_runs import same_params, tiny

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
