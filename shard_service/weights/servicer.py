"""WeightsService of a shard: units for others, from a file of the model or from what was fetched before.

Who receives them verifies them.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import grpc.aio

from dairllm.mesh.errors import InvalidRequest, UnknownModel, WeightsDiffer
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.reader import FileSource, chunks_of
from dairllm.shard_service.assignment import AssignmentFacts, UnitFacts
from dairllm.shard_service.weights.disk_cache import CompleteUnit, WeightsCache
from dairllm.shard_service.weights.sources import find_local_files
from dairllm.v1 import weights_pb2, weights_pb2_grpc

_PIECE_BYTES = 1024**2
_SHA256_BYTES = 32

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")
P = ParamSpec("P")

FindUnit = Callable[[bytes, int], tuple[AssignmentFacts, UnitFacts]]


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Of the cache, any unit that is asked for by its digest; of a file, the units that this shard is assigned.

    find_unit: by model digest and unit index, the assignment that has it and the unit itself; raises UnknownModel.
    """

    def __init__(self, find_unit: FindUnit, model_dirs: Sequence[Path], cache: WeightsCache | None, threads: Executor) -> None:
        self._find_unit = find_unit
        self._model_dirs = model_dirs
        self._cache = cache
        self._threads = threads
        self._is_right: dict[tuple[Path, int], bool] = {}

    async def FetchUnit(self, request: weights_pb2.FetchUnitRequest, context: Context) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        kept = await self._in_thread(self._find_kept, request.unit_digest)
        responses = self._from_file(request) if kept is None else self._from_cache(kept, request.offset_bytes)
        async for response in responses:
            yield response

    def _find_kept(self, digest: bytes) -> CompleteUnit | None:
        if self._cache is None or len(digest) != _SHA256_BYTES:
            return None
        try:
            return self._cache.find(digest)
        except OSError:
            return None

    async def _from_cache(self, kept: CompleteUnit, offset_bytes: int) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        with kept:
            _require_offset(offset_bytes, kept.size_bytes)
            for offset in range(offset_bytes, kept.size_bytes, _PIECE_BYTES):
                try:
                    data = await self._in_thread(kept.read, offset, _PIECE_BYTES)
                except OSError as error:
                    raise WeightsDiffer(f"the shard's copy cannot be read: {error}") from error
                yield weights_pb2.FetchUnitResponse(offset_bytes=offset, data=data)

    async def _from_file(self, request: weights_pb2.FetchUnitRequest) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        assignment, unit = self._find_unit(request.model_digest, request.unit_index)
        _require_offset(request.offset_bytes, unit.size_bytes)
        path = await self._in_thread(self._right_file, assignment, unit)
        with FileSource(path) as file:
            for offset, file_offset, size in _pieces(unit, request.offset_bytes):
                try:
                    data = await self._in_thread(file.read, file_offset, size)
                except CorruptModelFile as error:
                    raise WeightsDiffer(str(error)) from error
                yield weights_pb2.FetchUnitResponse(offset_bytes=offset, data=data)

    def _right_file(self, assignment: AssignmentFacts, unit: UnitFacts) -> Path:
        """A file that has the unit: files of another model may have the same size. Each is looked into once."""
        for path in find_local_files(assignment, self._model_dirs):
            try:
                known = path, path.stat().st_mtime_ns
                if known not in self._is_right:
                    self._is_right[known] = _digest_in(path, unit) == unit.digest
            except (OSError, CorruptModelFile):
                continue
            if self._is_right[known]:
                return path
        raise UnknownModel(f"this shard has no file of {assignment.model.name}, and no copy of unit {unit.index}")

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments, **options))


def _digest_in(path: Path, unit: UnitFacts) -> bytes:
    digest = hashlib.sha256()
    with FileSource(path) as file:
        for tensor in unit.tensors:
            for offset, size in chunks_of(tensor.offset_bytes, tensor.size_bytes):
                digest.update(file.read(offset, size))
    return digest.digest()


def _require_offset(offset_bytes: int, size_bytes: int) -> None:
    if offset_bytes > size_bytes:
        raise InvalidRequest(f"offset_bytes is {offset_bytes}; the unit has {size_bytes} bytes", "offset_bytes")


def _pieces(unit: UnitFacts, from_bytes: int) -> list[tuple[int, int, int]]:
    """(offset in the unit, offset in the file, size) of what is left from this offset on."""
    pieces, begin = [], 0
    for tensor in unit.tensors:
        start = max(from_bytes - begin, 0)
        for inner in range(start, tensor.size_bytes, _PIECE_BYTES):
            pieces.append((begin + inner, tensor.offset_bytes + inner, min(_PIECE_BYTES, tensor.size_bytes - inner)))
        begin += tensor.size_bytes
    return pieces
