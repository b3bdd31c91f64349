"""WeightsService of the coordinator: units of the served model's file, for shards that lack it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from dairllm.mesh.errors import InvalidRequest, UnknownModel, WeightsDiffer
from dairllm.mesh.weights import pieces_of
from dairllm.model_files.errors import ModelFileError
from dairllm.model_files.manifest import Manifest, Unit
from dairllm.model_files.reader import FileSource
from dairllm.v1 import weights_pb2, weights_pb2_grpc


class ModelFileServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Reads in a thread: a slow disk never holds up the event loop."""

    def __init__(self, manifest: Manifest, path: Path) -> None:
        self._manifest = manifest
        self._path = path

    async def FetchUnit(
        self, request: weights_pb2.FetchUnitRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        tensors = self._unit(request).tensors
        pieces = pieces_of([(tensor.offset, tensor.size_bytes) for tensor in tensors], request.offset_bytes)
        try:
            with FileSource(self._path) as source:
                for piece in pieces:
                    data = await asyncio.to_thread(source.read, piece.file_offset_bytes, piece.size_bytes)
                    yield weights_pb2.FetchUnitResponse(offset_bytes=piece.offset_bytes, data=data)
        except ModelFileError as error:
            raise WeightsDiffer(f"the coordinator's model file changed while it was served: {error}") from error

    def _unit(self, request: weights_pb2.FetchUnitRequest) -> Unit:
        if request.model_digest.hex() != self._manifest.model_digest:
            raise UnknownModel(f"the coordinator does not serve a model of digest {request.model_digest.hex()[:16]!r}")
        if request.unit_index >= len(self._manifest.units):
            raise InvalidRequest(f"unit_index is {request.unit_index}; expected 0 to {len(self._manifest.units) - 1}", "unit_index")
        return self._manifest.units[request.unit_index]
