"""Reading weights out of a model file, and finding the file that a manifest describes."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dairllm.model_files.errors import CorruptModelFile

if TYPE_CHECKING:
    from dairllm.model_files.manifest import Manifest, Unit

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

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def chunks_of(offset: int, size: int) -> Iterable[tuple[int, int]]:
    """(offset, size) pieces of at most READ_CHUNK_BYTES that cover the range in order."""
    for start in range(offset, offset + size, READ_CHUNK_BYTES):
        yield start, min(READ_CHUNK_BYTES, offset + size - start)


def unit_digest(source: FileSource, unit: "Unit") -> str:
    """SHA-256, in hexadecimal, of the unit's tensors in `source`: what `unit.digest` must equal."""
    digest = hashlib.sha256()
    for tensor in unit.tensors:
        for offset, size in chunks_of(tensor.offset, tensor.size_bytes):
            digest.update(source.read(offset, size))
    return digest.hexdigest()


def find_model_file(manifest: "Manifest", directories: Iterable[Path]) -> Path | None:
    """The first `*.gguf` file, directly in one of the directories, that is the manifest's file; None if there is none.

    Size and first layer must agree (fine-tuned siblings have the same size, but not the same first layer). The other units are
    verified when they are loaded. Unreadable directories and files are passed over.
    """
    first_layer = manifest.units[1]
    for path in _gguf_files(directories):
        try:
            if path.stat().st_size != manifest.file_size_bytes:
                continue
            with FileSource(path) as source:
                if unit_digest(source, first_layer) == first_layer.digest:
                    return path
        except (OSError, CorruptModelFile):
            continue
    return None


def _gguf_files(directories: Iterable[Path]) -> Iterable[Path]:
    for directory in directories:
        try:
            yield from sorted(path for path in directory.iterdir() if path.suffix == ".gguf" and path.is_file())
        except OSError:
            continue
