"""WeightsService of the coordinator: units of the served model's file, for shards that lack it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc

from dairllm.mesh.errors import InvalidRequest, UnknownModel, WeightsDiffer
from dairllm.model_files.errors import ModelFileError
from dairllm.model_files.manifest import Manifest, Unit
from dairllm.model_files.reader import FileSource
from dairllm.v1 import weights_pb2, weights_pb2_grpc

CHUNK_BYTES = 1 << 20


class ModelFileServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Reads in a thread: a slow disk never holds up the event loop."""

    def __init__(self, manifest: Manifest, path: Path) -> None:
        self._manifest = manifest
        self._path = path

    async def FetchUnit(
        self, request: weights_pb2.FetchUnitRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        unit = self._unit(request)
        try:
            with FileSource(self._path) as source:
                for offset, position, size in ranges_of(unit, request.offset_bytes):
                    data = await asyncio.to_thread(source.read, position, size)
                    yield weights_pb2.FetchUnitResponse(offset_bytes=offset, data=data)
        except ModelFileError as error:
            raise WeightsDiffer(f"the coordinator's model file changed while it was served: {error}") from error

    def _unit(self, request: weights_pb2.FetchUnitRequest) -> Unit:
        if request.model_digest.hex() != self._manifest.model_digest:
            raise UnknownModel(f"the coordinator does not serve a model of digest {request.model_digest.hex()[:16]!r}")
        if request.unit_index >= len(self._manifest.units):
            raise InvalidRequest(f"unit_index is {request.unit_index}; expected 0 to {len(self._manifest.units) - 1}", "unit_index")
        unit = self._manifest.units[request.unit_index]
        if request.offset_bytes > unit.size_bytes:
            raise InvalidRequest(f"offset_bytes is {request.offset_bytes}; the unit has {unit.size_bytes} bytes", "offset_bytes")
        return unit


def ranges_of(unit: Unit, offset_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(offset in the unit, position in the file, size) of chunks that cover the unit from `offset_bytes` on, in order."""
    tensor_start = 0
    for tensor in unit.tensors:
        begin = max(offset_bytes - tensor_start, 0)
        for start in range(begin, tensor.size_bytes, CHUNK_BYTES):
            yield tensor_start + start, tensor.offset + start, min(CHUNK_BYTES, tensor.size_bytes - start)
        tensor_start += tensor.size_bytes
