"""A mistake in a command line is one line that names the option, shows the word and says what is expected."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro

from metarl import cli, options
from metarl.options import UsageError, parse


@dataclasses.dataclass(frozen=True)
class Small:
    """Options of every kind."""

    run: tyro.conf.Positional[Path]
    """A path."""
    task: tuple[str, ...]
    """Needed."""
    n: int = 1
    """A whole number."""
    size: float | None = None
    """A number, or none."""
    sizes: tuple[float, ...] = ()
    """Numbers."""
    layers: tuple[int, ...] = (1,)
    """Whole numbers."""
    mode: Literal["fast", "slow"] = "fast"
    """One of two."""
    pair: tuple[int, str] = (1, "a")
    """Which only tyro knows."""
    show: bool = True
    """Yes or no."""


def parsed(*words: str) -> Small:
    return parse(Small, "metarl small", ["run", "--task", "a=1", *words])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--n", "3", "--size", "-0.5", "--no-show"], {"n": 3, "size": -0.5, "show": False}),
        (["--n=3", "--size=None", "--sizes", "1", "2.5"], {"n": 3, "size": None, "sizes": (1.0, 2.5)}),
        (["--layers", "--mode", "slow"], {"layers": (), "mode": "slow"}),
        (["--pair", "2", "b"], {"pair": (2, "b")}),
    ],
)
def test_what_is_right_is_read(words, values):
    assert parsed(*words) == dataclasses.replace(Small(Path("run"), ("a=1",)), **values)


def test_an_option_may_stand_before_what_has_none():
    expected = Small(Path("run"), ("a=1",), n=3, show=False)
    assert parse(Small, "metarl small", ["--n", "3", "--no-show", "run", "--task", "a=1"]) == expected


MISTAKES: list[tuple[list[str], str]] = [
    (["run", "--task", "a=1", "--n", "ten"], "--n must be a whole number, got 'ten'"),
    (["run", "--task", "a=1", "--n=1.5"], "--n must be a whole number, got '1.5'"),
    (["run", "--task", "a=1", "--n", "None"], "--n must be a whole number, got 'None'"),
    (["run", "--task", "a=1", "--size", "x"], "--size must be a number, got 'x'"),
    (["run", "--task", "a=1", "--sizes", "1", "x"], "--sizes must be numbers, separated by spaces, got 'x'"),
    (["run", "--task", "a=1", "--layers", "3,4"], "--layers must be whole numbers, separated by spaces, got '3,4'"),
    (["run", "--task", "a=1", "--mode", "fst"], "--mode must be one of fast, slow, got 'fst'; did you mean 'fast'?"),
    (["run", "--task", "a=1", "--n"], "--n needs a value: a whole number"),
    (["run", "--task", "a=1", "--n", "--show"], "--n needs a value: a whole number"),
    (["run", "--task", "a=1", "--siz", "1"], "there is no option --siz; did you mean 'size'?"),
    (["run", "--task", "a=1", "--no-size"], "there is no option --no-size"),
    (["run", "--n", "3"], "metarl small needs --task: `metarl small --help` says what it is"),
    ([], "metarl small needs RUN: metarl small RUN [options]"),
    (["--task", "a=1", "run"], "metarl small needs RUN (all words after --task belong to it): metarl small RUN"),
    (["run", "more", "--task", "a=1"], "metarl small does not know what to do with 'more': metarl small RUN [options]"),
    (["run", "--task", "a=1", "--pair", "x", "y"], "Error parsing --pair: "),
    (["run", "--task", "a=1", "--pair", "1"], "`metarl small --help` lists the options"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_what_is_wrong_is_said_in_one_line(argv, message, capsys):
    with pytest.raises(UsageError) as raised:
        parse(Small, "metarl small", argv)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value) and "│" not in str(raised.value)
    assert capsys.readouterr() == ("", "")


def test_help_is_printed_whatever_else_is_wrong(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Small, "metarl small", ["--n", "ten", "--help"])
    assert stopped.value.code == 0
    assert "usage: metarl small" in capsys.readouterr().out


NUMBERS = {int: "a whole number", float: "a number"}


def of_commands() -> list[tuple[list[str], options._Option]]:
    """Every option with a type of every command: the words before it, and itself."""
    commands: dict[str, Any] = {
        "train maml_trpo PointNavigation-v0": cli.TrainOptions, "train --resume run": cli.ResumeOptions,
        "evaluate run": cli.EvaluateOptions, "adapt run --task a=1": cli.AdaptOptions, "render run": cli.RenderOptions,
    }  # fmt: skip
    return [(words.split(), option) for words, kind in commands.items() for option in options._options(kind)
            if option.type in NUMBERS]  # fmt: skip


@pytest.mark.parametrize(("words", "option"), of_commands(), ids=lambda value: getattr(value, "name", None))
def test_every_number_of_every_command_refuses_a_word(words, option):
    with pytest.raises(UsageError, match=f"^--{option.name} must be .*number.*, got 'ten'$"):
        cli.run([*words, f"--{option.name}", "ten"])


def test_a_setting_of_an_algorithm_does_so_too():
    with pytest.raises(UsageError, match=r"^--max-kl must be a number, got 'big'$"):
        cli.run(["train", "maml_trpo", "PointNavigation-v0", "--max-kl", "big"])


@pytest.mark.parametrize(
    ("argv", "way"),
    [(["resume", "my run"], "metarl train --resume 'my run'"), (["continue"], "metarl train --resume RUN"),
     (["resume", "run", "--iterations", "5"], "metarl train --resume run --iterations 5")],
)  # fmt: skip
def test_who_types_resume_is_told_how(argv, way):
    with pytest.raises(UsageError) as raised:
        cli.run(argv)
    assert str(raised.value) == f"there is no command {argv[0]!r}; a run goes on with {way}"
