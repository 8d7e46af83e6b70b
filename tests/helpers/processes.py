"""What processes run on this machine, by their command lines."""

import time
from collections.abc import Callable
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
