"""Units that came over the network, kept on this machine's disk for all shards of the user: one file per content digest.

    <digest>           complete; verified when it was written, and again by whoever loads it
    <digest>.partial   as much as has come so far; the process that fetches it holds a lock (flock) on it

A complete partial is renamed. So whoever waits for its lock finds the whole unit afterwards, or goes on where the other one stopped.
All functions here block; a disk that is full or refuses raises OSError.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from dairllm.mesh.settings import format_size
from dairllm.model_files.cache_folder import try_lock

_PARTIAL = ".partial"


class NoRoom(OSError):
    """The limit leaves no room for the unit."""


class Entry(NamedTuple):
    """A file of the cache. used_ns: when it was written or read last."""

    name: str
    size_bytes: int
    used_ns: int


def choose_evictions(entries: Iterable[Entry], needed_bytes: int, allowed_bytes: int, keep: Collection[str]) -> list[Entry] | None:
    """What to remove, least recently used first, so that `needed_bytes` more stay within `allowed_bytes`; None if that is not possible.

    keep: names that stay. Pure.
    """
    found = sorted(entries, key=lambda entry: entry.used_ns)
    excess_bytes = sum(entry.size_bytes for entry in found) + needed_bytes - allowed_bytes
    chosen = []
    for entry in found:
        if excess_bytes <= 0:
            break
        if entry.name not in keep:
            chosen.append(entry)
            excess_bytes -= entry.size_bytes
    return chosen if excess_bytes <= 0 else None


class _OpenFile:
    """Closed when the context ends. A thread may still be at work with it then: descriptors are used again, so closing waits for it."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path
        self.size_bytes = os.fstat(descriptor).st_size
        self._using = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """As much of the range as the file has."""
        with self._using:
            return os.pread(self._descriptor, size, offset)

    def discard(self) -> None:
        """Remove it, unless another file has taken its place."""
        with self._using, contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self._descriptor)):
                self.path.unlink()

    def close(self) -> None:
        with self._using:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class CompleteUnit(_OpenFile):
    pass


class PartialUnit(_OpenFile):
    """Locked by its owner until it is closed."""

    def append(self, data: bytes) -> None:
        with self._using:
            view = memoryview(data)
            while view:
                written = os.pwrite(self._descriptor, view, self.size_bytes)
                self.size_bytes += written
                view = view[written:]

    def clear(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self.size_bytes = 0

    def commit(self) -> None:
        """It is complete, and its digest was right. Only while it is locked: not after it was closed."""
        with self._using:
            os.fstat(self._descriptor)
            self.path.rename(self.path.with_suffix(""))


class WeightsCache:
    """limit_bytes: most that the folder may take; never more than half of what is free on its disk, itself included."""

    def __init__(self, folder: Path, limit_bytes: int, free_bytes: Callable[[Path], int] | None = None) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._free_bytes = free_bytes or _free_bytes
        self._reserved_bytes: dict[str, int] = {}
        self._changing = threading.Lock()

    def __str__(self) -> str:
        return str(self.folder)

    def find(self, digest: bytes, size_bytes: int | None = None) -> CompleteUnit | None:
        """The complete unit, which counts as used now. One of another size than expected is removed."""
        path = self.folder / digest.hex()
        try:
            unit = CompleteUnit(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)
        except FileNotFoundError:
            return None
        if size_bytes is not None and unit.size_bytes != size_bytes:
            unit.discard()
            unit.close()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return unit

    def begin(self, digest: bytes, size_bytes: int, keep: Collection[bytes] = ()) -> CompleteUnit | PartialUnit | None:
        """The complete unit, else the partial one to be gone on with, else None: another one is fetching it now.

        keep: digests of units that are not removed to make room. Raises NoRoom, or another OSError.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        complete = self.find(digest, size_bytes)
        if complete is not None:
            return complete
        partial = self._locked(digest)
        if partial is None:
            return None
        try:
            complete = self.find(digest, size_bytes)  # another one may have completed it before the lock was ours
            if complete is None:
                self._prepare(partial, digest, size_bytes, keep)
                return partial
        except BaseException:
            partial.discard()
            partial.close()
            raise
        partial.discard()
        partial.close()
        return complete

    def partial_bytes(self, digest: bytes) -> int:
        """How much of the unit has come so far, whoever fetches it."""
        try:
            return self._partial_path(digest).stat().st_size
        except OSError:
            return 0

    def end(self, digest: bytes) -> None:
        """What `begin` gave is closed: no room is reserved for it any more."""
        self._reserved_bytes.pop(digest.hex(), None)

    def _partial_path(self, digest: bytes) -> Path:
        return self.folder / (digest.hex() + _PARTIAL)

    def _locked(self, digest: bytes) -> PartialUnit | None:
        path = self._partial_path(digest)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        partial = PartialUnit(descriptor, path)
        if try_lock(descriptor) and _is_at(descriptor, path):
            partial.size_bytes = os.fstat(descriptor).st_size
            return partial
        partial.close()  # it is locked, or was renamed or removed before the lock was ours
        return None

    def _prepare(self, partial: PartialUnit, digest: bytes, size_bytes: int, keep: Collection[bytes]) -> None:
        if partial.size_bytes > size_bytes:
            partial.clear()
        with self._changing:
            self._make_room(digest.hex(), size_bytes, {kept.hex() for kept in keep})
            self._reserved_bytes[digest.hex()] = size_bytes

    def _make_room(self, name: str, size_bytes: int, keep: Collection[str]) -> None:
        """Units that are being fetched here, and the one of this name, count with their full size, whatever has come of them."""
        found = self._entries()
        reserved_bytes = {**self._reserved_bytes, name: size_bytes}
        others = [entry for entry in found if entry.name.removesuffix(_PARTIAL) not in reserved_bytes]
        allowed_bytes = min(self._limit_bytes, (self._free_bytes(self.folder) + sum(entry.size_bytes for entry in found)) // 2)
        chosen = choose_evictions(others, sum(reserved_bytes.values()), allowed_bytes, keep)
        if chosen is None:
            raise NoRoom(f"it may take {format_size(allowed_bytes)}, and what is loaded now needs more")
        for entry in chosen:
            self._evict(self.folder / entry.name)

    def _entries(self) -> list[Entry]:
        entries = []
        with os.scandir(self.folder) as found:
            for file in found:
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    entries.append(Entry(file.name, status.st_size, status.st_mtime_ns))
        return entries

    def _evict(self, path: Path) -> None:
        """Who reads it now reads on. A partial that is being fetched stays."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if path.suffix != _PARTIAL or try_lock(descriptor):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
