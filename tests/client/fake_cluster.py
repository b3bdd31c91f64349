"""ClusterService as a coordinator would serve it, with the behaviour that a test gives it, in a thread of its own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from dairllm.mesh.channels import bind, create_server
from dairllm.mesh.errors import DairllmError
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc

START_TIMEOUT_S = 20


class FakeCluster(cluster_pb2_grpc.ClusterServiceServicer):
    """states: what WatchCluster sends, one after the other; `once` gets the first. stays: the stream is left open after the last.

    requests: what was asked for. refusal: the error that answers every change.
    """

    def __init__(
        self, states: Sequence[cluster_pb2.ClusterState] = (), *, refusal: DairllmError | None = None, stays: bool = False
    ) -> None:
        self.states = states
        self.refusal = refusal
        self.stays = stays
        self.requests: list[object] = []
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="fake-cluster")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_TIMEOUT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_TIMEOUT_S)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = create_server()
        self.address = f"127.0.0.1:{await bind(server, '127.0.0.1', 0, 'the fake coordinator')}"
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(self, server)
        await server.start()
        self._started.set()
        await self._stop.wait()
        await server.stop(None)

    def _take(self, request: object) -> None:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal

    async def WatchCluster(
        self, request: cluster_pb2.WatchClusterRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[cluster_pb2.WatchClusterResponse]:
        for state in self.states[:1] if request.once else self.states:
            yield cluster_pb2.WatchClusterResponse(state=state)
        if self.stays and not request.once:
            await self._stop.wait()

    async def DrainShard(self, request: cluster_pb2.DrainShardRequest, context: grpc.aio.ServicerContext) -> cluster_pb2.DrainShardResponse:
        self._take(request)
        return cluster_pb2.DrainShardResponse()

    async def CordonShard(
        self, request: cluster_pb2.CordonShardRequest, context: grpc.aio.ServicerContext
    ) -> cluster_pb2.CordonShardResponse:
        self._take(request)
        return cluster_pb2.CordonShardResponse()

    async def ConfigureShard(
        self, request: cluster_pb2.ConfigureShardRequest, context: grpc.aio.ServicerContext
    ) -> cluster_pb2.ConfigureShardResponse:
        self._take(request)
        return cluster_pb2.ConfigureShardResponse(memory_budget_bytes=2 << 30, num_threads=3)
