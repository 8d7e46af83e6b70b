"""Work on chunks of tasks in threads, and the memory allocator's settings.

PyTorch can spread one operation over the cores or the cores can take different tasks. For the small networks of
reinforcement learning the second is faster: nothing waits at the end of every operation. The chunks do not depend on
the number of threads, so the results do not either.
"""

import contextlib
import contextvars
import ctypes
import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")

CHUNK_ROWS = 10_000
"""States per chunk of tasks, if there are enough for several chunks. Smaller chunks use caches better, but their
operations are so short that threads wait for Python's lock; with larger ones there are too few to distribute."""


def task_chunks(n_tasks: int, rows_per_task: int, device: torch.device) -> list[slice]:
    """Divide K tasks into chunks of about `CHUNK_ROWS` states each, or half as many if that gives a second core some
    work; on a GPU all tasks are one chunk."""
    rows = min(CHUNK_ROWS, max(CHUNK_ROWS // 2, n_tasks * rows_per_task // 2))
    size = n_tasks if device.type != "cpu" else max(1, rows // rows_per_task)
    return [slice(i, min(i + size, n_tasks)) for i in range(0, n_tasks, size)]


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    """A pool of this many threads, kept for the life of the process; tasks in it must not wait for other tasks in
    it."""
    # Each thread sets its own number of OpenMP and MKL threads; the caller's stays.
    return ThreadPoolExecutor(threads, "metarl", initializer=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread's first question or operation would else take over what was set last anywhere


@contextlib.contextmanager
def threads_for(rows: int, device: torch.device) -> Iterator[None]:
    """A block in which operations on `rows` states use one thread, unless there are enough rows to distribute.

    Waking threads for operations of a tenth of a millisecond gains nothing, and costs up to a hundred times the
    operation if another process uses the same cores.
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or rows > 2 * CHUNK_ROWS or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_threads: contextvars.ContextVar[int | None] = contextvars.ContextVar("threads", default=None)


def cpu_threads() -> int:
    """The number of threads that `thread_map` may use here."""
    return _threads.get() or torch.get_num_threads()


def threads_over_tasks(function: Callable[P, B]) -> Callable[P, B]:
    """Within `function`, PyTorch's threads are used by `thread_map`, and each single operation uses one thread.

    PyTorch's threads spin while waiting for the next operation, occupying a core that a chunk of tasks could use.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> B:
        threads = torch.get_num_threads()
        if threads == 1:
            return function(*args, **kwargs)
        token = _threads.set(threads)
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)
            _threads.reset(token)

    return wrapped


def thread_map(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """`[function(x) for x in items]`, in as many threads as `torch.get_num_threads()` says."""
    threads = min(cpu_threads(), len(items))
    if threads <= 1:
        return [function(item) for item in items]
    return list(pool(threads).map(function, items))


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks of up to 32 MiB instead of returning each one to the kernel.

    Without it every large temporary tensor is mapped, zeroed page by page and unmapped again. Affects the whole
    process; does nothing on other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 32 << 20)  # 32 MiB is the most that glibc accepts
    libc.mallopt(m_trim_threshold, 1 << 30)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device; `"auto"` is the GPU if there is one. Raises ValueError if a device is not available."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: torch.device | None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was requested, but this machine has no CUDA device; use auto or cpu")
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {device!r} was requested, but this machine has {count}, counted from cuda:0")
    return found
