"""One process at a time trains in a run's directory.

The lock is the operating system's (`flock`) on an empty file: it ends with the process that holds it, however that
ends. Reading needs no lock. It belongs to the open file, which a forked process shares: so that a child that outlives
its parent does not keep the lock, children close the file first of all. Network file systems may make it a record
lock, which ends when the process closes the file anywhere: so a process remembers what it holds, and does not open
that file again.
"""

import os
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: set[tuple[int, int, int]] = set()
"""Process (a forked copy holds nothing), device and inode of the files that are locked here."""
_locks: "weakref.WeakSet[DirectoryLock]" = weakref.WeakSet()
"""Those that hold a file."""


class DirectoryInUseError(OSError):
    """A run directory in which another process, or another learner in this one, is training."""


class DirectoryLock:
    """The lock of the directory `path`."""

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None
        self._key = (0, 0, 0)

    def acquire(self) -> None:
        """Make the directory if need be and lock it, until `release`.

        Raises:
            DirectoryInUseError: another process, or another holder in this one, has the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        while fcntl is not None and self._file is None:
            if self._found() in _held:
                raise DirectoryInUseError(
                    f"{self.path} is in use: another learner of this process trains in it. Wait for it, stop it, or "
                    "choose another directory"
                )
            file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                os.close(file)
                raise DirectoryInUseError(
                    f"{self.path} is in use: another process trains in it. Wait for it, stop it, or choose another "
                    "directory; to evaluate or load the run needs no waiting"
                ) from None
            except OSError:  # a file system without locks
                os.close(file)
                return
            if self._is_current(file):
                self._file = file
                self._key = _key(os.fstat(file))
                _held.add(self._key)
                _locks.add(self)
            else:  # its holder removed it in between
                os.close(file)

    def release(self) -> None:
        """Remove the file, then give up the lock."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if self._is_current(file):
            (self.path / LOCK).unlink(missing_ok=True)
        self._give_up(file)

    def __del__(self) -> None:
        if self._file is not None:
            self._give_up(self._file)

    def _give_up(self, file: int) -> None:
        _held.discard(self._key)
        fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked in C may still have the file open
        os.close(file)

    def _forget(self) -> None:
        """In a forked process: the lock is the parent's."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _found(self) -> tuple[int, int, int] | None:
        """The file that is there, looked at without opening it."""
        try:
            return _key(os.stat(self.path / LOCK))
        except OSError:
            return None

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path / LOCK))
        except OSError:
            return False


def _key(found: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), found.st_dev, found.st_ino


def _forget_all() -> None:
    for lock in list(_locks):
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
