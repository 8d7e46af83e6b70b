"""Python files that users specify by path, as modules: run from exactly the bytes that were read, here and in workers.

A module's name consists of its file's name and a digest of its path and content. Two files called `family.py` do not
collide, an edited file is a different module, and a worker process that receives `registered()` can unpickle what the
file defines without reading the file again.
"""

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_BYTES = 10 * 2**20
"""Larger than any hand-written Python file."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of an object that a user specified as `PATH.py:NAME`."""

    path: str
    """The file, absolute, with symbolic links resolved."""
    name: str
    """The object's name in it."""
    sha256: str
    """Of the file's content, in hexadecimal digits."""
    folder: str
    """The current folder when the user specified it, from which the file may also import."""


def read(path: Path) -> str:
    """Read a Python file and return the digest of its content, under which `run` finds it.

    Raises:
        OSError: not a regular file, larger than `MAX_BYTES`, or not readable.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        source = file.read(MAX_BYTES + 1)
    if len(source) > MAX_BYTES:
        raise OSError(f"{path} is larger than {MAX_BYTES:,} bytes: is it a Python file?")
    return keep(source)


def keep(source: bytes) -> str:
    """The digest under which `run` finds this content."""
    digest = hashlib.sha256(source).hexdigest()
    _SOURCES[digest] = source
    return digest


def content(origin: Origin) -> bytes:
    """What `read` has found in a file."""
    return _SOURCES[origin.sha256]


_SOURCES: dict[str, bytes] = {}
"""SHA-256 -> what has been read."""


def run(origin: Origin) -> ModuleType:
    """The module of a file that has been `read`. It is executed unless this content has been executed before.

    Imports in it search its own folder first and `origin.folder` last; both stay on `sys.path`, for later imports and
    for worker processes. Raises whatever executing it raises, and ImportError if another module has the same name as a
    file in its folder that it imports.
    """
    path = Path(origin.path)
    main = sys.modules["__main__"]
    if (script := getattr(main, "__file__", None)) is not None and Path(script).resolve() == path:
        return main  # a script that names itself is not run a second time
    for position, entry in ((0, str(path.parent)), (len(sys.path) + 1, origin.folder)):
        if entry not in sys.path:
            sys.path.insert(position, entry)
    _check_neighbours(path, _SOURCES[origin.sha256])
    import cloudpickle  # here: workers import this module and need not pickle

    name = _module_name(origin)
    register([(name, origin.path, _SOURCES[origin.sha256])])
    module = importlib.import_module(name)
    cloudpickle.register_pickle_by_value(module)  # for processes that are not told `registered()`: Ray's, joblib's
    return module


def _check_neighbours(path: Path, source: bytes) -> None:
    """Refuse an import that Python would silently resolve to a module of the same name from another folder."""
    for node in ast.walk(ast.parse(source, str(path))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
            files = [path.parent / f"{name}.py", path.parent / name / "__init__.py"]
            other = getattr(sys.modules.get(name), "__file__", None)
            if other is not None and any(x.exists() for x in files) and Path(other).resolve() not in files:
                raise ImportError(f"it imports {name!r}, but another module of that name is already imported, {other}: "
                                  f"rename the one next to {path.name}, or use another process")  # fmt: skip


def _module_name(origin: Origin) -> str:
    stem = re.sub(r"\W", "_", Path(origin.path).stem)
    return f"{stem}_{hashlib.sha256(f'{origin.path}:{origin.sha256}'.encode()).hexdigest()[:12]}"


# ---------------------------------------------------------------------------------------------------------------------
# Import by name


_FILES: dict[str, tuple[str, bytes]] = {}
"""Module -> its file's path and content."""


def registered() -> list[tuple[str, str, bytes]]:
    """Every module that can be imported: name, path, content."""
    return [(name, *file) for name, file in _FILES.items()]


def register(files: list[tuple[str, str, bytes]]) -> None:
    """Let modules be imported by name, in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
    for name, path, source in files:
        _FILES[name] = path, source


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _FILES:
            return None
        file, source = _FILES[name]
        spec = importlib.machinery.ModuleSpec(name, _Loader(file, source), origin=file)
        spec.has_location = True  # gives the module its `__file__`
        return spec


class _Loader(importlib.abc.SourceLoader):
    """Compiles the content that was read, since the file may have changed. No bytecode is cached next to it."""

    def __init__(self, path: str, source: bytes):
        self.path, self.source = path, source

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str | bytes) -> bytes:
        if path != self.path:
            raise OSError(f"no file but {self.path} is read here")
        return self.source


@contextlib.contextmanager
def by_name() -> Iterator[None]:
    """A block in which cloudpickle refers to these modules by name, for processes that receive `registered()`."""
    import cloudpickle

    names = [name for name in cloudpickle.list_registry_pickle_by_value() if name in _FILES]
    modules = [sys.modules[name] for name in names if name in sys.modules]  # a program may drop what it imported
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
