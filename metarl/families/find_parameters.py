"""Where an environment takes a parameter: a keyword of its constructor, an option of `reset`, or an attribute.

Everything is inferred from signatures, source code and one instance; what cannot be inferred is not found.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

KEYWORD, OPTION, ATTRIBUTE, CONFIGURE = "keyword", "option", "attribute", "configure"
PLACES = {
    KEYWORD: "a keyword of the constructor",
    OPTION: "an option of reset",
    ATTRIBUTE: "an attribute of the unwrapped environment",
    CONFIGURE: "set by configure",
}

_NOT_PARAMETERS = {"render_mode", "spec", "metadata", "np_random", "observation_space", "action_space", *dir(gym.Env)}


def keywords(creator: Callable[..., Any]) -> list[str]:
    """The keywords of a constructor, including those of base classes if it passes `**kwargs` on to them."""
    if inspect.isclass(creator):
        functions = [vars(kind)["__init__"] for kind in creator.__mro__[:-1] if "__init__" in vars(kind)]
    else:
        functions = [creator]
    out: list[str] = []
    for function in functions:
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # no Python function
            break
        own = parameters[1:] if inspect.isclass(creator) else parameters
        out += [p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in out]
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return [name for name in out if name not in _NOT_PARAMETERS]


def options(env: gym.Env) -> list[str]:
    """The options that `reset` reads by name: `options["x"]`, `options.get("x")`, `"x" in options`."""
    found = []
    for node in _nodes(type(env.unwrapped), "reset"):
        words: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and _is_options(node.value):
            words = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_options(node.func.value):
            words = node.args[:1]
        elif isinstance(node, ast.Compare) and _is_options(node.comparators[0]):
            words = [node.left]
        found += [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return list(dict.fromkeys(found))


def _is_options(node: ast.expr) -> bool:
    """Whether an expression is `options`, or something like `(options or {})`."""
    return any(isinstance(part, ast.Name) and part.id == "options" for part in ast.walk(node))


def attributes(env: gym.Env) -> list[str]:
    """Attributes of the unwrapped environment that hold plain values and can be set."""
    env = env.unwrapped
    names = [*vars(env), *(name for kind in type(env).__mro__ for name in vars(kind))]
    public = [name for name in dict.fromkeys(names) if not name.startswith("_") and name not in _NOT_PARAMETERS]
    return [name for name in public if _is_plain(env, name)]


def _is_plain(env: gym.Env, name: str) -> bool:
    member = inspect.getattr_static(type(env), name, None)
    if isinstance(member, property) and member.fset is None:
        return False
    try:
        value = getattr(env, name)
    except Exception:  # a property may want a reset first
        return False
    return isinstance(value, bool | int | float | str | tuple | list | np.ndarray | np.generic)


def derived(env: gym.Env, name: str) -> list[str]:
    """Attributes that the constructor computes from `self.<name>`, and that are therefore not updated when it
    changes."""
    out, changed = [], {name}
    for node in _nodes(type(env.unwrapped), "__init__"):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        if changed & {_own_attribute(part) for part in ast.walk(node.value)}:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [found for target in targets if (found := _own_attribute(target)) and found not in changed]
            changed |= set(names)
            out += names
    return [found for found in out if found not in _NOT_PARAMETERS]


def _own_attribute(node: ast.AST) -> str | None:
    """`x` of `self.x`."""
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if own else None  # type: ignore[attr-defined]


def _nodes(kind: type, method: str) -> Iterator[ast.AST]:
    """The syntax tree, in order of lines, of every class's own `method`, base classes first."""
    for base in reversed(kind.__mro__):
        if method not in vars(base) or base.__module__ in ("builtins", "gymnasium.core"):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(vars(base)[method])))
        except (OSError, TypeError, SyntaxError):  # no source, as in a notebook's or a compiled class
            continue
        yield from sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0))
