"""The memory of this machine, as far as this process may have it: what the system and its control groups say."""

from collections.abc import Callable
from pathlib import Path

from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.settings import format_size

MIB = 1024**2
SMALLEST_BUDGET_BYTES = 128 * MIB
"""Less is of no use to a shard."""

ReadText = Callable[[str], str | None]


def require_budget(size_bytes: int, read_text: ReadText | None = None) -> int:
    """The size, if a shard on this machine can have so much memory. Raises InvalidSetting."""
    total_bytes = detect_total_bytes(read_text)
    if size_bytes < SMALLEST_BUDGET_BYTES:
        raise InvalidSetting(f"--memory is {format_size(size_bytes)}; expected at least {format_size(SMALLEST_BUDGET_BYTES)}")
    if size_bytes > total_bytes:
        all_of_it = f"{format_size(total_bytes)}, which is all that this machine has"
        raise InvalidSetting(f"--memory is {format_size(size_bytes)}; expected at most {all_of_it}")
    return size_bytes


def detect_total_bytes(read_text: ReadText | None = None) -> int:
    """Memory that this process could have at most: the machine's, or the tightest limit of its control groups, whichever is less."""
    read = read_text or _read_text
    groups = read("/proc/self/cgroup") or ""
    limits = [from_meminfo(read("/proc/meminfo") or "", "MemTotal")]
    limits += [_limit(read(f"{folder}/memory.max")) for folder in cgroup_v2_folders(groups)]
    limits += [_limit(read(f"{folder}/memory.limit_in_bytes")) for folder in cgroup_v1_memory_folders(groups)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else _total_elsewhere()


def detect_available_bytes(read_text: ReadText | None = None) -> int:
    """Memory that this process can take now: the machine's, or what its control groups leave of theirs, whichever is less."""
    read = read_text or _read_text
    limits = [from_meminfo(read("/proc/meminfo") or "", "MemAvailable")]
    groups = read("/proc/self/cgroup") or ""
    limits += [_room_v2(folder, read) for folder in cgroup_v2_folders(groups)]
    limits += [_room_v1(folder, read) for folder in cgroup_v1_memory_folders(groups)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else _available_elsewhere()


def from_meminfo(text: str, name: str) -> int | None:
    """A figure of /proc/meminfo in bytes."""
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def cgroup_v2_folders(proc_self_cgroup: str) -> list[str]:
    """Folders of the process's group and of all above it, since each of them may limit it."""
    return _ancestors("/sys/fs/cgroup", _group_path(proc_self_cgroup, ""))


def cgroup_v1_memory_folders(proc_self_cgroup: str) -> list[str]:
    return _ancestors("/sys/fs/cgroup/memory", _group_path(proc_self_cgroup, "memory"))


def room_in_group(limit_text: str | None, usage_text: str | None, stat_text: str | None) -> int | None:
    """Bytes left in a control group; None without a limit. Cached files count as usage but give way, so they are added back."""
    limit = _limit(limit_text)
    if limit is None:
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


def _limit(text: str | None) -> int | None:
    """v1 writes 'no limit' as a huge number, v2 as 'max'."""
    limit = _number(text)
    return None if limit is None or limit >= 2**60 else limit


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


def _total_elsewhere() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
