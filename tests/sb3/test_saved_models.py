"""Models that stable-baselines3 saved: theirs load, and one that would run other code is refused."""

import base64
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO, TD3
from tiny_runs import same_params, tiny

from metarl.sb3 import from_sb3, to_sb3


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def with_bomb(path: Path, target: Path, key: str) -> None:
    """Put a pickle that makes the file `target` into a saved model."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(files["data"])
    data[key] = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Bomb(target))).decode()}
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
