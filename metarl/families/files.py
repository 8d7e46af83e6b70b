"""Objects in Python files of the user's own, named `PATH.py:NAME`: families and algorithms.

What a user names is imported. What a run or checkpoint names is imported if the user has named the same object of the
same content in this process, has trained with it before (`trusted_files`), or says so.
"""

import ast
import os
import re
import shlex
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from metarl import source_files
from metarl.families import trusted_files
from metarl.source_files import Origin
from metarl.suggestions import did_you_mean
from metarl.tasks import GYMNASIUM, VISIBLE
from metarl.warn import warn_caller

_REFERENCE = re.compile(r"(.+\.py):([^\W\d]\w*)")

_named: list[Origin] = []
"""What the user has named in this process."""


class SourceFileError(ImportError):
    """A file that cannot be imported, or lacks what was named in it."""


class UntrustedFileError(ValueError):
    """A run or checkpoint names a file that must not be imported just because it says so."""


def parsed(reference: str) -> tuple[str, str] | None:
    """`PATH.py:NAME` -> path and name, None for any other word."""
    found = _REFERENCE.fullmatch(reference) if reference.isprintable() else None
    return None if found is None else (found[1], found[2])


def shown(reference: str) -> str:
    """The reference as runs keep it: as it was typed, of an absolute path only the file's name."""
    file, name = _parts(reference)
    path = Path(os.path.expanduser(file))
    return f"{path.name if path.is_absolute() else path}:{name}"


def imported(reference: str, *, trust: bool = True, sha256: str | None = None) -> Any:
    """The object that `PATH.py:NAME` names.

    Args:
        trust: the user has named it or trusts whoever did. Otherwise see `asked_for`.
        sha256: of the content that the file had when a run was saved.

    Raises:
        OSError: no such file.
        SourceFileError: importing it fails, or it has no such name.
        UntrustedFileError: see `asked_for`.
    """
    return load(named(reference) if trust and sha256 is None else asked_for(reference, sha256, trust))


def named(reference: str) -> Origin:
    """The file and object that the user names. Raises OSError if there is no such file."""
    file, name = _parts(reference)
    path = _absolute(file)
    if not path.exists():
        raise FileNotFoundError(f"{reference}: there is no file {file} in {Path.cwd()}" if not os.path.isabs(file)
                                else f"{reference}: there is no file {file}")  # fmt: skip
    origin = Origin(str(path), name, source_files.read(path), str(Path.cwd()))
    if origin not in _named:
        _named.append(origin)
    return origin


def asked_for(
    reference: str, sha256: str | None, trust: bool = False, word: str | None = None, option: str = "family"
) -> Origin:
    """The file and object that a run or checkpoint names.

    Args:
        reference: as the run has it; a relative path is looked up in the current folder, and then among the files that
            the user has trained with.
        sha256: of the file's content when the run was saved.
        trust: import the file of this path even if the user has never named it, or it has changed (a UserWarning).
        word: the family's id in the run, if that is more than the reference.
        option: the argument by which users name such an object, `family` or `algorithm`.

    Raises:
        OSError: no such file.
        UntrustedFileError: it has changed, or the user has neither named nor trained with it and does not trust it.
            The message begins with what the run does.
    """
    file, name = _parts(reference)
    path, word = _absolute(file), word or reference
    alike = [x for x in (*trusted_files.known(), *_named) if x.name == name and Path(x.path).name == Path(file).name]
    alike = sorted(reversed(alike), key=lambda x: x.path != str(path))  # of this very path first, the newest first
    for origin in alike:
        wanted = origin.sha256 == sha256 or (sha256 is None and origin.path == str(path))
        if wanted and _content(origin.path) == origin.sha256:
            return origin
    there = [x for x in alike if Path(x.path).exists()]
    changed = [x for x in there if x.sha256 == sha256] or [x for x in there if x.path == str(path)]
    here = f"{changed[0].path}:{name}" if changed and changed[0].path != str(path) else reference
    if trust:
        origin = named(here)
        check_unchanged(origin, sha256)
        return origin
    prefix = word.removesuffix(reference)
    ask = (f"pass {option}={prefix + here!r} or trust=True; on the command line --{option} "
           f"{shlex.quote(prefix + here)} or --trust")  # fmt: skip
    if changed:
        raise UntrustedFileError(f"names {word!r}, and {path.name} has changed since. To go on with the file as it is "
                                 f"now, {ask}")  # fmt: skip
    if not path.exists():
        raise UntrustedFileError(f"asks to import {reference!r}, and there is no such file in {Path.cwd()}. Say where "
                                 f"it is: on the command line --{option} {prefix}PATH/TO/"
                                 f"{shlex.quote(f'{path.name}:{name}')}, in Python {option}=")  # fmt: skip
    raise UntrustedFileError(f"asks to import {reference!r}, which you have not trained with before. If you trust that "
                             f"file, {ask}")  # fmt: skip


