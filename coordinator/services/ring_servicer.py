"""RingService of the coordinator: the edge from the last shard, which brings results."""

from collections.abc import AsyncIterator

import grpc

from dairllm.coordinator.ring import Ring
from dairllm.mesh.ring.heartbeats import EdgeAnswers
from dairllm.v1 import ring_pb2, ring_pb2_grpc


class ResultsServicer(ring_pb2_grpc.RingServiceServicer):
    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    async def Forward(self, request_iterator: AsyncIterator[ring_pb2.ForwardRequest], context: grpc.aio.ServicerContext) -> None:
        await self._ring.receive(request_iterator, EdgeAnswers(context))
