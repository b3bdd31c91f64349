"""Whether a file is still what it was when it was read, as far as that can be known without reading it again.

Only the content says what a file is. What was found out by reading it may be believed as long as nothing about the file has changed:
its inode, its size, the times of its content and of its inode. The last one nobody can set back. Three doubts are left, and with any of
them a file is read again: it changed so shortly before it was read that a later change may bear the same time (as in git's index); its
times lie in the future; its file system keeps no inodes and times that can be relied on.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

RACY_NS = 2_000_000_000
"""The coarsest times that file systems keep."""
_UNRELIABLE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "vboxsf", "vmhgfs", "vfat", "msdos", "exfat"}
)
"""File systems over a network, whose server has a clock of its own and whose client remembers, and those without inodes."""


class FileIdentity(NamedTuple):
    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


def identity_of(status: os.stat_result) -> FileIdentity:
    return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_certain(identity: FileIdentity, read_from_ns: int | None = None, mounts: str | None = None) -> bool:
    """Whether a file that is found with this identity later has the content that was read.

    read_from_ns: when reading began, in nanoseconds since 1970; now, if it begins now. mounts: as in /proc/self/mountinfo.
    """
    began_ns = time.time_ns() if read_from_ns is None else read_from_ns
    latest_ns = max(identity.changed_ns, identity.modified_ns)
    return latest_ns + RACY_NS <= began_ns and not _is_unreliable(identity.device, _mounts() if mounts is None else mounts)


def _is_unreliable(device: int, mounts: str) -> bool:
    """Lines of proc_pid_mountinfo(5): the device is the third field, the type the first one behind ' - '."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, _, behind = line.partition(" - ")
        if number in before.split()[2:3]:
            kind = behind.split(" ", 1)[0]
            return kind in _UNRELIABLE or kind == "fuse" or kind.startswith("fuse.")
    return False


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return ""
