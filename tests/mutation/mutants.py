"""Small bugs: every place in a source file where one could be, and what it would look like.

A mutant replaces one stretch of the source by another, so that everything around it stays as it was written.
"""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Mutant:
    """One change of a source file."""

    start: int
    """Offset of the first replaced byte; the file is UTF-8."""
    end: int
    line: int
    kind: str
    text: str
    """What is put there."""

    def apply(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def describe(self, source: str) -> str:
        old = " ".join(source.encode()[self.start : self.end].decode().split())
        return f"{self.line}: {self.kind}: {old!r} -> {self.text!r}"


OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.And: ("and", "or"),
    ast.Or: ("or", "and"), ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
"""Operator -> how it is written, and what stands there in a mutant."""

DROPPED = frozenset(
    ("detach", "clone", "clamp", "clamp_min", "clamp_max", "abs", "sqrt", "exp", "square", "double", "float", "copy",
     "resolve", "mean", "flatten", "contiguous", "bool", "reshape", "close", "tolist")
)  # fmt: skip
"""Methods whose call a mutant leaves out: `x.detach()` -> `x`."""

NEVER_SWAPPED = {ast.Starred, ast.Constant, ast.JoinedStr, ast.Lambda}
"""Arguments that no one confuses with others, or that fail at once where they do not belong."""


def mutants(source: str) -> list[Mutant]:
    """All mutants of a file, in the order in which they stand in it; none that cannot be parsed."""
    found = set(_Finder(source).all())
    return sorted(mutant for mutant in found if _parses(mutant.apply(source)))


def sample(of: Sequence[Mutant], n: int | None, seed: int) -> list[Mutant]:
    """`n` of them, or all; the same for the same seed."""
    if n is None or n >= len(of):
        return list(of)
    return sorted(random.Random(seed).sample(list(of), n))


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


class _Finder:
    def __init__(self, source: str):
        self.data = source.encode()
        self.tree = ast.parse(source)
        self.lines = [0]
        for line in self.data.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    def all(self) -> Iterator[Mutant]:
        for node in _relevant(self.tree):
            method = getattr(self, f"_{type(node).__name__.lower()}", None)
            if method is not None:
                yield from method(node)

    # Places ----------------------------------------------------------------------------------------------------------

    def start(self, node: ast.AST) -> int:
        return self.lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self.lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        return self.data[self.start(node) : self.end(node)].decode()

    def replaced(self, node: ast.AST, kind: str, text: str) -> Mutant:
        return Mutant(self.start(node), self.end(node), node.lineno, kind, text)  # type: ignore[attr-defined]

    def between(self, left: ast.AST, right: ast.AST, operator: ast.AST) -> Iterator[Mutant]:
        """The operator between two nodes, which has no place of its own in the tree."""
        if type(operator) not in OPERATORS:
            return
        old, new = OPERATORS[type(operator)]
        start, end = self.end(left), self.start(right)
        at = self.data[start:end].find(old.encode())
        if at >= 0:
            place = start + at
            yield Mutant(place, place + len(old), self.data[:place].count(b"\n") + 1, "operator", new)

    # Kinds of bugs ---------------------------------------------------------------------------------------------------

    def _binop(self, node: ast.BinOp) -> Iterator[Mutant]:
        yield from self.between(node.left, node.right, node.op)
        if isinstance(node.op, ast.Mult):  # a forgotten mask or weight
            for kept, lost in ((node.left, node.right), (node.right, node.left)):
                if "mask" in self.text(lost) or "weight" in self.text(lost):
                    yield self.replaced(node, "factor left out", self.text(kept))

    def _augassign(self, node: ast.AugAssign) -> Iterator[Mutant]:
        yield self.replaced(node, "statement left out", "pass")

    def _boolop(self, node: ast.BoolOp) -> Iterator[Mutant]:
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from self.between(left, right, node.op)

    def _compare(self, node: ast.Compare) -> Iterator[Mutant]:
        for left, right, operator in zip([node.left, *node.comparators], node.comparators, node.ops, strict=False):
            yield from self.between(left, right, operator)

    def _unaryop(self, node: ast.UnaryOp) -> Iterator[Mutant]:
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            yield self.replaced(node, "operator left out", f"({self.text(node.operand)})")

    def _constant(self, node: ast.Constant) -> Iterator[Mutant]:
        if isinstance(node.value, bool):
            yield self.replaced(node, "constant", str(not node.value))
        elif isinstance(node.value, int):
            yield self.replaced(node, "constant", str(node.value + 1))
        elif isinstance(node.value, float):
            yield self.replaced(node, "constant", repr(node.value * 2 if node.value else 1.0))

    def _ifexp(self, node: ast.IfExp) -> Iterator[Mutant]:
        yield self.replaced(node, "branch", f"({self.text(node.body)})")
        yield self.replaced(node, "branch", f"({self.text(node.orelse)})")

    def _if(self, node: ast.If) -> Iterator[Mutant]:
        yield self.replaced(node.test, "condition", "True")
        yield self.replaced(node.test, "condition", "False")

    def _expr(self, node: ast.Expr) -> Iterator[Mutant]:
        if isinstance(node.value, ast.Call):
            yield self.replaced(node, "statement left out", "pass")

    def _call(self, node: ast.Call) -> Iterator[Mutant]:
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        for keyword in node.keywords:
            if keyword.arg not in (None, "strict") and len(arguments) > 1:
                yield self._without(node, keyword)
        for a, b in zip(node.args, node.args[1:], strict=False):
            one, two = self.text(a), self.text(b)
            if one != two and not {type(a), type(b)} & NEVER_SWAPPED:
                middle = self.data[self.end(a) : self.start(b)].decode()
                yield Mutant(self.start(a), self.end(b), a.lineno, "arguments swapped", two + middle + one)
        if isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
            function = isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "np", "math")
            inside = node.args[0] if function and node.args else node.func.value
            yield self.replaced(node, "call left out", f"({self.text(inside)})")

    def _without(self, call: ast.Call, keyword: ast.keyword) -> Mutant:
        """The keyword with the comma after it, or else the one before."""
        start, end = self.start(keyword), self.end(keyword)
        rest = self.data[end : self.end(call)].decode()
        if rest.lstrip().startswith(","):
            end += rest.index(",") + 1
        else:
            start = self.data.rindex(b",", self.start(call), start)
        return Mutant(start, end, keyword.lineno, "argument left out", "")


def _relevant(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that decide what a program does: no types, docstrings, messages, assertions."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "decorator_list", "bases"):
            continue
        if name == "keywords":  # `zip(..., strict=True)` guards, like an assertion
            value = [keyword for keyword in value if keyword.arg != "strict"]
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _relevant(child)
