"""What processes run on this machine, by their command lines; what worker processes leave behind."""

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def running(part: str) -> list[int]:
    """The processes with `part` in their command line; zombies have none."""
    out = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if part in words:
                out.append(int(entry.name))
    return out


def workers_of(parent: int) -> list[int]:
    return running(f"from metarl.vector.worker import main; main(({parent},") + running(
        f"worker import main; main({parent},"
    )


def gone(find: Callable[[], list[int]], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while find():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def own_files() -> list[str]:
    """The open pipes and nameless files of this process."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(entry))
    return [link for link in links if "pipe:" in link or "memfd:metarl" in link]


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Within it no worker process, no pipe and no shared memory of this process may be left behind."""
    before = len(own_files())
    yield
    gc.collect()
    assert workers_of(os.getpid()) == []
    assert len(own_files()) <= before
