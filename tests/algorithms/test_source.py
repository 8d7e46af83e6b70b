"""Algorithms in Python files of the user's own: on the command line, in Python, in runs; and those of packages."""

import copy
import importlib.metadata
import json
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY, contents, point, same_params
from user_files import become_somebody_else, edit, forget_process, imports

import metarl
from metarl import MetaLearner, algorithms, checkpoint, cli, source_files
from metarl.algorithms import maml_vpg, source
from metarl.algorithms.check import AlgorithmError
from metarl.algorithms.results import ContractError
from metarl.checkpoint import CheckpointError
from metarl.families import files, trusted_files
from metarl.policies import kinds
from metarl.training.directory import CONFIG, LATEST

CODE = '''"""An algorithm of somebody's own."""

import os
from dataclasses import dataclass
from types import SimpleNamespace

from metarl.algorithms import maml_vpg
from metarl.algorithms.maml_vpg import State, evaluate, init

with open(os.environ["MARK"], "a") as mark:
    mark.write("imported\\n")


@dataclass(frozen=True)
class Config(maml_vpg.Config):
    """Settings."""

    extra: float = 1.0
    """A number that is logged."""


def iteration(setup, state):
    state, stats = maml_vpg.iteration(setup, state)
    return state, stats | {"extra": setup.config.extra}


class Other:
    """The same as an object."""

    Config, State = Config, State
    init, iteration, evaluate = staticmethod(init), staticmethod(iteration), staticmethod(evaluate)


space = SimpleNamespace(Config=Config, State=State, init=init, iteration=iteration, evaluate=evaluate)
number = 3


def make_family(horizon=5):
    import metarl

    return metarl.make("PointNavigation-v0", horizon=horizon)
'''
FAMILY = ["PointNavigation-v0", "--family-kwargs", "horizon=5"]
SMALL = ["--n-tasks", "2", "--episodes", "2", "--hidden", "8", "--threads", "1", "--device", "cpu", "--no-progress",
         "--iterations", "1", "--eval-every", "0"]  # fmt: skip
