"""Command-line arguments as a dataclass of options; every mistake gives a one-line error that says what is expected."""

import contextlib
import dataclasses
import io
import re
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from metarl.suggestions import did_you_mean, setting_hint

T = TypeVar("T")

_KINDS: dict[Any, tuple[Callable[[str], Any], str, str]] = {
    int: (int, "a whole number", "whole numbers"),
    float: (float, "a number", "numbers"),
    str: (str, "a word", "words"),
    Path: (str, "a path", "paths"),
}
"""Type -> a function that parses a value of it, and descriptions of one and of several such values."""


class UsageError(ValueError):
    """An invalid command line."""


@dataclasses.dataclass(frozen=True)
class _Option:
    name: str
    """As on the command line, without dashes."""
    type: Any
    """The type of a single value; None if it is not checked here."""
    many: bool
    """Whether it takes any number of values."""
    optional: bool
    """Whether it may be `None`."""
    positional: bool
    required: bool


def parse(kind: type[T], prog: str, argv: Sequence[str], *parts: type) -> T:
    """Parse the command line into `kind`, whose options are the fields of `parts` (by default its own).

    Raises:
        UsageError: an unknown option, a value of the wrong type, or too many or too few values.
    """
    options = {option.name: option for part in parts or (kind,) for option in _options(part)}
    if not {"-h", "--help"} & set(argv):
        _check(prog, argv, options)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, prog=prog, args=argv)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_in_one_line(errors.getvalue())}; `{prog} --help` lists the options") from None


def _options(part: Any) -> Iterator[_Option]:
    hints = get_type_hints(part, include_extras=True)
    for field in dataclasses.fields(part):
        hint, positional = hints[field.name], False
        if get_origin(hint) is Annotated:
            positional = tyro.conf.Positional[int].__metadata__[0] in hint.__metadata__  # type: ignore[attr-defined]
            hint = get_args(hint)[0]
        optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
        if optional:
            (hint, *others) = (x for x in get_args(hint) if x is not type(None))
            hint = None if others else hint
        many = get_origin(hint) is tuple and get_args(hint)[1:] == (...,)
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        one = get_args(hint)[0] if many else hint
        known = one is bool or one in _KINDS or get_origin(one) is Literal
        yield _Option(field.name.replace("_", "-"), one if known else None, many, optional, positional, required)


def _check(prog: str, argv: Sequence[str], options: dict[str, _Option]) -> None:
    given: dict[str, list[str]] = {}
    loose: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            loose.append(word)
            continue
        option, values = _start(word, options)
        if option is None or option.type is None:
            return  # tyro knows
        if option.type is bool:
            continue
        while words and not words[0].startswith("--") and (option.many or not values):
            values.append(words.pop(0))
        given[option.name] = values
        _check_values(f"--{option.name}", option, values)
    wanted = [option for option in options.values() if option.positional]
    for option, word in zip(wanted, loose, strict=False):
        _check_values(option.name, option, [word])
    usage = " ".join((prog, *(option.name.upper() for option in wanted), "[options]"))
    if missing := [option.name.upper() for option in wanted[len(loose) :] if option.required]:
        swallowed = [name for name, values in given.items() if options[name].many and len(values) > 1]
        belong = f" (all words after --{swallowed[-1]} belong to it)" if swallowed else ""
        raise UsageError(f"{prog} needs {' and '.join(missing)}{belong}: {usage}")
    if wanted and wanted[-1].many:  # takes the rest
        _check_values(wanted[-1].name, wanted[-1], loose[len(wanted) - 1 :])
    elif more := loose[len(wanted) :]:
        raise UsageError(f"{prog} does not know what to do with {', '.join(map(repr, more))}: {usage}")
    for option in options.values():
        if option.required and not option.positional and option.name not in given:
            raise UsageError(f"{prog} needs --{option.name}: `{prog} --help` says what it is")


def _start(word: str, options: dict[str, _Option]) -> tuple[_Option | None, list[str]]:
    """An option and the value after its equals sign. Raises UsageError, with the most similar name, if it is
    unknown."""
    name, equals, value = word[2:].partition("=")
    name = name.replace("_", "-")
    option = options.get(name)
    if option is None and name.startswith("no-"):
        option = options.get(name.removeprefix("no-"))
        option = option if option is not None and option.type is bool else None
    if option is None:
        known = {"help", *options, *(f"no-{name}" for name in options if options[name].type is bool)}
        raise UsageError(f"there is no option --{name}{setting_hint(name, sorted(known), command_line=True)}")
    return option, [value] if equals else []


def _check_values(shown: str, option: _Option, values: list[str]) -> None:
    if get_origin(option.type) is Literal:
        choices = [str(choice) for choice in get_args(option.type)]
        one, reads = f"one of {', '.join(choices)}", dict.fromkeys(choices, True).__getitem__
        for value in values:
            if value not in choices and not (option.optional and value == "None"):
                raise UsageError(f"{shown} must be {one}, got {value!r}{did_you_mean(value, choices)}")
    else:
        reads, one, several = _KINDS[option.type]
        for value in values:
            try:
                reads(value)
            except ValueError:
                if option.optional and value == "None":
                    continue
                what = f"{several}, separated by spaces" if option.many else one
                raise UsageError(f"{shown} must be {what}, got {value!r}") from None
    if not values and not option.many:
        raise UsageError(f"{shown} needs a value: {one}")


def _in_one_line(box: str) -> str:
    """The message in the box drawn by tyro: the text above its first rule."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    message = " ".join(lines[: next((n for n, line in enumerate(lines) if line.startswith("──")), None)])
    return re.sub(r"\s+", " ", message).strip() or "this command line makes no sense"
