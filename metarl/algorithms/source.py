"""Algorithms in Python files of the user's own, `PATH.py` or `PATH.py:NAME`, and the algorithm that a checkpoint needs.

`PATH.py:NAME` is an object in the file that has the five names of `contract`; `PATH.py` is the file itself, which
defines them. What a user names is imported; what a run names, under the rules of `families.files`.
"""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from metarl import algorithms, source_files
from metarl.algorithms.check import checked_algorithm
from metarl.checkpoint import CheckpointError
from metarl.families import files
from metarl.source_files import Origin
from metarl.tasks import is_family

FUNCTIONS = ("init", "iteration", "evaluate")
NAMES = ("Config", "State", *FUNCTIONS)


class OwnCodeError(ValueError):
    """An error in an algorithm's file while one of its functions ran; `__cause__` is that error."""


def reference_of(word: Any) -> str | None:
    """`PATH.py` or `PATH.py:NAME` as `PATH.py:NAME`, None for any other word. The file itself has its own name."""
    if not isinstance(word, str) or not word.isprintable():
        return None
    if word.endswith(".py") and len(word) > len(".py") and Path(os.path.expanduser(word)).is_file():
        return f"{word}:{_own_name(word)}"
    return None if files.parsed(word) is None else word


def _own_name(path: str) -> str:
    """A file's name as a name of Python's: `my-search.py` -> `my_search`."""
    stem = re.sub(r"\W", "_", Path(path).stem)
    return stem if stem.isidentifier() else f"_{stem}"


class FileAlgorithm:
    """The five names of an algorithm in a file, and which file that is. Errors of the file's own lines say where they
    are."""

    def __init__(self, origin: Origin, reference: str):
        """Execute the file. Raises SourceFileError if that fails, ValueError if there is no algorithm in it."""
        self.origin, self.reference = origin, reference
        self.__name__ = origin.name
        found = _found(origin, reference)
        self.__doc__ = found.__doc__
        for name in (x for x in NAMES if hasattr(found, x)):
            value = getattr(found, name)
            runs = name in FUNCTIONS and callable(value)
            setattr(self, name, _located(value, f"{reference}: {name}", origin) if runs else value)
        checked_algorithm(self, reference)

    def __reduce__(self) -> Any:
        return _again, (self.origin, source_files.content(self.origin), self.reference)


def _again(origin: Origin, source: bytes, reference: str) -> FileAlgorithm:
    """For pickle: from the content that the file had."""
    source_files.keep(source)
    return FileAlgorithm(origin, reference)


def _found(origin: Origin, reference: str) -> Any:
    """The object that a reference names. Raises ValueError for one that is no algorithm at all."""
    module = files.executed(origin)
    itself = any(hasattr(module, name) for name in NAMES)
    if itself and origin.name == _own_name(origin.path):
        return module
    if not hasattr(module, origin.name) and origin.name == _own_name(origin.path):
        value: Any = None
    else:
        value = files.load(origin)
    if any(hasattr(value, name) for name in NAMES):
        return value
    file = reference.rpartition(":")[0]
    those = [name for name, x in vars(module).items() if all(hasattr(x, wanted) for wanted in NAMES)]
    if itself:
        hint = f"; the file itself is one: {file}"
    elif those:
        hint = f"; in this file {', '.join(those)} {'has' if len(those) == 1 else 'have'} them: {file}:{those[0]}"
    elif is_family(value) or callable(value):
        hint = f"; if it makes a family, the algorithm comes first: maml_trpo {reference}"
    else:
        hint = " (docs/your_own_algorithm.md)"
    raise ValueError(f"{reference} is no algorithm, it has no {', '.join(NAMES[:-1])} or {NAMES[-1]}{hint}")


