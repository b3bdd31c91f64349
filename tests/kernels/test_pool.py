"""The thread pool: every chunk once, threads that come and go, forks."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

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


V1 = "4:cpu,cpuacct:/docker/a\n3:memory:/m\n"
V2 = "0::/user/job\n"
V1_MOUNT = "30 25 0:27 {mounted} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNT = "25 20 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
CPU = "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("group", "mounts", "quotas", "cores"),
    [
        (V1, V1_MOUNT.format(mounted="/"), {f"{CPU}/docker/a": (250_000, 100_000)}, 3),
        (V1, V1_MOUNT.format(mounted="/"), {f"{CPU}/docker/a": (-1, 100_000), f"{CPU}/docker": (100_000, 50_000)}, 2),
        (V1, V1_MOUNT.format(mounted="/"), {f"{CPU}/docker/a": (400_000, 100_000), CPU: (100_000, 100_000)}, 1),
        (V1, V1_MOUNT.format(mounted="/docker/a"), {CPU: (200_000, 100_000)}, 2),
        (V1, V1_MOUNT.format(mounted="/docker"), {f"{CPU}/a": (200_000, 100_000), CPU: (-1, 100_000)}, 2),
        (V1, V1_MOUNT.format(mounted="/"), {f"{CPU}/other": (100_000, 100_000), f"{CPU}/docker/a": (-1, 100_000)}, 256),
        (V1, V1_MOUNT.format(mounted="/").replace("cpu,cpuacct\n", "cpuset\n"), {f"{CPU}/docker/a": (100_000, 100_000)}, 256),
        (V2, V2_MOUNT, {"/sys/fs/cgroup/user/job": "max 100000", "/sys/fs/cgroup/user": "150000 100000"}, 2),
        (V2 + V1, V2_MOUNT + V1_MOUNT.format(mounted="/"), {"/sys/fs/cgroup/user": "400000 100000", CPU: (300_000, 100_000)}, 3),
        ("0::/../x\n", V2_MOUNT, {"/sys/fs/cgroup": "100000 100000"}, 1),
        ("nonsense\n", "nonsense\n", {}, 256),
    ],
    ids=map(str, range(11)),
)
def test_quotas_of_control_groups(tmp_path: Path, group: str, mounts: str, quotas: dict[str, tuple[int, int] | str], cores: int) -> None:
    files = {"/proc/self/cgroup": group, "/proc/self/mountinfo": mounts}
    for folder, quota in quotas.items():
        if isinstance(quota, str):
            files[f"{folder}/cpu.max"] = f"{quota}\n"
        else:
            files |= {f"{folder}/cpu.cfs_quota_us": f"{quota[0]}\n", f"{folder}/cpu.cfs_period_us": f"{quota[1]}\n"}
    for name, text in files.items():
        path = tmp_path / name.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _kernels._cores_of_cgroups(str(tmp_path)) == cores
