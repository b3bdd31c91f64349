"""Where the bytes of a unit come from, besides memory: files that this machine can read, and (see `fetching`) other members.

None of them is trusted: the digest decides.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from dairllm.mesh.errors import DairllmError, InvalidModel
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.reader import FileSource, chunks_of
from dairllm.shard_service.assignment import AssignmentFacts, UnitFacts

_MOST_FILES_LOOKED_AT = 10_000


class Piece(NamedTuple):
    """is_local: read from this machine's disk, not received."""

    data: bytes
    is_local: bool


class UnitSource(Protocol):
    @property
    def is_local(self) -> bool:
        """Whether all of it comes from this machine: such sources are read one unit at a time."""
        ...

    @property
    def attempts(self) -> int:
        """How often it is worth asking for a unit of which it has given wrong bytes."""
        ...

    def offers(self, unit: UnitFacts) -> bool:
        """Whether it may have the unit."""
        ...

    def opened(self, unit: UnitFacts) -> AbstractAsyncContextManager[AsyncGenerator[Piece, None]]:
        """The unit's bytes in order, in pieces of at most a few MiB. The block must take all of them, or raise: WeightsDiffer if they
        were wrong. Raises a DairllmError when this source cannot give them."""
        ...


class LocalFile:
    """A file that may be the assignment's model: it has its size. One that differs in one unit is not used for any other."""

    is_local = True
    attempts = 1

    def __init__(self, path: Path, executor: Executor) -> None:
        self.path = path
        self._executor = executor
        self._differs = False

    def __str__(self) -> str:
        return str(self.path)

    def offers(self, unit: UnitFacts) -> bool:
        return not self._differs

    @asynccontextmanager
    async def opened(self, unit: UnitFacts) -> AsyncIterator[AsyncGenerator[Piece, None]]:
        try:
            yield self._pieces(unit)
        except DairllmError:
            self._differs = True
            raise

    async def _pieces(self, unit: UnitFacts) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        try:
            with FileSource(self.path) as file:
                for tensor in unit.tensors:
                    for offset, size in chunks_of(tensor.offset_bytes, tensor.size_bytes):
                        yield Piece(await loop.run_in_executor(self._executor, file.read, offset, size), is_local=True)
        except CorruptModelFile as error:
            raise InvalidModel(str(error)) from error


def find_local_files(assignment: AssignmentFacts, model_dirs: Sequence[Path]) -> list[Path]:
    """Files that have the size of the model's file: under the model folders those that are named *.gguf first, then the others, then the
    coordinator's own path, which may be shared storage. Each file once, whatever its names."""
    found: dict[tuple[int, int], Path] = {}
    for path in _candidates(assignment.model_path, model_dirs):
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_size == assignment.model_file_size_bytes and path.is_file():
            found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())


def _candidates(model_path: str, model_dirs: Sequence[Path]) -> Iterator[Path]:
    others = []
    for path in _files_under(model_dirs):
        if path.suffix == ".gguf":
            yield path
        else:
            others.append(path)
    yield from others
    if model_path:
        yield Path(model_path)


def _files_under(folders: Sequence[Path]) -> Iterator[Path]:
    number = 0
    for folder in folders:
        for parent, children, names in os.walk(folder):
            children.sort()
            for name in sorted(names):
                number += 1
                if number > _MOST_FILES_LOOKED_AT:
                    return
                yield Path(parent, name)
