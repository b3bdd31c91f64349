"""Budgets, and limits read from what the system writes about itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.errors import InvalidSetting, NotEnoughMemory
from dairllm.mesh.system_memory import (
    MIB,
    cgroup_v1_memory_folders,
    cgroup_v2_folders,
    detect_available_bytes,
    detect_total_bytes,
    from_meminfo,
    require_budget,
    resident_bytes,
    room_in_group,
)
from dairllm.shard_service.machine.memory import MemoryBudget, MemoryDemand

GIB = 1024 * MIB
MEMINFO = "MemTotal:       24683932 kB\nMemFree:        24378548 kB\nMemAvailable:   8388608 kB\n"
SIZES = st.integers(0, 64 * GIB)


@given(SIZES, SIZES, SIZES, SIZES)
def test_what_fits_is_accepted_and_what_misses_is_said(total: int, weights: int, kv_cache: int, scratch: int) -> None:
    budget, demand = MemoryBudget(total), MemoryDemand(weights, kv_cache, scratch)
    missing = budget.missing_bytes(demand)
    if missing:
        with pytest.raises(NotEnoughMemory, match="too little"):
            budget.require(demand)
        assert MemoryBudget(total + missing + missing // 7 + 3).missing_bytes(demand) == 0
    else:
        budget.require(demand)
        assert weights + kv_cache + scratch <= total


@given(st.integers(128 * MIB, 64 * GIB))
def test_a_plan_that_leaves_the_reserve_free_fits(total: int) -> None:
    """As long as scratch stays within its part of the reserve, the coordinator's arithmetic is the shard's."""
    budget = MemoryBudget(total)
    assert budget.missing_bytes(MemoryDemand(total - budget.reserve.size_bytes, 0, 28 * MIB)) == 0


def test_meminfo() -> None:
    assert from_meminfo(MEMINFO, "MemAvailable") == 8 * GIB
    assert from_meminfo(MEMINFO, "MemTotal") == 24683932 * 1024
    assert from_meminfo("", "MemAvailable") is None


@pytest.mark.parametrize(
    ("limit", "usage", "stat", "room"),
    [
        ("max\n", "123\n", "", None),
        ("9223372036854771712\n", "123\n", "", None),
        (None, None, None, None),
        ("1000\n", "400\n", "anon 1\ninactive_file 100\n", 700),
        ("1000\n", "400\n", "cache 5\ntotal_inactive_file 50\n", 650),
        ("1000\n", "2000\n", "", 0),
    ],
)
def test_room_in_a_control_group(limit: str | None, usage: str | None, stat: str | None, room: int | None) -> None:
    assert room_in_group(limit, usage, stat) == room


def test_folders_of_control_groups() -> None:
    v2 = "0::/user.slice/job.scope\n"
    assert cgroup_v2_folders(v2) == ["/sys/fs/cgroup/user.slice/job.scope", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup"]
    assert cgroup_v1_memory_folders(v2) == []
    v1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/\n"
    assert cgroup_v1_memory_folders(v1) == [
        "/sys/fs/cgroup/memory/docker/abc",
        "/sys/fs/cgroup/memory/docker",
        "/sys/fs/cgroup/memory",
    ]
    assert cgroup_v2_folders(v1) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/memory.max": f"{2 * GIB}", "/sys/fs/cgroup/a/memory.current": f"{GIB}"}, GIB),
        ({"/proc/self/cgroup": "2:memory:/a\n", "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{GIB}"}, GIB),
        ({"/proc/self/cgroup": "2:memory:/a\n", "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{99 * GIB}"}, 8 * GIB),
    ],
)
def test_the_tightest_limit_counts(files: dict[str, str], expected: int) -> None:
    assert detect_available_bytes(({"/proc/meminfo": MEMINFO} | files).get) == expected


def test_more_than_there_is_is_refused() -> None:
    files = {"/proc/meminfo": MEMINFO}
    assert require_budget(20 * GIB, files.get) == 20 * GIB
    with pytest.raises(InvalidSetting, match=r"--memory is 5 TiB; expected at most 23\.5 GiB"):
        require_budget(5 << 40, files.get)
    with pytest.raises(InvalidSetting, match="--memory is 1 MiB; expected at least 128 MiB"):
        require_budget(MIB, files.get)
    group = files | {"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n"}
    assert detect_total_bytes(group.get) == 4 * GIB
    older = files | {"/proc/self/cgroup": "2:memory:/a\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n"}
    with pytest.raises(InvalidSetting, match="expected at most 3 GiB"):
        require_budget(4 * GIB, older.get)


def test_here_and_now() -> None:
    assert detect_available_bytes() > 16 * MIB
    assert MIB < resident_bytes() < 64 * GIB