FEW = ["--tasks", "2", "--episodes", "2", "--steps", "1", "--no-figures", "--threads", "1"]
RESUME = ["train", "--resume", "run", "--iterations", "2", "--threads", "1", "--no-progress"]
AFTER = {
    "evaluate": ["evaluate", "run", *FEW],
    "adapt": ["adapt", "run", "--task", "goal=0.3,-0.2", "--out", "policy"],
    "render": ["render", "run", "--out", "film.gif"],
    "resume": RESUME,
    "start": ["train", "maml_vpg", *FAMILY, *SMALL, "--start-from", "run", "--out", "next"],
}
"""Every command that takes a run."""


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Path:
    """The user's folder is the current one, with `own.py` in it; the file that grows with every import of it."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv(trusted_files.VARIABLE, str(tmp_path / "record.json"))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "own.py").write_text(CODE)
    monkeypatch.chdir(tmp_path / "project")
    forget_process(monkeypatch)
    return tmp_path / "mark"


def trained(word: str = "own.py", out: str = "run", *more: str) -> Path:
    assert cli.run(["train", word, *FAMILY, *SMALL, "--out", out, *more]) == 0
    return Path(out)


def by_hand(iterations: int) -> MetaLearner:
    """What the file does, in Python."""
    return MetaLearner("maml_vpg", point(), device="cpu", **TINY).learn(iterations, eval_every=0)


def typed(error: BaseException) -> list[str]:
    """The words for the command line that an error names."""
    found = re.search(r"on the command line (--algorithm \S+)", str(error))
    assert found is not None, str(error)
    return shlex.split(found[1])


# ---------------------------------------------------------------------------------------------------------------------
# What a word names


@pytest.mark.parametrize(
    ("word", "name"),
    [("own.py", "own"), ("own.py:own", "own"), ("own.py:Other", "Other"), ("own.py:space", "space"),
     ("./own.py", "own"), ("../project/own.py:Other", "Other")],
)  # fmt: skip
def test_a_file_and_an_object_in_it_are_algorithms(mark, word, name):
    run = trained(word, "run", "--extra", "2.5")
    assert imports(mark) == 1
    learner = MetaLearner.load(run, device="cpu")
    assert learner.algorithm == name and learner.config.extra == 2.5
    assert same_params(learner.state.params, by_hand(1).state.params)
    assert "extra" in (run / "metrics.csv").read_text()


def test_in_python_too(mark):
    learner = MetaLearner("own.py", point(), device="cpu", **TINY).learn(1, run_dir="run", eval_every=0)
    assert repr(learner).startswith("MetaLearner('own', 'PointNavigation-v0'")
    assert same_params(learner.state.params, MetaLearner.load("run", device="cpu").state.params)


def test_a_file_whose_name_is_no_word_of_python(mark):
    Path("own.py").rename("my-own.py")
    assert MetaLearner("my-own.py", point(), device="cpu", **TINY).algorithm == "my_own"
    trained("my-own.py")
    assert cli.run(["evaluate", "run", *FEW]) == 0


def test_the_default_directory_has_the_name(mark):
    assert cli.run(["train", "own.py:Other", *FAMILY, *SMALL]) == 0
    assert Path("runs/PointNavigation-v0-Other-seed0", LATEST).exists()


def test_its_settings_are_options_with_their_help(mark, capsys):
    with pytest.raises(SystemExit):
        cli.run(["train", "own.py", "--help"])
    text = capsys.readouterr().out
    assert "An algorithm of somebody's own." in text and "--extra FLOAT" in text and "A number that is logged." in text
    with pytest.raises(ValueError, match="there is no option --extr; did you mean 'extra'"):
        cli.run(["train", "own.py", *FAMILY, "--extr", "1"])
    with pytest.raises(ValueError, match=r"own has no setting 'extr'.*`metarl train own.py:own --help` lists all"):
        MetaLearner("own.py", point(), extr=1)


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("own.py:Othr", ImportError, "own.py has no 'Othr'; did you mean 'Other'?"),
        ("own.py:number", ValueError, "own.py:number is no algorithm, it has no Config, State, init, iteration or "
                                      "evaluate; the file itself is one: own.py"),
        ("own.py:", ValueError, "name the function, class or object in that file"),
        ("own.py:a.b", ValueError, "named like own.py:NAME, by one name"),
        ("own:Other", ValueError, "did you mean 'own.py:Other'?"),
        ("nowhere.py", ValueError, "there is no file nowhere.py in /"),
        ("nowhere.py:x", FileNotFoundError, "nowhere.py:x: there is no file nowhere.py in /"),
        ("family.py:make_family", ValueError, "if it makes a family, the algorithm comes first: maml_trpo "
                                              "family.py:make_family"),
        ("objects.py", ValueError, "objects.py:objects is no algorithm.*in this file Other has them: "
                                   "objects.py:Other"),
        ("gym:Pendulum-v1", ValueError, "it looks like a task family, and the algorithm comes first"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_word_is_one_line(mark, word, error, message):
    Path("family.py").write_text("def make_family():\n    pass\n")
    Path("objects.py").write_text("from own import Other\n")
    for call in (lambda: cli.run(["train", word, *FAMILY]), lambda: MetaLearner(word, point())):
        with pytest.raises(error, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert not Path("runs").exists()


BROKEN: dict[str, tuple[str, str, type[Exception], str]] = {
    "syntax": ("number = 3", "number = (", files.SourceFileError, r"cannot import own.py: SyntaxError: .* \(line"),
    "import": ("number = 3", "nump.x", files.SourceFileError, r"NameError: name 'nump' is not defined \(line 3\d of "),
    "exit": ("number = 3", "raise SystemExit", files.SourceFileError, "behind `if __name__"),
    "no iteration": ("def iteration", "def iteratoin", files.SourceFileError, "name 'iteration' is not defined"),
    "an init that is none": ("import State, evaluate, init", "import State, evaluate, init\ninit = 3",
                             AlgorithmError, "init: cannot be called with"),
    "arguments": ("def iteration(setup, state)", "def iteration(state)", AlgorithmError, "iteration: cannot be called"),
    "thawed": ("frozen=True)\nclass Config(maml_vpg.Config)", "frozen=False)\nclass Config",
               AlgorithmError, "Config: is no frozen dataclass"),
    "settings": ("extra: float = 1.0", "extra: float = 1.0\n    def __post_init__(self):\n        raise KeyError('x')",
                 AlgorithmError, "its defaults are refused: 'x'"),
    "init": ("def make_family", "def init(*_, **__):\n    return 1 / 0\n\n\ndef make_family",
             source.OwnCodeError, r"own: init raised ZeroDivisionError: division by zero \(line \d+ of own.py\)"),
    "another init": ("def make_family", "def init(*_, **__):\n    return 1\n\n\ndef make_family",
                     ContractError, "own: init returned a int instead of its State; metarl.check_algorithm"),
    "iteration": ("    return state, stats | ", "    return state, {}['x'] | ",
                  source.OwnCodeError, r"iteration raised KeyError: 'x' \(line 2\d of own.py\)"),
    "a value": ("    return state, stats | ", "    raise ValueError('mine')\n    return state, stats | ",
                source.OwnCodeError, r"iteration raised ValueError: mine \(line 2\d of own.py\)"),
    "a state alone": ("    return state, stats | ", "    return state\n    return state, stats | ",
                      ContractError, "iteration returned a State instead of the next State and a dict of statistics"),
    "no statistics": ("stats | {", "{", ContractError, "the statistics of iteration lack return/step_0, time/rollout"),
    "no result": ("def make_family", "def evaluate(*_, **__):\n    return 1\n\n\ndef make_family",
                  ContractError, "evaluate returned a int without returns, success_rates, rollouts, score, policy_for"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_says_where(mark, name, monkeypatch, capsys):
    old, new, error, message = BROKEN[name]
    assert old in CODE
    Path("own.py").write_text(CODE.replace(old, new))
    argv = ["train", "own.py", *FAMILY, *SMALL, "--eval-every", "1", "--eval-tasks", "2", "--out", "run"]
    with pytest.raises(error, match=message):
        cli.run(argv)
    monkeypatch.setattr(sys, "argv", ["metarl", *argv[:-1], "again"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    lines = [x for x in capsys.readouterr().err.splitlines() if x]
    assert stopped.value.code == 2
    assert [x for x in lines if x.startswith("error:")] == lines[:1] and re.search(message, lines[0])


def test_what_the_package_says_to_users_is_passed_on(mark):
    code = CODE.replace("def iteration", "import metarl\n\n\ndef iteration")
    Path("own.py").write_text(code.replace("    state, stats =", "    metarl.make('Nowhere-v0')\n    state, stats ="))
    with pytest.raises(ValueError, match=r"^no task family is called 'Nowhere-v0'"):
        trained()


# ---------------------------------------------------------------------------------------------------------------------
# In runs


def test_every_command_knows_the_file_that_was_trained_with(mark, monkeypatch):
    trained()
    for count, argv in enumerate(AFTER.values(), 2):
        forget_process(monkeypatch)
        assert cli.run(argv) == 0
        assert imports(mark) == count
    assert same_params(MetaLearner.load("run", device="cpu").state.params, by_hand(2).state.params)


def test_the_run_keeps_reference_and_hash_and_no_directory(mark, tmp_path):
    run = trained(f"{tmp_path}/project/own.py:Other")
    assert json.loads((run / CONFIG).read_text())["algorithm_source"] == {
        "file": "own.py:Other", "sha256": source_files.read(Path("own.py"))}  # fmt: skip
    assert cli.run(["evaluate", "run", *FEW]) == 0
    for name, content in contents(run).items():
        assert str(tmp_path).encode() not in content, name
    assert "algorithm_source" not in by_hand(1).describe()


def test_a_file_from_somebody_else_is_not_imported(mark, tmp_path, monkeypatch):
    trained()
    become_somebody_else(monkeypatch, tmp_path / "mine.json")
    said = "asks to import 'own.py:own', which you have not trained with before.*algorithm='own.py:own' or trust=True.*"
    for argv in AFTER.values():
        with pytest.raises(CheckpointError, match=said + "--algorithm own.py:own or --trust"):
            cli.run(argv)
    with pytest.raises(CheckpointError, match=said):
        MetaLearner.load("run")
    assert imports(mark) == 1
    for words in (["--trust"], ["--algorithm", "own.py"], ["--algorithm", "own.py:own"]):
        forget_process(monkeypatch)
        assert cli.run(["evaluate", "run", *FEW, *words]) == 0
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match="not trained with before"):  # to evaluate is not to train
        cli.run(["evaluate", "run", *FEW])
    assert cli.run([*RESUME, "--trust"]) == 0
    forget_process(monkeypatch)
    assert cli.run(["evaluate", "run", *FEW]) == 0


def test_nor_one_that_was_only_a_family_in_that_file(mark, tmp_path, monkeypatch):
    trained()
    become_somebody_else(monkeypatch, tmp_path / "mine.json")
    MetaLearner("maml_vpg", "own.py:make_family", device="cpu", **TINY).learn(1, eval_every=0)
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match=r"asks to import 'own.py:own', which you have not trained with"):
        MetaLearner.load("run", device="cpu")


def test_a_file_that_has_changed_is_not_imported_until_it_is_named(mark, monkeypatch, capsys):
    trained()
    edit(Path("own.py"))
    forget_process(monkeypatch)
    for argv in AFTER.values():
        with pytest.raises(CheckpointError, match=r"own.py has changed since") as raised:
            cli.run(argv)
    assert imports(mark) == 1
    assert cli.run([*RESUME, *typed(raised.value)]) == 0
    assert "note: own.py has changed since the run was saved" in capsys.readouterr().err
    forget_process(monkeypatch)
    assert cli.run(["evaluate", "run", *FEW]) == 0  # the run remembers the new content


def test_a_file_that_was_moved_and_renamed_goes_on(mark, monkeypatch):
    trained()
    Path("new").mkdir()
    Path("own.py").rename("new/renamed.py")
    forget_process(monkeypatch)
    with pytest.raises(CheckpointError, match=r"no such file in /.*--algorithm PATH/TO/own.py:own"):
        cli.run(RESUME)
    assert cli.run([*RESUME, "--algorithm", "new/renamed.py"]) == 0
    forget_process(monkeypatch)
    learner = MetaLearner.load("run", device="cpu")
    assert learner.algorithm == "own" and learner.state.iteration == 2


def test_a_run_of_a_module_says_what_to_pass_and_remembers_it(mark, monkeypatch):
    monkeypatch.syspath_prepend(Path.cwd())
    own = __import__("own")
    monkeypatch.delitem(sys.modules, "own")
    MetaLearner(own, point(), device="cpu", **TINY).learn(1, run_dir="run", eval_every=0)
    said = (
        "was given a module as its algorithm, 'own': pass the same one as algorithm=; on the command line --algorithm"
    )
    with pytest.raises(CheckpointError, match=said):
        MetaLearner.load("run")
    assert MetaLearner.load("run", algorithm=own, device="cpu").state.iteration == 1
    for argv in AFTER.values():
        with pytest.raises(CheckpointError, match=said):
            cli.run(argv)
    for name in ("evaluate", "adapt", "render", "resume"):
        assert cli.run([*AFTER[name], "--algorithm", "own.py"]) == 0
    forget_process(monkeypatch)
    assert cli.run(["evaluate", "run", *FEW]) == 0


def test_a_module_of_the_name_of_a_built_in_algorithm_is_not_taken_for_it(mark, monkeypatch):
    (Path("mine") / "__init__.py").parent.mkdir()
    Path("mine/promp.py").write_text(CODE)
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    module = __import__("mine.promp").promp
    MetaLearner(module, point(), device="cpu", **TINY).save("saved")
    with pytest.raises(CheckpointError, match=r"a module as its algorithm, 'mine.promp'"):
        MetaLearner.load("saved")


@pytest.mark.parametrize("word", ["promp", "own.py"])
def test_a_run_keeps_its_algorithm(mark, word):
    by_hand(0).learn(1, run_dir="run", eval_every=0)
    assert MetaLearner.load("run", algorithm="maml_vpg", device="cpu").algorithm == "maml_vpg"
    with pytest.raises(CheckpointError, match=f"was trained with maml_vpg, not with {word}"):
        cli.run([*RESUME, "--algorithm", word])


def test_an_error_in_the_named_file_is_no_damage_of_the_run(mark):
    trained()
    Path("broken.py").write_text("1 / 0\n")
    for word in ("broken.py", "nowhere.py:x", "own.py:number"):
        with pytest.raises(CheckpointError, match="cannot be loaded with the algorithm") as raised:
            cli.run([*RESUME, "--algorithm", word])
        assert type(raised.value) is CheckpointError


def test_a_learner_goes_through_pickle_and_into_another_process(mark):
    learner = MetaLearner("own.py", point(), device="cpu", **TINY).learn(1, eval_every=0)
    expected = copy.deepcopy(learner).learn(1, eval_every=0)
    Path("learner.pkl").write_bytes(pickle.dumps(learner))
    Path("own.py").write_text("raise RuntimeError('edited meanwhile')\n")
    code = "import pickle; x = pickle.load(open('learner.pkl', 'rb')).learn(1, eval_every=0).save('after')"
    subprocess.run([sys.executable, "-c", code], check=True)
    saved, _ = checkpoint.load(Path("after"))
    assert all(torch.equal(saved[f"params/{name}"], x) for name, x in expected.state.params.items())


# ---------------------------------------------------------------------------------------------------------------------
# Algorithms and policies of installed packages


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package that announces an algorithm, a policy, and one of each that cannot be imported."""
    (tmp_path / "acme.py").write_text(
        '"""Acme\'s algorithm."""\n' + CODE.partition('"""\n')[2] + '\n\nclass Net:\n    """Acme\'s network."""\n'
    )
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme", raising=False)
    true = importlib.metadata.entry_points
    more = {
        algorithms.ENTRY_POINT_GROUP: {"acme_search": "acme", "acme_broken": "acme_not_there"},
        kinds.ENTRY_POINT_GROUP: {"AcmeNet": "acme:Net", "AcmeBroken": "acme:Missing"},
    }

    def points(**wanted: Any) -> Any:
        group = wanted.get("group", "")
        found = [importlib.metadata.EntryPoint(name, value, group) for name, value in more.get(group, {}).items()]
        return importlib.metadata.EntryPoints([*true(**wanted), *found])

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    return tmp_path


