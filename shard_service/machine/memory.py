"""How much memory the shard may use, and what it is used for: an explicit budget, never the page cache's mercy.

The budget covers weights, KV cache, sent rows, the kernels' scratch and the process itself. The coordinator leaves the `reserve` free for
the last three when it plans; what they take is summed up by the same functions there and here (`model_files/memory.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dairllm.mesh.errors import NotEnoughMemory
from dairllm.mesh.settings import format_size
from dairllm.model_files.memory import Reserve

MIB = 1024**2
SMALLEST_BUDGET_BYTES = 128 * MIB
_SMALLEST_RESERVE_BYTES = 100 * MIB
_LARGEST_RESERVE_BYTES = 256 * MIB
_PROCESS_BYTES = 72 * MIB  # measured before anything is loaded: 70 MiB, half of it pages of libraries
_LARGEST_RECORDS_BYTES = 512 * MIB
DEFAULT_SHARE = 0.8

ReadText = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    total_bytes: int

    @property
    def sent_rows_bytes(self) -> int:
        """For sent rows, which may have to be sent again."""
        return min(self.total_bytes // 16, _LARGEST_RECORDS_BYTES)

    @property
    def reserve(self) -> Reserve:
        least_bytes = max(_SMALLEST_RESERVE_BYTES, min(self.total_bytes // 16, _LARGEST_RESERVE_BYTES))
        return Reserve(self.sent_rows_bytes + least_bytes, self.sent_rows_bytes + _PROCESS_BYTES)

    def missing_bytes(self, demand: "MemoryDemand") -> int:
        """By how much the demand exceeds the budget; 0 if it fits."""
        besides = self.reserve.with_scratch(demand.scratch_bytes)
        return max(0, demand.weights_bytes + demand.kv_cache_bytes + besides - self.total_bytes)

    def require(self, demand: "MemoryDemand", what: str = "the assignment") -> None:
        """what: what makes the demand. Raises NotEnoughMemory, with the numbers."""
        missing_bytes = self.missing_bytes(demand)
        if missing_bytes:
            besides = self.reserve.with_scratch(demand.scratch_bytes)
            raise NotEnoughMemory(
                f"{what} needs {format_size(demand.weights_bytes)} of weights, {format_size(demand.kv_cache_bytes)} of KV cache "
                f"and {format_size(besides)} besides, but the memory budget is {format_size(self.total_bytes)}: "
                f"{format_size(missing_bytes)} too little",
                missing_bytes=missing_bytes,
            )


@dataclass(frozen=True, slots=True)
class MemoryDemand:
    weights_bytes: int
    kv_cache_bytes: int
    scratch_bytes: int


def default_budget_bytes(available_bytes: int) -> int:
    return int(available_bytes * DEFAULT_SHARE)


def detect_available_bytes(read_text: ReadText | None = None) -> int:
    """Memory that this process can take now: the machine's, or what its control groups leave of theirs, whichever is less."""
    read = read_text or _read_text
    limits = [available_from_meminfo(read("/proc/meminfo") or "")]
    groups = read("/proc/self/cgroup") or ""
    limits += [_room_v2(folder, read) for folder in cgroup_v2_folders(groups)]
    limits += [_room_v1(folder, read) for folder in cgroup_v1_memory_folders(groups)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else _available_elsewhere()


def available_from_meminfo(text: str) -> int | None:
    """MemAvailable of /proc/meminfo in bytes."""
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def cgroup_v2_folders(proc_self_cgroup: str) -> list[str]:
    """Folders of the process's group and of all above it, since each of them may limit it."""
    return _ancestors("/sys/fs/cgroup", _group_path(proc_self_cgroup, ""))


def cgroup_v1_memory_folders(proc_self_cgroup: str) -> list[str]:
    return _ancestors("/sys/fs/cgroup/memory", _group_path(proc_self_cgroup, "memory"))


def room_in_group(limit_text: str | None, usage_text: str | None, stat_text: str | None) -> int | None:
    """Bytes left in a control group; None without a limit. Cached files count as usage but give way, so they are added back."""
    limit = _number(limit_text)
    if limit is None or limit >= 2**60:  # v1 writes 'no limit' as a huge number, v2 as 'max'
        return None
    usage = _number(usage_text) or 0
    return max(0, limit - usage + _inactive_file_bytes(stat_text or ""))


def resident_bytes(read_text: ReadText | None = None) -> int:
    """Resident set of this process, 0 where it can't be read."""
    for line in ((read_text or _read_text)("/proc/self/status") or "").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _room_v2(folder: str, read: ReadText) -> int | None:
    return room_in_group(read(f"{folder}/memory.max"), read(f"{folder}/memory.current"), read(f"{folder}/memory.stat"))


def _room_v1(folder: str, read: ReadText) -> int | None:
    limit, usage = read(f"{folder}/memory.limit_in_bytes"), read(f"{folder}/memory.usage_in_bytes")
    return room_in_group(limit, usage, read(f"{folder}/memory.stat"))


def _group_path(proc_self_cgroup: str, controller: str) -> str | None:
    for line in proc_self_cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path and controller in controllers.split(","):
            return path
    return None


def _ancestors(root: str, path: str | None) -> list[str]:
    if path is None:
        return []
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["/".join([root, *parts[:depth]]) for depth in range(len(parts), -1, -1)]


def _number(text: str | None) -> int | None:
    stripped = (text or "").strip()
    return int(stripped) if stripped.isdigit() else None


def _inactive_file_bytes(memory_stat: str) -> int:
    for line in memory_stat.splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _available_elsewhere() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
