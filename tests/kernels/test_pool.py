"""The thread pool: every chunk once, threads that come and go, forks."""

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.kernels_pyx import _kernels, get_num_threads, optimization_info, set_num_threads


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


def run_chunks(count: int) -> int:
    """Run `count` chunks, each exactly once; returns how many threads took part."""
    taken, indices = _kernels._count_pool_chunks(count)
    assert np.array_equal(taken, np.ones(count))
    assert all(0 <= index < get_num_threads() for index in indices)
    return len(set(indices.tolist()))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 300)), max_size=6))
@settings(max_examples=30, deadline=None)
def test_every_chunk_runs_once(runs: list[tuple[int, int]]) -> None:
    for num_threads, num_chunks in runs:
        set_num_threads(num_threads)
        run_chunks(num_chunks)


def test_many_tiny_runs() -> None:
    set_num_threads(3)
    for count in range(20000):
        taken, _ = _kernels._count_pool_chunks(1 + count % 7)
        assert taken.min() == taken.max() == 1


def test_runs_after_workers_have_parked() -> None:
    set_num_threads(2)
    for _ in range(50):
        run_chunks(5)
        threading.Event().wait(0.001)  # well past the time that workers spin


def test_workers_take_part() -> None:
    set_num_threads(2)
    deadline = time.monotonic() + 20
    while run_chunks(100_000) < 2:
        assert time.monotonic() < deadline, "the worker took no chunk within 20 s"


def test_changing_the_number_of_threads_leaves_none_behind() -> None:
    process = psutil.Process()
    set_num_threads(1)
    before = process.num_threads()
    set_num_threads(4)
    run_chunks(10)
    assert process.num_threads() == before + 3
    set_num_threads(2)
    run_chunks(10)
    assert process.num_threads() == before + 1
    set_num_threads(1)
    assert process.num_threads() == before


def test_callers_at_once_and_a_change_of_threads_meanwhile() -> None:
    failures: list[BaseException] = []

    def call_often() -> None:
        try:
            for count in range(1500):
                taken, _ = _kernels._count_pool_chunks(count % 50)
                assert (taken == 1).all()
        except BaseException as error:
            failures.append(error)
            raise

    callers = [threading.Thread(target=call_often) for _ in range(4)]
    for caller in callers:
        caller.start()
    for count in range(60):
        set_num_threads(1 + count % 4)
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert failures == []


def exit_status_of_child(child: int) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_child_after_fork_has_a_pool_of_its_own() -> None:
    set_num_threads(2)
    run_chunks(100)
    child = os.fork()
    if child == 0:
        try:
            workers_before = psutil.Process().num_threads()
            for _ in range(100):
                run_chunks(100)
            os._exit(0 if psutil.Process().num_threads() == workers_before + 1 else 3)
        except BaseException:
            os._exit(4)
    assert exit_status_of_child(child) == 0
    run_chunks(100)


@pytest.mark.parametrize("wrong", [0, -1, 257])
def test_number_of_threads_is_checked(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"num_threads is {wrong}, expected 1 to 256"):
        set_num_threads(wrong)


def test_number_of_threads_is_reported() -> None:
    set_num_threads(3)
    assert get_num_threads() == 3
    assert optimization_info()["num_threads"] == 3