def test_list_shows_what_packages_announce(package, capsys):
    assert cli.run(["list"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for line in ("acme_search Acme's algorithm.", "acme_broken cannot be imported: ModuleNotFoundError",
                 "AcmeNet Acme's network.", "AcmeBroken cannot be imported: AttributeError", "MLPPolicy A multi-layer",
                 "maml_trpo MAML with a TRPO outer step", "FILE.py[:NAME] An algorithm in a Python file"):  # fmt: skip
        assert line in text, line
    assert cli.run(["train", "--help"]) == 0
    assert "rl2, acme_broken, acme_search" in " ".join(capsys.readouterr().out.split())


def test_an_announced_algorithm_trains_by_its_name_and_is_trusted_when_it_is_named(package, monkeypatch):
    monkeypatch.chdir(package)
    run = trained("acme_search")
    settings = json.loads((run / CONFIG).read_text())
    assert settings["algorithm"] == "acme_search" and "algorithm_source" not in settings
    assert MetaLearner.load(run, device="cpu").algorithm == "acme_search"  # its package is imported
    assert MetaLearner.load(run, algorithm=sys.modules["acme"], device="cpu").algorithm == "acme_search"
    monkeypatch.delitem(sys.modules, "acme")
    with pytest.raises(CheckpointError, match="the package 'acme', which is not imported: import it first"):
        MetaLearner.load(run, device="cpu")
    assert "acme" not in sys.modules
    assert cli.run(["evaluate", "run", *FEW, "--algorithm", "acme_search"]) == 0
    assert cli.run([*RESUME]) == 0


def test_what_was_saved_by_name_is_saved_by_name_again(package, monkeypatch):
    monkeypatch.chdir(package)
    trained("acme_search")
    MetaLearner.load("run", device="cpu").save("again")
    assert MetaLearner.load("again", device="cpu").algorithm == "acme_search"


def test_the_control_a_built_in_algorithm_has_no_source():
    assert source.source_of(maml_vpg, maml_vpg) == source.source_of("maml_vpg", maml_vpg) == {}
    assert source.reference_of("maml_vpg") is None and source.reference_of("nowhere.py") is None
    assert metarl.algorithms is algorithms