def _located(function: Callable[..., Any], where: str, origin: Origin) -> Callable[..., Any]:
    """`function`, whose own errors say where in the file they are. What the package raises for users stays as it is."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if isinstance(error, ValueError | OSError | ImportError) and not files.raised_in(error, origin):
                raise
            raise OwnCodeError(f"{where} raised {files.described(error, origin)}") from error

    return wrapped


def named(word: str) -> Any:
    """The algorithm that a user names: a name, `PATH.py` or `PATH.py:NAME`.

    Raises:
        ValueError: there is none, with the nearest name; or it lacks one of the five names.
        OSError: no such file.
        ImportError: executing it fails, or it has no such name.
    """
    reference = reference_of(word)
    if reference is None:
        return algorithms.get(word)
    return FileAlgorithm(files.named(reference), files.shown(reference))


def source_of(given: Any, algorithm: Any) -> dict[str, Any]:
    """What a run remembers of an algorithm that it cannot find by its name alone: of a file the reference and the
    SHA-256, of a module that was passed in Python its name. An empty dict for the others.

    Args:
        given: what the user has named or passed.
        algorithm: what that is.
    """
    if isinstance(algorithm, FileAlgorithm):
        return {"file": algorithm.reference, "sha256": algorithm.origin.sha256}
    name, module = algorithms.name_of(algorithm), str(algorithm.__name__)
    point = algorithms.announced().get(name)
    installed = module == f"{algorithms.__name__}.{name}" or (point is not None and module == point.value)
    return {} if isinstance(given, str) or installed else {"module": module}


def name_of(given: Any, algorithm: Any) -> str:
    """Under which an algorithm is logged and saved: the name that a user has given for one of a package, otherwise the
    last part of its own."""
    return given if isinstance(given, str) and not source_of(given, algorithm) else algorithms.name_of(algorithm)


def typed(algorithm: Any) -> str:
    """The word by which a user names an algorithm on the command line."""
    return algorithm.reference if isinstance(algorithm, FileAlgorithm) else algorithms.name_of(algorithm)


def portable(algorithm: Any) -> Any:
    """An algorithm for pickle, which takes no modules: the name to import one by, anything else as it is."""
    return algorithm.__name__ if isinstance(algorithm, ModuleType) else algorithm


def origin_of(algorithm: Any) -> Origin | None:
    """The file that an algorithm was named by, None for others."""
    return algorithm.origin if isinstance(algorithm, FileAlgorithm) else None


def of_checkpoint(path: Path, meta: dict[str, Any], given: Any, trust: bool) -> Any:
    """The algorithm of the checkpoint at `path`; `given` (an algorithm, or a user's word for one) if that is not None.

    Raises:
        CheckpointError: it is none of the package's, of those announced or of a file that may be imported, and the
            user has not named it; or the user has named another one.
    """
    name, source = meta["algorithm"], meta.get("algorithm_source", {})
    if given is not None and not isinstance(given, str):
        return given
    try:
        if given is not None:
            return _renamed(path, name, source, given)
        if "file" in source:
            origin = files.asked_for(source["file"], source.get("sha256"), trust, option="algorithm")
            return FileAlgorithm(origin, source["file"])
        if "module" in source or (name not in algorithms.ALGORITHMS and name not in algorithms.announced()):
            raise CheckpointError(
                f"{path} was saved by a learner that was given a module as its algorithm, "
                f"{source.get('module', name)!r}: pass the same one as algorithm=; on the command line --algorithm "
                "FILE.py, or FILE.py:NAME for an object in it"
            )
        algorithms.get(name, trust)
        return name
    except CheckpointError:
        raise
    except files.UntrustedFileError as error:
        raise CheckpointError(f"{path} {error}") from None
    except (ValueError, ImportError, OSError) as error:
        what = f"the algorithm {given!r}" if given is not None else f"its algorithm {source.get('file', name)!r}"
        raise CheckpointError(f"{path} cannot be loaded with {what}: {error}") from error


def _renamed(path: Path, name: str, source: dict[str, Any], given: str) -> Any:
    """The algorithm that the user names for a checkpoint that was saved with `name`, from `source`."""
    reference = reference_of(given)
    if (reference is None and given != name) or (
        reference is not None and not source and name in algorithms.ALGORITHMS
    ):
        raise CheckpointError(f"{path} was trained with {name}, not with {given}: leave that out, or start a new run "
                              f"with {given} from what this one has learned (--start-from, start_from)")  # fmt: skip
    found = named(given)
    if (origin := origin_of(found)) is not None:
        files.check_unchanged(origin, source.get("sha256"))
    return found
