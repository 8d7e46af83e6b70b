"""No function takes more than eight arguments, except those that users call with keywords."""

import ast
from pathlib import Path

import metarl_envs
import pytest

import metarl

MOST = 8
PUBLIC = {
    "metarl/families/gymnasium.py:from_gymnasium",
    "metarl/supervised/learner.py:FewShotLearner.learn",
}
"""Public functions that may take more: each of their arguments is one that a user may want to name."""

ROOTS = [Path(package.__file__ or "").parent for package in (metarl, metarl_envs)]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(function: Function, method: bool) -> list[str]:
    """Their names, without the `self` or `cls` of a method."""
    found = function.args
    names = [x.arg for x in (*found.posonlyargs, *found.args, *found.kwonlyargs, found.vararg, found.kwarg) if x]
    static = any(isinstance(x, ast.Name) and x.id == "staticmethod" for x in function.decorator_list)
    return names[1:] if method and not static else names


def functions(node: ast.AST, prefix: str = "", method: bool = False) -> dict[str, list[str]]:
    """The parameters of every function in the module, class or function, by its dotted name."""
    out: dict[str, list[str]] = {}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            out[prefix + child.name] = parameters(child, method)
        if isinstance(child, Function | ast.ClassDef):
            out |= functions(child, f"{prefix}{child.name}.", isinstance(child, ast.ClassDef))
        else:
            out |= functions(child, prefix, method)
    return out


def too_long(source: str, path: str) -> dict[str, list[str]]:
    found = functions(ast.parse(source))
    return {f"{path}:{name}": names for name, names in found.items() if len(names) > MOST}


LONG = {
    name: names
    for root in ROOTS
    for path in sorted(root.rglob("*.py"))
    for name, names in too_long(path.read_text(), path.relative_to(root.parent).as_posix()).items()
}


def test_only_public_functions_take_more_than_eight_arguments():
    more = {name: names for name, names in LONG.items() if name not in PUBLIC}
    assert not more, "give what travels together a name (a frozen dataclass), or split the function"


def test_the_exceptions_are_needed():
    assert set(LONG) >= PUBLIC


@pytest.mark.parametrize(
    ("source", "long"),
    [
        ("def f(a, b, c, d, e, /, f, g, *, h): ...", []),
        ("def f(a, b, c, d, e, /, f, g, *, h, i): ...", ["f"]),
        ("async def f(a, b, c, d, e, f, g, *h, **i): ...", ["f"]),
        ("class C:\n def f(self, a, b, c, d, e, f, g, h): ...", []),
        ("class C:\n def f(self, a, b, c, d, e, f, g, h, i): ...", ["C.f"]),
        ("class C:\n @staticmethod\n def f(a, b, c, d, e, f, g, h, i): ...", ["C.f"]),
        ("class C:\n if x:\n  def f(self, a, b, c, d, e, f, g, h): ...", []),
        ("def f():\n def g(a, b, c, d, e, f, g, h, i): ...", ["f.g"]),
    ],
)
def test_every_argument_counts_and_self_does_not(source, long):
    assert list(too_long(source, "m")) == [f"m:{name}" for name in long]
