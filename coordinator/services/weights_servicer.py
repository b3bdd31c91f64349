"""WeightsService of the coordinator: units of the served model's files, for shards that lack it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc

from dairllm.mesh.errors import InvalidRequest, UnknownModel, WeightsDiffer
from dairllm.mesh.weights import pieces_of
from dairllm.model_files.errors import ModelFileError
from dairllm.model_files.manifest import Manifest, Unit
from dairllm.model_files.reader import FileRange, ModelSource, digest_of
from dairllm.v1 import weights_pb2, weights_pb2_grpc

_REPLACED = "replaced or changed while the coordinator serves it; put the old file back, or restart the coordinator to serve the new one"


class ModelFileServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Reads in a thread: a slow disk never holds up the event loop. paths: of the model's files, in the order of the manifest.

    Files that are not as they were are looked into before anything of them is sent: who waits for a unit learns why it does not come.
    """

    def __init__(self, manifest: Manifest, paths: Sequence[Path]) -> None:
        self._manifest = manifest
        self._paths = paths
        with ModelSource(self._paths) as source:
            self._identities = [source.identity(index) for index in range(len(paths))]

    async def FetchUnit(
        self, request: weights_pb2.FetchUnitRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        unit = self._unit(request)
        pieces = pieces_of(unit.places, request.offset_bytes)
        try:
            with ModelSource(self._paths) as source:
                if self._may_differ(source, unit) and await asyncio.to_thread(digest_of, source, unit) != unit.digest:
                    raise WeightsDiffer(f"{self._paths[0]} was {_REPLACED}")
                for piece in pieces:
                    place = FileRange(piece.file_index, piece.file_offset_bytes, piece.size_bytes)
                    data = await asyncio.to_thread(source.read, place)
                    yield weights_pb2.FetchUnitResponse(offset_bytes=piece.offset_bytes, data=data)
        except ModelFileError as error:
            raise WeightsDiffer(f"{self._paths[0]} was {_REPLACED}: {error}") from error

    def _may_differ(self, source: ModelSource, unit: Unit) -> bool:
        return any(source.identity(index) != self._identities[index] for index in unit.file_indexes)

    def _unit(self, request: weights_pb2.FetchUnitRequest) -> Unit:
        if request.model_digest != self._manifest.model_digest:
            raise UnknownModel(f"the coordinator does not serve a model of digest {request.model_digest.hex()[:16]!r}")
        if request.unit_index >= len(self._manifest.units):
            raise InvalidRequest(f"unit_index is {request.unit_index}; expected 0 to {len(self._manifest.units) - 1}", "unit_index")
        return self._manifest.units[request.unit_index]
