"""Reading weights out of model files."""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.file_identity import FileIdentity, identity_of
from dairllm.model_files.manifest import Unit

READ_CHUNK_BYTES = 4 << 20


class FileSource:
    """Ranges of one file by `pread`: unlike a mapping, the bytes read never count towards this process's memory.

    Safe to use from several threads. A context manager; `close` may be called twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CorruptModelFile(f"{path} cannot be read: {error.strerror or error}") from error

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on; CorruptModelFile if the file ends before or cannot be read."""
        parts: list[bytes] = []
        missing = size
        while missing > 0:
            part = self._read_once(offset + size - missing, missing)
            if not part:
                raise CorruptModelFile(f"{self.path} ends before byte {offset + size}, which its header promises")
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_once(self, offset: int, size: int) -> bytes:
        if self._descriptor < 0:
            raise CorruptModelFile(f"{self.path} was closed before byte {offset} was read")
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise CorruptModelFile(f"{self.path} cannot be read at byte {offset}: {error.strerror or error}") from error

    @property
    def identity(self) -> FileIdentity:
        return identity_of(os.fstat(self._descriptor))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def chunks_of(offset: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of parts of at most READ_CHUNK_BYTES that cover the range in order."""
    for start in range(offset, offset + size, READ_CHUNK_BYTES):
        yield start, min(READ_CHUNK_BYTES, offset + size - start)


class FileRange(NamedTuple):
    """file_index: of the model's files."""

    file_index: int
    offset_bytes: int
    size_bytes: int


def ranges_of(unit: Unit) -> Iterator[FileRange]:
    """Where the bytes of a unit lie, in order, as much at a time as is read at once."""
    for tensor in unit.tensors:
        for piece in tensor.pieces:
            for offset, size in chunks_of(piece.offset_bytes, piece.size_bytes):
                yield FileRange(piece.file_index, offset, size)


def digest_of(source: "ModelSource", unit: Unit) -> bytes:
    """Of the bytes that lie where the unit's should; CorruptModelFile as of FileSource."""
    digest = hashlib.sha256()
    for place in ranges_of(unit):
        digest.update(source.read(place))
    return digest.digest()


class ModelSource:
    """The files of one model, in the order of its manifest, None for one that is not here; a context manager.

    A file is opened when it is first read. Safe to use from several threads.
    """

    def __init__(self, paths: Sequence[Path | None]) -> None:
        self._paths = paths
        self._files: dict[int, FileSource] = {}
        self._opening = threading.Lock()

    def identity(self, file_index: int) -> FileIdentity:
        """Of the file as it is now."""
        return self._file(file_index).identity

    def read(self, place: FileRange) -> bytes:
        """All of it; CorruptModelFile as of FileSource."""
        return self._file(place.file_index).read(place.offset_bytes, place.size_bytes)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _file(self, file_index: int) -> FileSource:
        with self._opening:
            if file_index not in self._files:
                path = self._paths[file_index]
                if path is None:
                    raise CorruptModelFile(f"file {file_index} of the model is not here")
                self._files[file_index] = FileSource(path)
            return self._files[file_index]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
