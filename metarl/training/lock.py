"""One process at a time trains in a run's directory.

The lock is the operating system's (POSIX record lock) on an empty file: it ends with the process that holds it,
however that ends, and processes that it starts do not inherit it. Reading needs no lock.
"""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class DirectoryInUseError(OSError):
    """A run's directory that another process trains in."""


class DirectoryLock:
    """The lock of the directory `path`."""

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Make the directory if need be and lock it, until `release`.

        Raises:
            DirectoryInUseError: another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        while fcntl is not None and self._file is None:
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
            else:  # its holder removed it in between
                os.close(file)

    def release(self) -> None:
        """Remove the file, then give up the lock."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if self._is_current(file):
            (self.path / LOCK).unlink(missing_ok=True)
        os.close(file)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path / LOCK))
        except OSError:
            return False
