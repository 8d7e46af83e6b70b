"""Rooms import only rooms below them, and `import metarl` costs nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCS

import metarl

ROOT = Path(metarl.__file__).parent

ROWS = [
    {
        "arguments",
        "checkpoint",
        "parallel",
        "params",
        "printing",
        "random",
        "source_files",
        "splits",
        "suggestions",
        "torch_defaults",
        "warn",
    },
    {"tasks", "formulas", "options"},
    {"policies", "vector"},
    {"adapted", "families", "rollout"},
    {"inner", "recurrent", "training"},
    {"outer", "report"},
    {"algorithms", "supervised"},
    {"learner"},
    {"sb3"},
    {"benchmark"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up. A room, or a module beside the rooms, imports only from rows below its own."""

ROW = {room: number for number, row in enumerate(ROWS) for room in row}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}


def room(module: str) -> str:
    return module.partition(".")[0]


def imported(path: Path) -> set[str]:
    """All that a file imports, wherever in it, by absolute name: `from a import b` may mean a or a.b, so both."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: relative imports are not used here"
            out |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return out


def rooms_imported(path: Path) -> set[str]:
    names = {name.removeprefix("metarl.") for name in imported(path) if name.startswith("metarl.")}
    return {room(name) for name in names if room(name) in ROW}


def named_in_strings(path: Path) -> set[str]:
    """Rooms whose modules are named at the start of a string, as `import_module` takes them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {room(name) for name in re.findall(r"^metarl\.([a-z_.]+)", node.value) if room(name) in ROW}
    return found


def test_there_are_twelve_rows_and_every_module_is_in_one():
    assert len(ROWS) == 12
    assert {room(module) for module in MODULES} == set(ROW)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_rooms_below_it(module):
    own = room(module)
    assert {other for other in rooms_imported(MODULES[module]) - {own} if ROW[other] >= ROW[own]} == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_is_hidden_in_a_string(module):
    own = room(module)
    assert {other for other in named_in_strings(MODULES[module]) - {own} if ROW[other] >= ROW[own]} == set()


def test_the_parser_finds_the_imports(tmp_path):
    # The control: were nothing found, the tests above could not fail.
    assert {"inner", "outer", "rollout"} <= rooms_imported(MODULES["algorithms.maml_trpo"])
    path = tmp_path / "module.py"
    path.write_text('"""See metarl.cli."""\nimport importlib\nimportlib.import_module("metarl.learner")\n')
    assert named_in_strings(path) == {"learner"}


@pytest.mark.parametrize("name", sorted(name for name in ROW if (ROOT / name).is_dir()))
def test_a_room_says_what_it_is_for_and_what_it_imports(name):
    text = ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text())) or ""
    assert len(text.splitlines()) <= 12
    row = ROW[name]
    said = {other for other in re.findall(r"`([a-z_0-9]+)`", text.partition("Imports ")[2]) if other in ROW}
    assert "Imports " in text and all(ROW[other] < row for other in said)


def test_the_architecture_page_tells_the_same_story():
    table = (DOCS / "architecture.md").read_text().partition("## Where things live")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if re.match(r"\| \d+ \|", line)]
    told = [set(re.findall(r"`([a-z_0-9]+)/?`", line.split("|")[2])) for line in lines]
    assert [int(line.split("|")[1]) for line in lines] == list(range(len(ROWS), 0, -1))
    assert told == ROWS[::-1]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_package_does_not_know_its_built_in_families(module):
    assert not {name for name in imported(MODULES[module]) if name.split(".")[0] == "metarl_envs"}


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "numpy", "gymnasium", "stable_baselines3", "matplotlib", "scipy", "rich", "tyro"]
    code = f"import sys, metarl; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_can_be_had():
    assert all(getattr(metarl, name) is not None for name in metarl.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="MetaLerner"):
        _ = metarl.MetaLerner
