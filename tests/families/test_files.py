"""A family, or anything else, in a Python file of the user's: what a reference names, what is imported when."""

import json
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
from tiny_runs import TINY, same_params, tiny
from user_files import REFERENCE, edit, forget_process, imports, write_family

import metarl
from metarl import MetaLearner, source_files
from metarl.checkpoint import CheckpointError
from metarl.families import files
from metarl.tasks import FamilySpec
from metarl.training.directory import CONFIG


@pytest.mark.parametrize(
    ("name", "kwargs", "horizon"),
    [("make_family", {}, 4), ("make_family", {"horizon": 3}, 3), ("Pushing", {"horizon": 3}, 3), ("family", {}, 7)],
)
def test_a_function_a_class_and_an_object_are_families(mark, name, kwargs, horizon):
    family = metarl.make(f"family.py:{name}", **kwargs)
    assert (family.id, family.horizon) == ("Pushing-v0", horizon)
    spec = family.spec
    assert isinstance(spec, FamilySpec) and (spec.id, spec.kwargs) == (f"family.py:{name}", kwargs)


def test_an_object_that_is_a_family_is_not_called(mark):
    code = "class Callable(Pushing):\n    def __call__(self):\n        return None\ncallable_family = Callable(8)\n"
    Path("family.py").write_text(f"{Path('family.py').read_text()}\n{code}")
    assert metarl.make("family.py:callable_family").horizon == 8


def test_a_learner_takes_a_reference(mark):
    learner = MetaLearner("maml_trpo", REFERENCE, device="cpu", **TINY).learn(1, eval_every=0)
    same = tiny(metarl.make("family.py:Pushing")).learn(1, eval_every=0)
    assert same_params(learner.state.params, same.state.params)


def test_a_family_in_a_file_can_be_made_visible(mark, monkeypatch):
    family = metarl.make(f"visible:{REFERENCE}", horizon=3)
    assert family.id == "visible:Pushing-v0" and family.observation_space.shape == (2,)
    tiny(family).learn(1, run_dir="run", eval_every=0)
    assert json.loads(Path("run", CONFIG).read_text())["family"]["made"]["id"] == f"visible:{REFERENCE}"
    forget_process(monkeypatch)
    assert MetaLearner.load("run", device="cpu").family.id == "visible:Pushing-v0"
    edit(Path("family.py"))
    with pytest.raises(CheckpointError, match=f"has changed since.*--family visible:{REFERENCE} or"):
        MetaLearner.load("run", device="cpu")
    with pytest.warns(UserWarning, match="has changed since"):
        assert MetaLearner.load("run", f"visible:{REFERENCE}", device="cpu").family.horizon == 3


@pytest.mark.parametrize("typed", ["{}/family.py", "./family.py", "../project/family.py"])
def test_a_path_may_be_absolute_or_relative(mark, tmp_path, typed):
    assert metarl.make(typed.format(tmp_path / "project") + ":family").horizon == 7


def test_files_of_one_name_do_not_collide(mark, tmp_path):
    other = write_family(tmp_path / "other")
    other.write_text(other.read_text().replace("Pushing(7)", "Pushing(8)"))
    (tmp_path / "other" / "pushing_helpers.py").unlink()  # two modules of that name cannot be (below)
    a, b = metarl.make("family.py:family"), metarl.make(f"{other}:family")
    assert (a.horizon, b.horizon) == (7, 8) and type(a) is not type(b)
    assert cloudpickle.loads(cloudpickle.dumps(a)).horizon == 7


def test_an_edited_file_is_imported_anew_and_an_unchanged_one_once(mark):
    first, again = (metarl.make("family.py:family") for _ in range(2))
    assert first is again and imports(mark) == 1
    path = Path("family.py")
    path.write_text(path.read_text().replace("Pushing(7)", "Pushing(9)"))
    assert metarl.make("family.py:family").horizon == 9 and imports(mark) == 2


def test_its_own_neighbours_come_before_others_of_their_name(mark, tmp_path, monkeypatch):
    for folder in ("installed", "current"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pushing_helpers.py").write_text("raise RuntimeError('another one')\n")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.chdir(tmp_path / "current")
    assert metarl.make("../project/family.py:family").horizon == 7


def test_what_is_installed_comes_before_what_the_current_folder_has(mark, tmp_path, monkeypatch):
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "installed_helpers.py").write_text("raise RuntimeError('another one')\n")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "installed_helpers.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.chdir(tmp_path / "current")
    Path("../project/family.py").write_text("import installed_helpers\n" + Path("../project/family.py").read_text())
    assert metarl.make("../project/family.py:family").horizon == 7


def test_a_file_imports_its_neighbours_and_what_the_current_folder_has(mark, tmp_path):
    (tmp_path / "project" / "of_the_project.py").write_text("HORIZON = 6\n")
    inner = write_family(tmp_path / "project" / "deep", helpers="deep_helpers")
    inner.write_text(inner.read_text() + "\nfrom of_the_project import HORIZON\nfamily = Pushing(HORIZON)\n")
    assert metarl.make("deep/family.py:family").horizon == 6


