"""The coordinator's gRPC services that shards and observers call."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import grpc

from dairllm.coordinator.membership import Membership
from dairllm.coordinator.reachability import host_of_peer
from dairllm.coordinator.ring import Ring
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc, ring_pb2, ring_pb2_grpc

WATCH_INTERVAL_S = 0.5


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, membership: Membership, state: Callable[[], cluster_pb2.ClusterState]) -> None:
        self._membership = membership
        self._state = state

    async def Join(
        self, request_iterator: AsyncIterator[cluster_pb2.JoinRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[cluster_pb2.JoinResponse]:
        async for response in self._membership.join(request_iterator, host_of_peer(context.peer())):
            yield response

    async def WatchCluster(
        self, request: cluster_pb2.WatchClusterRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[cluster_pb2.WatchClusterResponse]:
        last: cluster_pb2.ClusterState | None = None
        while True:
            state = self._state()
            if state != last:
                yield cluster_pb2.WatchClusterResponse(state=state, coordinator=self._identity())
                last = state
            if request.once:
                return
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _identity(self) -> cluster_pb2.CoordinatorIdentity:
        config = self._membership.config
        return cluster_pb2.CoordinatorIdentity(
            protocol_major=config.protocol_major,
            protocol_minor=config.protocol_minor,
            cluster_hash=config.cluster_hash,
            time_s=time.time(),
        )


class RingServicer(ring_pb2_grpc.RingServiceServicer):
    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    async def Forward(
        self, request_iterator: AsyncIterator[ring_pb2.ForwardRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[ring_pb2.ForwardResponse]:
        async for response in self._ring.receive(request_iterator):
            yield response
