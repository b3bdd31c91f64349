"""The gRPC services of a shard that compute; see `weights.servicer` for the other one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc.aio

from dairllm.mesh.errors import Busy, InvalidRequest, MalformedFrame
from dairllm.mesh.protocol import software_version
from dairllm.mesh.ring.heartbeats import EdgeAnswers
from dairllm.mesh.streams import first_request, first_to_end
from dairllm.shard_service.epochs.stage_host import StageHost
from dairllm.shard_service.ring.incoming import IncomingEdge, IncomingStream
from dairllm.v1 import ring_pb2, ring_pb2_grpc, shard_pb2, shard_pb2_grpc

MAX_ECHO_BYTES = 16 * 1024**2

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RingServicer(ring_pb2_grpc.RingServiceServicer):
    def __init__(self, host: StageHost) -> None:
        self._host = host

    async def Forward(self, request_iterator: AsyncIterator[ring_pb2.ForwardRequest], context: Context) -> None:
        opening = (await first_request(request_iterator, "open")).open
        edge = self._host.incoming(opening)
        stream = edge.open(opening.sender)
        answers = EdgeAnswers(context)
        await answers.accept(stream.granted)
        async with answers.beating():
            await first_to_end(_receive(edge, stream, request_iterator), _answer(stream, answers))


async def _receive(edge: IncomingEdge, stream: IncomingStream, requests: AsyncIterator[ring_pb2.ForwardRequest]) -> None:
    loop = asyncio.get_running_loop()
    try:
        async for request in requests:
            if request.WhichOneof("message") != "micro_batch":
                raise MalformedFrame(f"a shard takes micro-batches; got {request.WhichOneof('message') or 'an empty message'}")
            edge.put(stream, request.micro_batch, loop.time())
    except (InvalidRequest, MalformedFrame, Busy) as error:
        edge.accuse(stream, error)
        raise


async def _answer(stream: IncomingStream, answers: EdgeAnswers) -> None:
    while True:
        await answers.write(await stream.next_response())


class ShardServicer(shard_pb2_grpc.ShardServiceServicer):
    """make_stats: all of GetStatsResponse but the version. take_invitation: raises the DairllmError with which it is refused."""

    def __init__(
        self,
        host: StageHost,
        make_stats: Callable[[], shard_pb2.GetStatsResponse],
        take_invitation: Callable[[shard_pb2.InviteRequest], shard_pb2.InviteResponse],
    ) -> None:
        self._host = host
        self._make_stats = make_stats
        self._take_invitation = take_invitation

    async def GetStats(self, request: shard_pb2.GetStatsRequest, context: Context) -> shard_pb2.GetStatsResponse:
        stats = self._make_stats()
        stats.software_version = software_version()
        return stats

    async def Echo(self, request: shard_pb2.EchoRequest, context: Context) -> shard_pb2.EchoResponse:
        if request.reply_size_bytes > MAX_ECHO_BYTES:
            raise InvalidRequest(f"reply_size_bytes is {request.reply_size_bytes}; expected at most {MAX_ECHO_BYTES}", "reply_size_bytes")
        return shard_pb2.EchoResponse(payload=bytes(request.reply_size_bytes))

    async def Invite(self, request: shard_pb2.InviteRequest, context: Context) -> shard_pb2.InviteResponse:
        return self._take_invitation(request)

    async def FetchKv(self, request: shard_pb2.FetchKvRequest, context: Context) -> AsyncIterator[shard_pb2.FetchKvResponse]:
        async for piece in self._host.kv_pieces(request):
            yield piece
