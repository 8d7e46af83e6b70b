"""Chunks of tasks, the threads that work on them, and the device."""

import ctypes
import platform
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarl import parallel
from metarl.parallel import CHUNK_ROWS, resolve_device, task_chunks, thread_map, threads_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@given(n_tasks=st.integers(1, 300), rows=st.integers(1, 3 * CHUNK_ROWS), device=st.sampled_from([CPU, GPU]))
def test_chunks_are_all_tasks_in_order(n_tasks, rows, device):
    tasks = list(range(n_tasks))
    assert [k for chunk in task_chunks(n_tasks, rows, device) for k in tasks[chunk]] == tasks


@given(n_tasks=st.integers(1, 300), rows=st.integers(1, CHUNK_ROWS))
def test_chunks_hold_no_more_rows_than_the_cache(n_tasks, rows):
    assert all((chunk.stop - chunk.start) * rows <= CHUNK_ROWS for chunk in task_chunks(n_tasks, rows, CPU))


def test_chunks_are_as_large_as_they_may_be():
    sizes = [chunk.stop - chunk.start for chunk in task_chunks(10, CHUNK_ROWS // 4, CPU)]
    assert sizes == [4, 4, 2]


def test_work_for_one_chunk_is_halved_unless_it_is_little():
    def sizes(n_tasks: int, rows: int) -> list[int]:
        return [chunk.stop - chunk.start for chunk in task_chunks(n_tasks, rows, CPU)]

    assert sizes(20, CHUNK_ROWS // 20) == [10, 10]
    assert sizes(32, CHUNK_ROWS // 20) == [16, 16]
    assert sizes(12, CHUNK_ROWS // 20) == [10, 2]
    assert sizes(10, CHUNK_ROWS // 20) == [10]


def test_a_task_larger_than_the_cache_is_a_chunk_of_its_own():
    assert task_chunks(2, 2 * CHUNK_ROWS, CPU) == [slice(0, 1), slice(1, 2)]


def test_on_a_gpu_all_tasks_are_one_chunk():
    assert task_chunks(100, CHUNK_ROWS, GPU) == [slice(0, 100)]


def test_chunks_do_not_depend_on_the_number_of_threads():
    one = task_chunks(10, 1000, CPU)
    torch.set_num_threads(2)
    assert task_chunks(10, 1000, CPU) == one


def slow_first(item: int) -> tuple[int, str]:
    time.sleep(0.05 if item == 0 else 0)
    return item**2, threading.current_thread().name


@pytest.mark.parametrize("threads", [1, 2])
def test_results_come_in_the_order_of_the_items(threads):
    torch.set_num_threads(threads)
    assert [square for square, _ in thread_map(slow_first, range(5))] == [0, 1, 4, 9, 16]


def test_one_thread_is_the_caller_s():
    assert {name for _, name in thread_map(slow_first, range(3))} == {threading.current_thread().name}


def test_several_threads_are_at_work_at_once():
    torch.set_num_threads(2)
    barrier = threading.Barrier(2, timeout=10)  # breaks unless two wait at it together
    thread_map(lambda _: barrier.wait(), range(2))


def test_a_worker_s_operations_stay_in_its_own_thread():
    torch.set_num_threads(2)
    assert thread_map(lambda _: torch.get_num_threads(), range(4)) == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_reaches_the_caller():
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        thread_map(lambda x: 1 / x, [1, 0, 2])


def test_gradients_flow_through_what_threads_return():
    torch.set_num_threads(2)
    x = torch.tensor(3.0, requires_grad=True)
    total = torch.stack(thread_map(lambda c: c * x**2, [1.0, 2.0, 4.0])).sum()
    assert torch.autograd.grad(total, x)[0].item() == 42.0  # (1 + 2 + 4) * 2 * 3


@pytest.mark.parametrize(("rows", "device", "threads"), [(100, CPU, 1), (100 * CHUNK_ROWS, CPU, 2), (100, GPU, 2)])
def test_only_work_that_is_worth_it_is_shared_out(rows, device, threads):
    torch.set_num_threads(2)
    with threads_for(rows, device):
        inside = torch.get_num_threads()
    assert (inside, torch.get_num_threads()) == (threads, 2)


def stop_in_the_middle() -> None:
    with threads_for(1, CPU):
        raise KeyboardInterrupt


def test_the_number_of_threads_comes_back_after_an_error():
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert torch.get_num_threads() == 2


class FakeLibc:
    """Stands in the place of the C library and notes what it is told."""

    calls: list[tuple[int, int]]

    def __init__(self, *_):
        FakeLibc.calls = []

    def mallopt(self, parameter: int, value: int) -> None:
        self.calls.append((parameter, value))


@pytest.mark.parametrize(("name", "calls"), [("glibc", 2), ("", 0)])
def test_the_allocator_is_told_on_glibc_only(monkeypatch, name, calls):
    FakeLibc()
    monkeypatch.setattr(ctypes, "CDLL", FakeLibc)
    monkeypatch.setattr(platform, "libc_ver", lambda: (name, ""))
    parallel.keep_freed_memory.__wrapped__()
    assert len(FakeLibc.calls) == calls


# ---------------------------------------------------------------------------------------------------------------------
# Devices


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="device 'cuda' was requested, but this machine has no CUDA device; use auto or"
    ):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_a_gpu_that_is_there_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device 'cuda:2' was requested, but this machine has 2, counted from cuda:0"):
        resolve_device("cuda:2")
