"""Ensures that processes do not outlive the process that started them. Workers import this, so it does not import
torch.

A process that is killed cannot end its children. Every worker therefore asks the kernel to be killed along with its
parent (Linux), and a guardian outside the workers ends their process groups, including processes started by their
environments, once the parent is gone. This also works if a worker is stopped, or hangs in C while holding the
interpreter's lock.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that request a run to end: Ctrl-C, a kill that can be caught, a closed terminal."""

_PR_SET_PDEATHSIG = 1

_GUARDIAN = """
import os, select, signal, sys
parent, alive, *groups = map(int, sys.argv[2:])
for name in ("SIGINT", "SIGHUP", "SIGTERM"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
while os.getppid() == parent and not select.select([alive], [], [], 0.5)[0]:
    pass
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends. Has an effect only on Linux.

    Only for processes started by a main thread: other threads may end before their process does.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # no C library to ask: the guardian is left
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # gone before the kernel was asked
        end_group()


def started_by_main_thread() -> bool:
    """Whether the current thread lives as long as this process."""
    return threading.current_thread() is threading.main_thread()


def end_group() -> None:
    """End this process and its process group."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


class Guardian:
    """A small process that ends process groups when this process is gone, for whatever reason.

    Args:
        groups: process groups, by number.
    """

    def __init__(self, groups: Sequence[int]):
        watched, self._alive = os.pipe()  # nothing is written: the end of file says that this process is gone
        words = ["metarl-guardian", str(os.getpid()), str(watched), *map(str, groups)]
        try:
            # -I -S: a bare interpreter, ready in hundredths of a second. A session of its own: no signal to a worker's
            # group or from a terminal reaches it.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARDIAN, *words], pass_fds=[watched], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(watched)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def dismiss(self) -> None:
        """End the guardian without ending any group."""
        self._process.kill()
        self._process.wait()
        os.close(self._alive)

    def leave(self) -> None:
        """Close this process's end of the pipe: for a forked copy, which must not affect the guardian."""
        os.close(self._alive)