def check_unchanged(origin: Origin, sha256: str | None) -> None:
    """A UserWarning if the file was another one when a run was saved."""
    if sha256 is not None and origin.sha256 != sha256:
        warn_caller(f"{Path(origin.path).name} has changed since the run was saved: training and evaluation go on with "
                    "the file as it is now")  # fmt: skip


def reference_in(id: str) -> str | None:
    """The reference in a family's id, which may have prefixes before it; None if it has none."""
    while id.startswith(f"{VISIBLE}:"):
        id = id.removeprefix(f"{VISIBLE}:")
    return None if id.startswith(f"{GYMNASIUM}:") or parsed(id) is None else id


def same_object(id: str, other: str) -> bool:
    """Whether two ids name an object of the same name in a file, whichever, with the same prefixes."""
    a, b = reference_in(id), reference_in(other)
    if a is None or b is None:
        return False
    return id.removesuffix(a) == other.removesuffix(b) and _parts(a)[1] == _parts(b)[1]


def _parts(reference: str) -> tuple[str, str]:
    found = parsed(reference)
    if found is None:
        raise ValueError(f"an object in a Python file is named like path/to/file.py:NAME, got {reference!r}")
    return found


def _absolute(file: str) -> Path:
    return Path(os.path.expanduser(file)).resolve()


def _content(path: str) -> str | None:
    """The digest of what is in a file now, None if it cannot be read."""
    try:
        return source_files.read(Path(path))
    except OSError:
        return None


def remember(origin: Origin | None) -> None:
    """Note that the user trains with this object, so that runs that name it may import it from now on."""
    if origin is not None:
        trusted_files.add(origin)


# ---------------------------------------------------------------------------------------------------------------------
# Importing


def load(origin: Origin) -> Any:
    """The object itself, its file executed if it has not been yet.

    Raises:
        SourceFileError: executing the file fails, or it has no such name.
    """
    module = executed(origin)
    if not hasattr(module, origin.name):
        known = [name for name in vars(module) if not name.startswith("_")]
        hint = did_you_mean(origin.name, known) if known else "; it defines nothing"
        raise SourceFileError(f"{Path(origin.path).name} has no {origin.name!r}{hint}")
    return getattr(module, origin.name)


def executed(origin: Origin) -> ModuleType:
    """The file as a module, executed if it has not been yet. Raises SourceFileError if that fails."""
    try:
        return source_files.run(origin)
    except (Exception, SystemExit) as error:  # a script that ends the process must not do so in the middle of another
        raise SourceFileError(f"cannot import {Path(origin.path).name}: {described(error, origin)}") from error


def raised_in(error: BaseException, origin: Origin) -> bool:
    """Whether a statement of the file itself raised it, not what the statement called."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename == origin.path


def described(error: BaseException, origin: Origin) -> str:
    """An error in a user's file in one line: what it is and where."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == origin.path]
    if isinstance(error, SyntaxError) and error.filename == origin.path:
        lines = [error.lineno]
    place = f" (line {lines[-1]} of {Path(origin.path).name})" if lines else ""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    hint = ""
    if "attempted relative import" in message:
        hint = "; a file that is named by its path belongs to no package: write `from PACKAGE.MODULE import ...`"
    if isinstance(error, SystemExit):
        hint = '; keep what is only for running the file as a script behind `if __name__ == "__main__":`'
    return f"{type(error).__name__}: {message}{place}{hint}"


def hint(word: str) -> str | None:
    """The end of an error message about a word that was probably meant to name an object in a file, None for others."""
    if word.endswith(".py") or ".py:" in word:
        file, _, rest = word.partition(".py")
        if rest not in ("", ":"):
            return f"; an object in a Python file is named like {file}.py:NAME, by one name"
        if not _absolute(f"{file}.py").exists():
            return f"; there is no file {file}.py in {Path.cwd()}"
        names = sorted(_defined_in(f"{file}.py"), key=lambda name: "famil" not in name.lower())  # those come first
        which = f"it defines {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        return f"; name the function, class or object in that file: {file}.py:{names[0]}; {which}" if names else (
            f"; {file}.py defines no function, class or object"
        )  # fmt: skip
    module, colon, name = word.partition(":")
    if colon and name.isidentifier() and (file := module.replace(".", "/") + ".py") and _absolute(file).exists():
        return f"; did you mean '{file}:{name}'?"
    return None


_SHOWN = 8
"""At most this many names of a file are listed."""


def _defined_in(file: str) -> list[str]:
    """The functions, classes and variables at the top level of a Python file, without running it; [] if it cannot be
    read."""
    try:
        source_files.read(_absolute(file))
        tree = ast.parse(_absolute(file).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [name for statement in tree.body for name in _defined(statement) if not name.startswith("_")]


def _defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
