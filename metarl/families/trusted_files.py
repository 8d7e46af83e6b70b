"""The record of the Python files that this user has trained with, which runs may import without confirmation.

It is one JSON file, `trusted_files.json` in `$XDG_STATE_HOME/metarl` (by default `~/.local/state/metarl`), or the file
given by the environment variable METARL_TRUSTED_FILES. Deleting it revokes all trust.
"""

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarl.source_files import Origin

VARIABLE = "METARL_TRUSTED_FILES"
MOST = 1000
"""Number of entries to keep, newest first."""
_FIELDS = {field.name for field in dataclasses.fields(Origin)}


def record() -> Path:
    """The path of the record, whether or not it exists."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path(os.path.expanduser("~/.local/state"))
    return folder / "metarl" / "trusted_files.json"


def known() -> list[Origin]:
    """The files that have been trained with, oldest first. A record that is damaged, or writable by other users, is
    treated as empty, with a UserWarning."""
    try:
        path = record()
        with path.open("rb") as file:
            if problem := _unsafe(os.fstat(file.fileno())):
                raise ValueError(problem)
            entries = json.load(file)["files"]
        return [Origin(**entry) for entry in entries if _is_whole(entry)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        warnings.warn(f"the record of files that you have trained with cannot be used, and counts as empty: "
                      f"{record()}: {type(error).__name__}: {error}", UserWarning, stacklevel=3)  # fmt: skip
        return []


def _unsafe(found: os.stat_result) -> str:
    if hasattr(os, "getuid") and (found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o022):
        return "other users can write to it; delete it, or take that right from them (chmod go-w)"
    return ""


def _is_whole(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.keys() == _FIELDS and all(isinstance(x, str) for x in entry.values())


def add(origin: Origin) -> None:
    """Add a file to the record, which only its user can read and write. Gives a UserWarning if that fails."""
    from metarl.checkpoint import atomic_write  # here: it imports torch, which `metarl list` can do without

    try:
        path = record()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            entries = known()
            if origin in entries:
                return
            kept = [dataclasses.asdict(entry) for entry in (*entries, origin)][-MOST:]
            atomic_write(path, (json.dumps({"version": 1, "files": kept}, indent=2) + "\n").encode(), mode=0o600)
    except OSError as error:
        warnings.warn(f"{origin.path} could not be noted as a file that you have trained with: later commands will ask "
                      f"for --family ({error})", UserWarning, stacklevel=3)  # fmt: skip


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock for one process at a time, if the system supports it, so that two concurrent entries are both kept."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path.with_name(f"{path.name}.lock"), "ab") as file:
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
