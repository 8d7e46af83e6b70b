"""A checkpoint from somebody else chooses neither a package to import nor a file to open, unless the user says so."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from tiny_runs import TINY, same_params, tiny

import metarl
from metarl import MetaLearner, checkpoint, cli
from metarl.checkpoint import CheckpointError
from metarl.families import registry, saved
from metarl.families.saved import untrusted_argument
from metarl.training.directory import CONFIG

PACKAGE = "a_package_that_leaves_a_mark"
ID = f"gym:{PACKAGE}:Marked-v0"
CODE = """
import os, pathlib, gymnasium
pathlib.Path(os.environ["MARK"]).touch()
gymnasium.register("Marked-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=4)
def family(**kwargs):
    import metarl
    return metarl.from_gymnasium("Marked-v0", {"g": [9.0, 10.0]}, id="Announced-v0")
"""
KWARGS = {"parameters": {"g": [9.0, 10.0]}}


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """A package that can be imported, and the file that it makes if it is."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{PACKAGE}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    yield tmp_path / "mark"
    gym.registry.pop("Marked-v0", None)


def shared(path: Path, id: str = ID, kwargs: Any = None, name: str = f"gym:{PACKAGE}:Marked-v0") -> Path:
    """A checkpoint whose header was rewritten by whoever shares it: its family's id and arguments."""
    made = metarl.make("gym:Pendulum-v1", **KWARGS, horizon=4)
    MetaLearner("maml_trpo", made, device="cpu", **TINY).save(path)
    tensors, meta = checkpoint.load(path)
    meta["family"] |= {"id": name, "made": {"id": id, "kwargs": KWARGS if kwargs is None else kwargs}}
    checkpoint.save(path, tensors, meta)
    return path


def run_of(path: Path) -> Path:
    """A run directory with such a checkpoint."""
    tiny().learn(1, run_dir=path, eval_every=0)
    shared(path / "latest.safetensors")
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps(config | {"iterations": 2}))
    return path


LOADS = {
    "load": lambda path: MetaLearner.load(path, device="cpu"),
    "run": lambda path: MetaLearner.load(run_of(path.parent / "run")),
    "start_from": lambda path: tiny().start_from(path),
    "resume": lambda path: cli.run(["train", "--resume", str(run_of(path.parent / "run"))]),
    "evaluate": lambda path: cli.run(["evaluate", str(path)]),
    "adapt": lambda path: cli.run(["adapt", str(path), "--task", "g=9"]),
    "render": lambda path: cli.run(["render", str(path)]),
    "train": lambda path: cli.run(["train", "maml_trpo", "PointNavigation-v0", "--start-from", str(path),
                                   "--out", str(path.parent / "out")]),
}  # fmt: skip


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("id", [ID, f"visible:{ID}"])
def test_nothing_is_imported_on_the_word_of_a_header(tmp_path, mark, load, id):
    path = shared(tmp_path / "l.safetensors", id)
    with pytest.raises(CheckpointError, match=f"asks to import '{PACKAGE}'.*family='.*' or trust=True.*--trust"):
        load(path)
    assert not mark.exists() and PACKAGE not in sys.modules


@pytest.mark.parametrize("allowed", [{"trust": True}, {"family": ID}], ids=["trust", "family"])
def test_what_the_user_names_is_imported(tmp_path, mark, allowed):
    learner = MetaLearner.load(shared(tmp_path / "l.safetensors"), device="cpu", **allowed)
    assert mark.exists() and learner.family.id == ID and learner.family.horizon == 4


@pytest.mark.parametrize("words", [["--trust"], ["--family", ID]])
def test_so_on_the_command_line(tmp_path, mark, words):
    argv = ["evaluate", str(shared(tmp_path / "l.safetensors")), "--tasks", "2", "--no-figures", "--threads", "1"]
    assert cli.run([*argv, *words]) == 0 and mark.exists()