@pytest.mark.parametrize(
    ("word", "kwargs", "error", "message"),
    [
        ("family.py:mak_family", {}, ImportError, "family.py has no 'mak_family'; did you mean 'make_family'?"),
        ("family.py:number", {}, ValueError, "family.py:number: 3 is not a task family, it has no id"),
        ("family.py:make_nothing", {}, ValueError, "family.py:make_nothing: None is not a task family"),
        ("family.py:Push", {}, ValueError, "Push is a class of environments: metarl.from_gymnasium"),
        ("family.py:Pushing", {"horizn": 3}, ValueError, "no argument 'horizn'; did you mean 'horizon'?"),
        ("family.py:family", {"horizon": 3}, ValueError, "an object, no function or class, and takes no arguments"),
        ("family.py:make_trouble", {}, ValueError, r"ZeroDivisionError: division by zero \(line 6\d of family.py\)"),
        ("family.py", {}, ValueError, "name the function, class or object in that file: family.py:make_family; it "
                                      "defines make_family, family, Push, Pushing"),
        ("family.py:", {}, ValueError, "name the function, class or object in that file"),
        ("family.py:a.b", {}, ValueError, "named like family.py:NAME, by one name"),
        ("family:make_family", {}, ValueError, "did you mean 'family.py:make_family'?"),
        ("nowhere.py:make", {}, FileNotFoundError, "nowhere.py:make: there is no file nowhere.py in /"),
        ("nowhere.py", {}, ValueError, "there is no file nowhere.py in /"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_reference_is_said_in_one_line(mark, word, kwargs, error, message):
    with pytest.raises(error, match=message) as raised:
        metarl.make(word, **kwargs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = 1\n\nimport numpy\ny = nump.zeros(3)\n",
            r"NameError: name 'nump' is not defined \(line 4 of broken.py\)",
        ),
        ("x = (\n", r"SyntaxError: '\(' was never closed \(line 1 of broken.py\)"),
        ("from .other import x\n", "write `from PACKAGE.MODULE import ...`"),
        ("import sys\nsys.exit(0)\n", 'SystemExit: 0 .*behind `if __name__ == "__main__":`'),
        ("import a_module_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
    ],
)
def test_a_file_that_cannot_be_imported_says_where(mark, text, message):
    Path("broken.py").write_text(text)
    for _ in range(2):  # nor does a second try find half a module
        with pytest.raises(files.SourceFileError, match="cannot import broken.py: .*" + message):
            metarl.make("broken.py:x")


def test_a_neighbour_is_not_mistaken_for_that_of_another_folder(mark, tmp_path):
    metarl.make("family.py:family")
    other = write_family(tmp_path / "other")
    with pytest.raises(files.SourceFileError, match=r"imports 'pushing_helpers', but another module of that name") as e:
        metarl.make(f"{other}:family")
    assert str(tmp_path / "project" / "pushing_helpers.py") in str(e.value)
    other = write_family(tmp_path / "other", helpers="other_helpers")
    assert metarl.make(f"{other}:family").horizon == 7


def test_a_family_without_room_for_how_it_was_made_says_so(mark):
    Path("slots.py").write_text("""
import metarl
point = metarl.make("PointNavigation-v0")
class Slots:
    __slots__ = ("id", "horizon", "observation_space", "action_space", "task_space", "sample", "make")
    def __init__(self):
        for name in self.__slots__:
            setattr(self, name, getattr(point, name))
""")
    with pytest.raises(ValueError, match=r"slots.py:Slots: Slots needs room for an attribute `spec`"):
        metarl.make("slots.py:Slots")


def test_a_script_that_names_itself_is_not_run_again(mark, tmp_path):
    script = Path("script.py")
    script.write_text("""
import metarl
from family import Pushing
print("once")
family = Pushing(5)
learner = metarl.MetaLearner("maml_trpo", "script.py:family", n_tasks=2, episodes=2, hidden=(8,), device="cpu")
assert learner.family is family
""")
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "once\n"


def test_a_reference_for_anything_else_gives_the_object(mark):
    assert files.imported("family.py:number") == 3
    with pytest.raises(files.UntrustedFileError, match="which you have not trained with before"):
        files.imported("family.py:system", trust=False)


def test_a_module_of_a_file_that_was_dropped_does_not_stop_worker_processes(tmp_path, monkeypatch):
    file = tmp_path / "dropped.py"
    file.write_text("class Thing:\n    pass\n")
    thing = files.imported(f"{file}:Thing")
    assert thing.__module__ in cloudpickle.list_registry_pickle_by_value()
    monkeypatch.delitem(sys.modules, thing.__module__)
    with source_files.by_name():
        pass
