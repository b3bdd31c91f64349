"""The gRPC services of a shard."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeAlias

import grpc.aio

from dairllm.mesh.errors import DeadlineExceeded, InvalidRequest, MalformedFrame, UnknownModel, WeightsDiffer
from dairllm.mesh.protocol import software_version
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.reader import FileSource
from dairllm.shard_service.assignment import UnitFacts
from dairllm.shard_service.incoming import IncomingEdge, IncomingStream
from dairllm.shard_service.sources import find_local_files
from dairllm.shard_service.stage_host import StageHost
from dairllm.v1 import ring_pb2, ring_pb2_grpc, shard_pb2, shard_pb2_grpc, weights_pb2, weights_pb2_grpc

MAX_ECHO_BYTES = 16 * 1024**2
OPEN_DEADLINE_S = 10.0
_FETCH_PIECE_BYTES = 1024**2

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RingServicer(ring_pb2_grpc.RingServiceServicer):
    def __init__(self, host: StageHost) -> None:
        self._host = host

    async def Forward(self, request_iterator: AsyncIterator[ring_pb2.ForwardRequest], context: Context) -> None:
        opening = await _opening(request_iterator)
        edge = self._host.incoming(opening)
        stream = edge.open(opening.sender)
        accepted = ring_pb2.EdgeAccepted(credits=stream.granted)
        await context.write(ring_pb2.ForwardResponse(accepted=accepted))
        await _first_to_end(_receive(edge, stream, request_iterator), _answer(stream, context))


async def _opening(requests: AsyncIterator[ring_pb2.ForwardRequest]) -> ring_pb2.EdgeOpen:
    try:
        async with asyncio.timeout(OPEN_DEADLINE_S):
            first = await anext(aiter(requests), None)
    except TimeoutError as error:
        raise DeadlineExceeded(f"no `open` came within {OPEN_DEADLINE_S:g} s") from error
    if first is None or first.WhichOneof("message") != "open":
        raise InvalidRequest("the first message of a Forward stream is not `open`")
    return first.open


async def _receive(edge: IncomingEdge, stream: IncomingStream, requests: AsyncIterator[ring_pb2.ForwardRequest]) -> None:
    loop = asyncio.get_running_loop()
    async for request in requests:
        if request.WhichOneof("message") != "micro_batch":
            raise MalformedFrame(f"a shard takes micro-batches; got {request.WhichOneof('message') or 'an empty message'}")
        edge.put(stream, request.micro_batch, loop.time())


async def _answer(stream: IncomingStream, context: Context) -> None:
    while True:
        await context.write(await stream.next_response())


async def _first_to_end(*works: Coroutine[Any, Any, None]) -> None:
    """Runs them at once until one ends or fails, which ends all."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


class ShardServicer(shard_pb2_grpc.ShardServiceServicer):
    """make_stats: all of GetStatsResponse but the version."""

    def __init__(self, host: StageHost, make_stats: Callable[[], shard_pb2.GetStatsResponse]) -> None:
        self._host = host
        self._make_stats = make_stats

    async def GetStats(self, request: shard_pb2.GetStatsRequest, context: Context) -> shard_pb2.GetStatsResponse:
        stats = self._make_stats()
        stats.software_version = software_version()
        return stats

    async def Echo(self, request: shard_pb2.EchoRequest, context: Context) -> shard_pb2.EchoResponse:
        if request.reply_size_bytes > MAX_ECHO_BYTES:
            raise InvalidRequest(f"reply_size_bytes is {request.reply_size_bytes}; expected at most {MAX_ECHO_BYTES}", "reply_size_bytes")
        return shard_pb2.EchoResponse(payload=bytes(request.reply_size_bytes))

    async def FetchKv(self, request: shard_pb2.FetchKvRequest, context: Context) -> AsyncIterator[shard_pb2.FetchKvResponse]:
        async for piece in self._host.kv_pieces(request):
            yield piece


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Serves the units that this shard is assigned, from a local file of the model. Who receives them verifies them."""

    def __init__(self, host: StageHost, threads: Executor) -> None:
        self._host = host
        self._threads = threads

    async def FetchUnit(self, request: weights_pb2.FetchUnitRequest, context: Context) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        assignment, unit = self._host.find_unit(request.model_digest, request.unit_index)
        _require_offset(request.offset_bytes, unit)
        loop = asyncio.get_running_loop()
        paths = await loop.run_in_executor(self._threads, find_local_files, assignment, self._host.model_dirs)
        if not paths:
            raise UnknownModel(f"this shard has no file of {assignment.model.name}")
        with FileSource(paths[0]) as file:
            for offset, file_offset, size in _pieces(unit, request.offset_bytes):
                try:
                    data = await loop.run_in_executor(self._threads, file.read, file_offset, size)
                except CorruptModelFile as error:
                    raise WeightsDiffer(str(error)) from error
                yield weights_pb2.FetchUnitResponse(offset_bytes=offset, data=data)


def _require_offset(offset_bytes: int, unit: UnitFacts) -> None:
    if offset_bytes > unit.size_bytes:
        raise InvalidRequest(f"offset_bytes is {offset_bytes}; unit {unit.index} has {unit.size_bytes} bytes", "offset_bytes")


def _pieces(unit: UnitFacts, from_bytes: int) -> list[tuple[int, int, int]]:
    """(offset in the unit, offset in the file, size) of what is left from this offset on."""
    pieces, begin = [], 0
    for tensor in unit.tensors:
        start = max(from_bytes - begin, 0)
        for inner in range(start, tensor.size_bytes, _FETCH_PIECE_BYTES):
            pieces.append((begin + inner, tensor.offset_bytes + inner, min(_FETCH_PIECE_BYTES, tensor.size_bytes - inner)))
        begin += tensor.size_bytes
    return pieces
