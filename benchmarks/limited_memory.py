"""Processes held to a memory limit by a memory cgroup, of version 1 or 2: what they map of files counts, too. Needs root."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dairllm.mesh.errors import InvalidSetting

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """folder: of the cgroup."""

    folder: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command in front of one that is to be held to the limit."""
        return ("sh", "-c", f'echo $$ > {self.folder}/cgroup.procs; exec "$@"', "sh")

    @property
    def peak_bytes(self) -> int:
        names = ("memory.max_usage_in_bytes", "memory.peak")
        return next((int((self.folder / name).read_text()) for name in names if (self.folder / name).exists()), 0)


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryLimit]:
    """Within the block. Raises InvalidSetting if this system lets no cgroup be made."""
    is_first = (ROOT / "memory").is_dir()
    folder = (ROOT / "memory" if is_first else ROOT) / f"dairllm-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if is_first else "memory.max")).write_text(str(limit_bytes))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise InvalidSetting(f"{folder} cannot be made a memory cgroup: {error.strerror}; expected root, and cgroups for memory") from error
    try:
        yield MemoryLimit(folder)
    finally:
        folder.rmdir()


def drop_from_page_cache(path: Path) -> None:
    """What is there of a file, so that reading it costs what it costs."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
