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
from dairllm.model_files.manifest import ModelFile, Unit
from dairllm.model_files.reader import ModelSource, ranges_of
from dairllm.shard_service.assignment import AssignmentFacts
from dairllm.shard_service.weights.reading import FilePart, StreamedFile, UnitPlace

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

    def offers(self, unit: Unit) -> bool:
        """Whether it may have the unit."""
        ...

    def opened(self, unit: Unit) -> AbstractAsyncContextManager[AsyncGenerator[Piece, None]]:
        """The unit's bytes in order, in pieces of at most a few MiB. The block must take all of them, or raise: WeightsDiffer if they
        were wrong. Raises a DairllmError when this source cannot give them."""
        ...

    def place_of(self, unit: Unit) -> UnitPlace:
        """Where a unit that it has given lies on this machine's disks from now on. Blocks. Raises a DairllmError if it does not."""
        ...


ModelPaths = tuple[Path | None, ...]
"""Where the files of a model lie, in the order in which its tensors name them; None for one that is not here."""


class LocalFiles:
    """Files that may be the assignment's model: they have its sizes. If one unit differs, they are not used for any other."""

    is_local = True
    attempts = 1

    def __init__(self, paths: ModelPaths, executor: Executor) -> None:
        self.paths = paths
        self._executor = executor
        self._differs = False

    def __str__(self) -> str:
        return str(next(filter(None, self.paths), "no files"))

    def offers(self, unit: Unit) -> bool:
        return not self._differs and have_files_of(self.paths, unit)

    @asynccontextmanager
    async def opened(self, unit: Unit) -> AsyncIterator[AsyncGenerator[Piece, None]]:
        try:
            yield self._pieces(unit)
        except DairllmError:
            self._differs = True
            raise

    def place_of(self, unit: Unit) -> UnitPlace:
        try:
            return place_in(self.paths, unit)
        except OSError as error:
            raise InvalidModel(f"unit {unit.index} cannot be streamed: {error}") from error

    async def _pieces(self, unit: Unit) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        try:
            with ModelSource(self.paths) as source:
                for place in ranges_of(unit):
                    yield Piece(await loop.run_in_executor(self._executor, source.read, place), is_local=True)
        except CorruptModelFile as error:
            raise InvalidModel(str(error)) from error


def place_in(paths: ModelPaths, unit: Unit) -> UnitPlace:
    """Raises OSError."""
    files = {index: StreamedFile(path) for index in unit.file_indexes if (path := paths[index]) is not None}
    return UnitPlace([FilePart(files[index], offset_bytes, size_bytes) for index, offset_bytes, size_bytes in unit.places])


def have_files_of(paths: ModelPaths, unit: Unit) -> bool:
    """Whether all files are there that the unit lies in."""
    return all(paths[index] is not None for index in unit.file_indexes)


def find_local_files(assignment: AssignmentFacts, model_dirs: Sequence[Path]) -> list[ModelPaths]:
    """Files that have the sizes of the model's files: under the model folders those that are named *.gguf first, then the others, then
    those in the coordinator's own folder, which may be shared storage. Each first file once, whatever its names.

    The first file may have any name; the others lie beside it, under theirs. Where all are nowhere together, each is taken from
    wherever one of its name and size is.
    """
    files, found = assignment.files, dict[tuple[int, int], ModelPaths]()
    candidates = list(_candidates(assignment, model_dirs))
    other_names = {file.name for file in files[1:]}
    for path in candidates:
        if path.name in other_names:
            continue
        identity = _identity(path, files[0].size_bytes)
        beside = [path.with_name(file.name) for file in files[1:]]
        if identity and all(_identity(other, file.size_bytes) for other, file in zip(beside, files[1:], strict=True)):
            found.setdefault(identity, (path, *beside))
    if not found and len(files) > 1:
        apart = _apart(files, candidates)
        return [apart] if any(apart) else []
    return list(found.values())


def _apart(files: Sequence[ModelFile], candidates: Sequence[Path]) -> ModelPaths:
    by_name: dict[str, list[Path]] = {}
    for path in candidates:
        by_name.setdefault(path.name, []).append(path)
    return tuple(next((path for path in by_name.get(file.name, ()) if _identity(path, file.size_bytes)), None) for file in files)


def _identity(path: Path, size_bytes: int) -> tuple[int, int] | None:
    """Of a file of this size; None if there is none."""
    try:
        status = path.stat()
        return (status.st_dev, status.st_ino) if status.st_size == size_bytes and path.is_file() else None
    except OSError:
        return None


def _candidates(assignment: AssignmentFacts, model_dirs: Sequence[Path]) -> Iterator[Path]:
    others = []
    for path in _files_under(model_dirs):
        if path.suffix == ".gguf":
            yield path
        else:
            others.append(path)
    yield from others
    if assignment.model_folder:
        yield from (Path(assignment.model_folder, file.name) for file in assignment.files)


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
