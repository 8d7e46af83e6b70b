"""docs/algorithms/: every algorithm has a page, and a page says nothing that the code does not know."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from documents import blocks, commands

import metarl
from metarl import algorithms
from metarl.inner.learned import LEARNED_LR
from metarl.inner.settings import GradientSettings
from metarl.learner import make_config

ROOT = Path(metarl.__file__).parents[1]
PAGES = ROOT / "docs" / "algorithms"
TABLE = ROOT / "experiments" / "navigation" / "results" / "table.md"
HEADINGS = (
    "Idea", "Objective", "Paper", "Differences from the paper", "Settings", "What it should reach", "How long it takes",
    "When to choose it",
)  # fmt: skip

GRADIENT_BASED = tuple(n for n in algorithms.ALGORITHMS if issubclass(algorithms.get(n).Config, GradientSettings))
WITH_PAGE = tuple(n for n in algorithms.ALGORITHMS if n in GRADIENT_BASED or (PAGES / f"{n}.md").exists())

pytestmark = pytest.mark.skipif(not PAGES.exists(), reason="metarl is not run from its repository")


def text(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def sections(page: str) -> dict[str, str]:
    """Heading -> what stands below it."""
    parts = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def options(page: str) -> list[str]:
    """What is written in code font like a setting, NAME or NAME=VALUE, outside of blocks of code and of subsections
    on the use from Python."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^\| `[a-z_]+` \|", "", prose, flags=re.MULTILINE)  # a row of results is named after its variant
    prose = re.sub(r"^### Use\n.*?(?=^## )", "", prose, flags=re.MULTILINE | re.DOTALL)
    for row in rows(page):  # of results, whose methods need not be algorithms
        prose = prose.replace(row, "")
    return re.findall(r"`([a-z][a-z0-9_]*(?:=[^`]+)?)`", prose)


def unknown(page: str, algorithm: str) -> list[str]:
    """The options on a page that neither are settings of the algorithm, with a value that it takes, nor algorithms."""
    known = {field.name for field in dataclasses.fields(algorithms.get(algorithm).Config)}
    bad = []
    for option in options(page):
        name, equals, value = option.partition("=")
        if name not in known and option not in algorithms.ALGORITHMS:
            bad.append(option)
        elif equals:
            try:
                make_config(algorithm, {name: ast.literal_eval(value)})
            except (ValueError, SyntaxError):
                bad.append(option)
    return bad


def rows(page: str) -> list[str]:
    """The rows of results: those that begin with a name in code font."""
    return re.findall(r"^\| `[a-z0-9_]+` \|.*$", page, re.MULTILINE)


@pytest.mark.parametrize("name", WITH_PAGE)
def test_every_algorithm_has_a_page_with_the_fixed_headings(name):
    found = sections(text(name))
    assert tuple(found) == HEADINGS
    assert all(len(body.split()) >= 5 for body in found.values())
    assert re.search(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", found["Paper"])
    assert f"`metarl/algorithms/{name}.py`" in text(name)


@pytest.mark.parametrize("name", GRADIENT_BASED)
def test_every_page_points_to_the_differences_that_all_share(name):
    link = "README.md#shared-differences-from-the-papers"
    assert link in sections(text(name))["Differences from the paper"]
    heading = "Shared differences from the papers"
    assert heading in sections(text("README")) and heading.lower().replace(" ", "-") == link.partition("#")[2]
    shared = sections(text("README"))[heading]
    assert not GradientSettings().adapt_std and "`adapt_std=False`" in shared  # as long as that is the default
    assert GradientSettings().hidden == (64, 64) and "64 x 64" in shared


@pytest.mark.parametrize("name", WITH_PAGE)
def test_every_option_on_a_page_is_a_setting_that_takes_that_value(name):
    assert options(sections(text(name))["Settings"])
    assert unknown(text(name), name) == []


@pytest.mark.parametrize("name", ["README", "inner_loop"])
def test_every_option_on_the_pages_for_all_is_a_setting(name):
    assert options(text(name))
    assert unknown(text(name), "maml_trpo") == []


@pytest.mark.parametrize("name", WITH_PAGE)
def test_every_page_has_a_command_that_trains_its_algorithm(name):
    # That the command line is understood, options and values, is tested for all documents in test_readme.py.
    trained = [command[1] for command in commands(text(name)) if command[0] == "train"]
    assert trained == [name]


def test_the_table_of_algorithms_names_all_and_links_their_pages():
    linked = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\)", text("README"), re.MULTILINE)
    assert [name for name, _ in linked] == [page for _, page in linked]
    assert {name for name, _ in linked} >= set(GRADIENT_BASED)
    assert set(re.findall(r"^\| \[?`(\w+)`", text("README"), re.MULTILINE)) == set(algorithms.ALGORITHMS)


def test_the_axes_name_every_choice_that_there_is():
    written = set(options(text("README")))
    for name in ("inner_gradient", "learned_lr", "adapts"):
        field = {f.name: f for f in dataclasses.fields(GradientSettings)}[name]
        choices = set(LEARNED_LR if name == "learned_lr" else field.type.__args__) - {"none", "context"}
        assert {f'{name}="{choice}"' for choice in choices} <= written


@pytest.mark.skipif(not TABLE.exists(), reason="there are no results yet")
@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_the_numbers_on_a_page_are_those_of_the_results(name):
    found = rows(TABLE.read_text())
    own = rows(sections(text(name))["What it should reach"])
    assert set(own) <= set(found)
    assert [row for row in found if row.startswith(f"| `{name}` |")] == own[:1]


def test_the_readers_of_pages_find_what_is_wrong():
    # The control of the tests above.
    page = ("# X\n\n## Idea\nSet `max_kl` or `maxkl`, `adapts=\"heads\"`, `adapts=\"head\"`, `inner_steps=-1`.\n"
            "`anil` is an algorithm, `anli` none, `metarl/inner/step.py` a path.\n```bash\n`not_read`\n```\n"
            "## Paper\nx\n| `anil` | 1 |\n")  # fmt: skip
    assert unknown(page, "maml_trpo") == ["maxkl", 'adapts="heads"', "inner_steps=-1", "anli"]
    assert unknown(page, "maml_vpg") == ["max_kl", "maxkl", 'adapts="heads"', "inner_steps=-1", "anli"]
    assert list(sections(page)) == ["Idea", "Paper"] and sections(page)["Paper"].startswith("x\n")
    assert rows(page) == ["| `anil` | 1 |"]
    assert blocks(page, "bash") == ["`not_read`\n"]
