"""One process at a time trains in a run's directory.

The lock is the operating system's (POSIX record lock) on an empty file: it ends with the process that holds it,
however that ends, and processes that it starts do not inherit it. Reading needs no lock. Such a lock does not tell two
holders in one process apart, and ends when the process closes the file anywhere: so a process remembers what it holds,
and does not open that file again.
"""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: set[tuple[int, int, int]] = set()
"""Process (a forked copy holds nothing), device and inode of the files that are locked here."""


class DirectoryInUseError(OSError):
    """A run's directory that another process, or another learner in this one, trains in."""


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
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            else:  # its holder removed it in between
                os.close(file)

    def release(self) -> None:
        """Remove the file, then give up the lock."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if self._is_current(file):
            (self.path / LOCK).unlink(missing_ok=True)
        _held.discard(self._key)
        os.close(file)

    def __del__(self) -> None:
        if self._file is not None:
            _held.discard(self._key)
            os.close(self._file)

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
