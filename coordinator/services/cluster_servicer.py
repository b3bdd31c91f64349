"""ClusterService: what shards and people call. The contract is in protos/dairllm/v1/cluster.proto."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import grpc

from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.membership.membership import Membership
from dairllm.coordinator.membership.reachability import host_of_peer
from dairllm.mesh.errors import InvalidRequest, NotDispensable, UnknownShard
from dairllm.mesh.settings import format_size
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc

WATCH_INTERVAL_S = 0.5


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, membership: Membership, state: Callable[[], cluster_pb2.ClusterState]) -> None:
        self._membership = membership
        self._state = state

    async def Join(
        self, request_iterator: AsyncIterator[cluster_pb2.JoinRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[cluster_pb2.JoinResponse]:
        async for response in self._membership.streams.serve(request_iterator, host_of_peer(context.peer())):
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

    async def DrainShard(self, request: cluster_pb2.DrainShardRequest, context: grpc.aio.ServicerContext) -> cluster_pb2.DrainShardResponse:
        self._check_name(request.name)
        if not request.force:
            self._check_dispensable(request.name)
        self._membership.handle(on.DrainRequested(request.name, request.force))
        return cluster_pb2.DrainShardResponse()

    async def CordonShard(
        self, request: cluster_pb2.CordonShardRequest, context: grpc.aio.ServicerContext
    ) -> cluster_pb2.CordonShardResponse:
        self._check_name(request.name)
        if request.cordoned and not request.force:
            self._check_dispensable(request.name)
        self._membership.handle(on.CordonRequested(request.name, request.cordoned, request.force))
        return cluster_pb2.CordonShardResponse()

    async def ConfigureShard(
        self, request: cluster_pb2.ConfigureShardRequest, context: grpc.aio.ServicerContext
    ) -> cluster_pb2.ConfigureShardResponse:
        self._check_name(request.name)
        memory_budget_bytes = request.memory_budget_bytes if request.HasField("memory_budget_bytes") else None
        num_threads = request.num_threads if request.HasField("num_threads") else None
        if memory_budget_bytes is None and num_threads is None:
            raise InvalidRequest("neither memory_budget_bytes nor num_threads is set; expected at least one of them")
        if memory_budget_bytes is not None and not request.force:
            self._check_enough(request.name, memory_budget_bytes)
        answer = await self._membership.streams.configure(request.name, memory_budget_bytes, num_threads)
        if answer.refusal:
            raise InvalidRequest(f"shard {request.name!r} keeps its limits: {answer.refusal}")
        limits = answer.capabilities
        return cluster_pb2.ConfigureShardResponse(memory_budget_bytes=limits.memory_budget_bytes, num_threads=limits.num_threads)

    def _check_name(self, name: str) -> None:
        if not self._membership.machine.has_member(name):
            raise UnknownShard(f"no shard is named {name!r}; `dairllm status` lists them", "name")

    def _check_dispensable(self, name: str) -> None:
        lack = self._membership.machine.can_do_without(name)
        if lack is not None:
            raise NotDispensable(f"the model cannot be served without shard {name!r}: {lack.reason}", "name")

    def _check_enough(self, name: str, memory_budget_bytes: int) -> None:
        lack = self._membership.machine.can_do_with(name, memory_budget_bytes)
        if lack is not None:
            words = f"the model could not be served any more if shard {name!r} had {format_size(memory_budget_bytes)}"
            raise NotDispensable(f"{words}: {lack.reason}", "memory_budget_bytes")

    def _identity(self) -> cluster_pb2.CoordinatorIdentity:
        config = self._membership.config
        return cluster_pb2.CoordinatorIdentity(
            protocol_major=config.protocol_major,
            protocol_minor=config.protocol_minor,
            cluster_hash=config.cluster_hash,
            time_s=time.time(),
        )