def test_what_is_imported_already_is_used(tmp_path, mark):
    __import__(PACKAGE)
    assert MetaLearner.load(shared(tmp_path / "l.safetensors"), device="cpu").family.id == ID


def test_another_id_than_the_files_does_not_allow_the_files(tmp_path, mark):
    path = shared(tmp_path / "l.safetensors")
    with pytest.raises(ValueError):
        MetaLearner.load(path, "PendulumParams-v0", device="cpu")
    assert not mark.exists()


def announce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package announce a family, as an installed one does."""
    point = registry.importlib.metadata.EntryPoint("Announced-v0", f"{PACKAGE}:family", registry.ENTRY_POINT_GROUP)
    found = registry._entry_points()
    monkeypatch.setattr(registry, "_entry_points", lambda: {**found, point.name: point})


def test_installed_packages_are_not_imported_either(tmp_path, mark, monkeypatch):
    announce(monkeypatch)
    path = shared(tmp_path / "l.safetensors", "Announced-v0", {}, "Announced-v0")
    with pytest.raises(CheckpointError, match=f"asks to import '{PACKAGE}'"):
        MetaLearner.load(path)
    assert not mark.exists()
    assert MetaLearner.load(path, "Announced-v0", device="cpu").family.id == "Announced-v0" and mark.exists()


def test_a_registered_id_does_not_import_a_package_of_its_own(tmp_path, mark, monkeypatch):
    gym.register("Marked-v0", entry_point=f"{PACKAGE}:Missing", max_episode_steps=4)
    path = shared(tmp_path / "l.safetensors", "gym:Marked-v0", name="gym:Marked-v0")
    with pytest.raises(CheckpointError, match=f"asks to import '{PACKAGE}'"):
        MetaLearner.load(path)
    assert not mark.exists()


def forget(monkeypatch: pytest.MonkeyPatch, mark: Path) -> None:
    """As in another process."""
    gym.registry.pop("Marked-v0", None)
    monkeypatch.delitem(sys.modules, PACKAGE)
    mark.unlink()


@pytest.mark.parametrize("visible", [False, True])
def test_a_header_remembers_the_package_that_registered_an_id(tmp_path, mark, monkeypatch, visible):
    entry = CODE.replace("gymnasium.envs.classic_control:PendulumEnv", f"{PACKAGE}:Own")
    entry += "from gymnasium.envs.classic_control import PendulumEnv\nclass Own(PendulumEnv): pass\n"
    (tmp_path / "site" / f"{PACKAGE}.py").write_text(entry)
    __import__(PACKAGE)  # as users do, and then they name the id alone
    family = metarl.from_gymnasium("Marked-v0", {"g": [9.0, 10.0]}, visible=visible)
    id = f"{'visible:' * visible}gym:{PACKAGE}:Marked-v0"
    assert family.spec.id == id and family.id == id.replace(f"{PACKAGE}:", "")
    MetaLearner("maml_trpo", family, device="cpu", **TINY).learn(1, run_dir=tmp_path / "run", eval_every=0)
    forget(monkeypatch, mark)
    with pytest.raises(CheckpointError, match=f"asks to import '{PACKAGE}', for its family '{id}'"):
        MetaLearner.load(tmp_path / "run", device="cpu")
    with pytest.raises(CheckpointError):  # the id alone names no package
        MetaLearner.load(tmp_path / "run", id.replace(f"{PACKAGE}:", ""), device="cpu")
    assert not mark.exists()
    loaded = MetaLearner.load(tmp_path / "run", id, device="cpu")
    assert mark.exists() and loaded.family.id == family.id
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "run" / "latest.safetensors").read_bytes()


def test_a_run_from_before_the_header_had_the_package_goes_on(tmp_path, mark, recwarn):
    more = "from gymnasium.envs.classic_control import PendulumEnv\n"
    (tmp_path / "site" / f"{PACKAGE}.py").write_text(CODE + more)
    __import__(PACKAGE)
    gym.register("Own-v0", entry_point=f"{PACKAGE}:PendulumEnv", max_episode_steps=4)
    try:
        family = metarl.from_gymnasium("Own-v0", {"g": [9.0, 10.0]})
        assert family.spec.id == f"gym:{PACKAGE}:Own-v0"
        run = tmp_path / "run"
        MetaLearner("maml_trpo", family, device="cpu", **TINY).learn(1, run_dir=run, eval_every=0)
        config = json.loads((run / CONFIG).read_text())
        config["family"]["made"] = {"id": "gym:Own-v0", "kwargs": KWARGS}
        (run / CONFIG).write_text(json.dumps(config))
        tensors, meta = checkpoint.load(run / "latest.safetensors")
        meta["family"]["made"] = {"id": "gym:Own-v0", "kwargs": KWARGS}
        checkpoint.save(run / "latest.safetensors", tensors, meta)
        for given in (None, "gym:Own-v0", f"gym:{PACKAGE}:Own-v0", family):
            learner = MetaLearner.load(run, given, device="cpu")
        assert learner.learn(1, run_dir=run, eval_every=0).state.iteration == 2
        assert [w for w in recwarn if "saved with" in str(w.message)] == []
    finally:
        gym.registry.pop("Own-v0", None)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [("gym:X-v0", "gym:X-v0", True), ("gym:a:X-v0", "gym:X-v0", True), ("gym:X-v0", "gym:a:X-v0", True),
     ("visible:gym:a:X-v0", "visible:gym:X-v0", True), ("gym:a:X-v0", "gym:b:X-v0", False),
     ("gym:a:X-v0", "gym:a:X-v1", False), ("visible:gym:X-v0", "gym:X-v0", False), ("X-v0", "gym:X-v0", False)],
)  # fmt: skip
def test_ids_are_the_same_with_and_without_their_package_but_not_with_another(a, b, same):
    made = {"id": a, "kwargs": {}}, {"id": b, "kwargs": {}}
    assert saved.same_id(a, b) is saved.same_made(*made) is saved._names(a, b) is same


def test_gymnasiums_ids_and_those_of_the_main_script_have_no_package(monkeypatch):
    assert metarl.from_gymnasium("Pendulum-v1", {"g": [9.0, 10.0]}).spec.id == "gym:Pendulum-v1"


@pytest.mark.parametrize("id", ["PointNavigation-v0", "visible:PointNavigation-v0", "CartPoleParams-v0"])
def test_our_own_families_need_no_word(id):
    assert saved.unnamed_package(id) is None


def test_gymnasiums_own_need_no_word(tmp_path):
    family = metarl.make("gym:Pendulum-v1", **KWARGS, horizon=4)
    learner = MetaLearner("maml_trpo", family, device="cpu", **TINY)
    learner.save(tmp_path / "l")
    assert same_params(MetaLearner.load(tmp_path / "l", device="cpu").state.params, learner.state.params)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


class Opens(PendulumEnv):
    """An environment that says which file it was asked to open."""

    asked: str | None = None

    def __init__(self, xml_file: str = "", g: float = 10.0, render_mode: str | None = None):
        Opens.asked = xml_file or None
        super().__init__(render_mode, g)


@pytest.fixture
def opens(monkeypatch) -> str:
    monkeypatch.setitem(gym.registry, "Opens-v0", gym.envs.registration.EnvSpec("Opens-v0", Opens, max_episode_steps=4))
    monkeypatch.setattr(Opens, "asked", None)
    return "gym:Opens-v0"


@pytest.mark.parametrize("value", ["/etc/passwd", "..", "model.xml", "file:x", "C:\\x", "model"])
def test_a_header_opens_no_file(tmp_path, opens, value):
    kwargs = KWARGS | {"make_kwargs": {"xml_file": value}}
    path = shared(tmp_path / "l.safetensors", opens, kwargs, opens)
    with pytest.raises(CheckpointError, match=r"the file or address xml_file=.*trust=True.*--trust"):
        MetaLearner.load(path, device="cpu")
    with pytest.raises(CheckpointError, match="the file or address xml_file="):
        MetaLearner.load(path, opens, device="cpu")  # the id allows its package, not its arguments
    assert Opens.asked is None
    MetaLearner.load(path, device="cpu", trust=True)
    assert Opens.asked == value


@pytest.mark.parametrize(
    "kwargs",
    [{"parameters": {"map": ["a", "https://x"]}}, {"splits": {"test": {"p": ["x", "./y"]}}}, {"texture_path": "x"},
     {"make_kwargs": {"n": 10**9}}, {"make_kwargs": {"inner": {"deep": ["~root"]}}}],
)  # fmt: skip
def test_files_addresses_and_huge_numbers_are_found_anywhere(kwargs):
    assert untrusted_argument(kwargs) is not None


@pytest.mark.parametrize(
    "kwargs",
    [KWARGS, {"task": "push-v3", "horizon": 200}, {"id": "mine/it", "make_kwargs": {"map": "4x4", "slippery": True}},
     {"parameters": {"g": {"scipy": "norm", "args": [1e30], "kwds": {}}}}],
)  # fmt: skip
def test_plain_arguments_are_plain(kwargs):
    assert untrusted_argument(kwargs) is None


# ---------------------------------------------------------------------------------------------------------------------
# What a run tells of its machine


def test_a_run_names_neither_its_machine_nor_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "a-secret-host")
    monkeypatch.setattr("platform.node", lambda: "a-secret-host")
    tiny().learn(1, run_dir=tmp_path / "first", eval_every=1, eval_tasks=2)
    run = tmp_path / "run"
    tiny().start_from(tmp_path / "first").learn(1, run_dir=run, eval_every=1, eval_tasks=2)
    assert cli.run(["evaluate", str(run), "--tasks", "2", "--no-figures", "--threads", "1"]) == 0
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) == 8
    for path in files:
        for secret in ("a-secret-host", str(tmp_path), str(Path.cwd()), str(Path.home()) + "/"):
            assert secret.encode() not in path.read_bytes() and secret not in str(path.relative_to(run))


def test_the_tensorboard_writer_has_its_host_back(tmp_path):
    module = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    tiny().learn(0, run_dir=tmp_path / "run")
    assert module.socket.gethostname() == __import__("socket").gethostname()


# ---------------------------------------------------------------------------------------------------------------------
# A family with a name of its own


def test_a_family_made_with_a_name_comes_back(tmp_path):
    family = metarl.from_gymnasium("Pendulum-v1", {"g": [9.0, 10.0]}, horizon=4, id="Mine-v0")
    MetaLearner("maml_trpo", family, device="cpu", **TINY).save(tmp_path / "l")
    assert MetaLearner.load(tmp_path / "l", device="cpu").family == family
    shown = metarl.visible(family)
    MetaLearner("maml_trpo", shown, device="cpu", **TINY).save(tmp_path / "v")
    assert MetaLearner.load(tmp_path / "v", device="cpu").family == shown
    assert metarl.make(id="PointNavigation-v0").id == "PointNavigation-v0"


@pytest.mark.parametrize(("family", "match"), [("gym:Pendulum-v1", "id is the family's name"),
                                               ("PointNavigation-v0", "cannot be made with {'id': 3}"),
                                               ("visible:gym:Pendulum-v1", "id is the family's name")])  # fmt: skip
def test_a_name_that_is_none_is_an_error_in_one_line(tmp_path, family, match):
    argv = ["train", "maml_trpo", family, "--family-kwargs", "id=3", 'parameters={"g":[9,10]}', "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=match):
        cli.run(argv if "gym" in family else [word for word in argv if "parameters" not in word])


def test_the_fixtures_do_what_they_say(mark, tmp_path):
    __import__(PACKAGE)
    assert mark.exists()
    shutil.rmtree(tmp_path / "site")
