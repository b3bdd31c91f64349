"""WeightsService of a shard: units for others, from a file of the model or from what was fetched before.

Who receives them verifies them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import grpc.aio

from dairllm.mesh.errors import UnknownModel, WeightsDiffer
from dairllm.mesh.weights import pieces_of
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.file_identity import FileIdentity, identity_of, is_certain
from dairllm.model_files.manifest import Unit
from dairllm.model_files.reader import FileRange, ModelSource, digest_of
from dairllm.shard_service.assignment import AssignmentFacts
from dairllm.shard_service.weights.disk_cache import CompleteUnit, WeightsCache
from dairllm.shard_service.weights.sources import ModelPaths, find_local_files, have_files_of
from dairllm.v1 import weights_pb2, weights_pb2_grpc

_SHA256_BYTES = 32

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")
P = ParamSpec("P")

FindUnit = Callable[[bytes, int], tuple[AssignmentFacts, Unit]]


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Of the cache, any unit that is asked for by its digest; of a file, the units that this shard is assigned.

    find_unit: by model digest and unit index, the assignment that has it and the unit itself; raises UnknownModel.
    """

    def __init__(self, find_unit: FindUnit, model_dirs: Sequence[Path], cache: WeightsCache | None, threads: Executor) -> None:
        self._find_unit = find_unit
        self._model_dirs = model_dirs
        self._cache = cache
        self._threads = threads
        self._is_right: dict[tuple[bytes, tuple[FileIdentity, ...]], bool] = {}

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
            for piece in pieces_of([(0, 0, kept.size_bytes)], offset_bytes):
                try:
                    data = await self._in_thread(kept.read, piece.file_offset_bytes, piece.size_bytes)
                except OSError as error:
                    raise WeightsDiffer(f"the shard's copy cannot be read: {error}") from error
                yield weights_pb2.FetchUnitResponse(offset_bytes=piece.offset_bytes, data=data)

    async def _from_file(self, request: weights_pb2.FetchUnitRequest) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        assignment, unit = self._find_unit(request.model_digest, request.unit_index)
        pieces = pieces_of(unit.places, request.offset_bytes)
        paths = await self._in_thread(self._right_files, assignment, unit)
        with ModelSource(paths) as source:
            for piece in pieces:
                place = FileRange(piece.file_index, piece.file_offset_bytes, piece.size_bytes)
                try:
                    data = await self._in_thread(source.read, place)
                except CorruptModelFile as error:
                    raise WeightsDiffer(str(error)) from error
                yield weights_pb2.FetchUnitResponse(offset_bytes=piece.offset_bytes, data=data)

    def _right_files(self, assignment: AssignmentFacts, unit: Unit) -> ModelPaths:
        """Files that have the unit: those of another model may have the same sizes. They are looked into once."""
        for paths in find_local_files(assignment, self._model_dirs):
            try:
                if have_files_of(paths, unit) and self._have(paths, assignment, unit):
                    return paths
            except (OSError, CorruptModelFile):
                continue
        raise UnknownModel(f"this shard has no file of {assignment.model.name}, and no copy of unit {unit.index}")

    def _have(self, paths: ModelPaths, assignment: AssignmentFacts, unit: Unit) -> bool:
        """Known from before, if they have certainly not changed since."""
        needed = [path for index, path in enumerate(paths) if path is not None and index in unit.file_indexes]
        identities = tuple(identity_of(path.stat()) for path in needed)
        key = assignment.model_digest, identities
        if key in self._is_right:
            return self._is_right[key]
        began_ns = time.time_ns()
        is_right = _digest_in(paths, unit) == unit.digest
        if all(is_certain(identity, began_ns) for identity in identities):
            self._is_right[key] = is_right
        return is_right

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments, **options))


def _digest_in(paths: ModelPaths, unit: Unit) -> bytes:
    with ModelSource(paths) as source:
        return digest_of(source, unit)
