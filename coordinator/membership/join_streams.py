"""All Join streams: how a shard's stream begins, what comes over it, how it ends."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

import grpc

from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.identities import LeaseId
from dairllm.coordinator.membership.join_stream import JoinStream
from dairllm.coordinator.membership.reachability import Place, Places
from dairllm.coordinator.membership.shard_messages import event_of, hello_from_proto
from dairllm.mesh.errors import DairllmError, DeadlineExceeded, InvalidRequest, NameTaken, PeerUnreachable
from dairllm.mesh.peers import COORDINATOR_NAME
from dairllm.mesh.streams import first_request
from dairllm.v1 import cluster_pb2

CONFIGURE_LIMIT_S = 15.0
"""A shard without a part measures itself anew, which takes some seconds if others on its machine do so, too."""


class JoinStreams:
    """handle: takes what happens. places: where members are, which their streams tell.

    A member's orders go over the stream that was admitted last under its name.
    """

    def __init__(self, places: Places, handle: Callable[[on.Event], None]) -> None:
        self.places = places
        self._handle = handle
        self._streams: dict[LeaseId, JoinStream] = {}
        self._admitted: dict[str, JoinStream] = {}
        self._ids = itertools.count(1)
        self._closing: DairllmError | None = None

    # What the machine decides

    def admit(self, lease: LeaseId) -> JoinStream:
        stream = self._streams[lease]
        self._admitted[stream.name] = stream
        self.places.note(stream.name, stream.place)
        return stream

    def end(self, lease: LeaseId, error: DairllmError) -> None:
        stream = self._streams.get(lease)
        if stream is not None:
            stream.end(error)

    def end_all(self, error: DairllmError) -> None:
        """Now and from now on."""
        self._closing = error
        for stream in self._streams.values():
            stream.end(error)

    def send(self, name: str, response: cluster_pb2.JoinResponse) -> None:
        """Nothing is sent to who has no stream: it joins again, and is told then."""
        stream = self._admitted.get(name)
        if stream is not None:
            stream.send(response)

    def challenge(self, name: str, number: int) -> None:
        stream = self._admitted.get(name)
        if stream is not None:
            stream.send(cluster_pb2.JoinResponse(prove=cluster_pb2.Prove(number=number, challenge=stream.challenge(number))))

    def boot_id_of(self, name: str) -> str | None:
        stream = self._admitted.get(name)
        return stream.boot_id if stream else None

    @property
    def announced_ids(self) -> frozenset[str]:
        """Under which the members announce themselves."""
        return frozenset(stream.announced_id for stream in self._admitted.values())

    # A stream's life

    async def serve(self, requests: AsyncIterator[cluster_pb2.JoinRequest], observed_host: str) -> AsyncIterator[cluster_pb2.JoinResponse]:
        """ClusterService.Join. Raises the DairllmError that ends the lease."""
        first = await first_request(requests, "hello")
        if self._closing is not None:
            raise self._closing
        stream = self._begin(first.hello, observed_host)
        reader = asyncio.create_task(self._read(stream, requests), name=f"join-stream-{stream.name}")
        try:
            while (response := await stream.responses.get()) is not None:
                if isinstance(response, DairllmError):
                    raise response
                yield response
        finally:
            reader.cancel()
            self._forget(stream)

    def _begin(self, hello: cluster_pb2.Hello, observed_host: str) -> JoinStream:
        if hello.name == COORDINATOR_NAME:
            raise NameTaken(f"{COORDINATOR_NAME!r} is the coordinator's name; start the shard with another --name")
        facts = hello_from_proto(hello)
        place = Place(facts.addresses, observed_host)
        stream = JoinStream(LeaseId(next(self._ids)), facts.name, facts.boot_id, place, hello.announced_id)
        self._streams[stream.id] = stream
        self._handle(on.JoinRequested(stream.id, facts))
        return stream

    def _forget(self, stream: JoinStream) -> None:
        self._break(stream)
        del self._streams[stream.id]
        if self._admitted.get(stream.name) is stream:
            del self._admitted[stream.name]
            self.places.forget(stream.name)

    def _break(self, stream: JoinStream) -> None:
        if not stream.is_over:
            stream.end(None)
            self._handle(on.LeaseBroken(stream.name, stream.boot_id, stream.id, "the connection ended"))

    async def _read(self, stream: JoinStream, requests: AsyncIterator[cluster_pb2.JoinRequest]) -> None:
        try:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for request in requests:
                    if not stream.is_over:
                        self._hear(stream, request)
        except DairllmError as error:
            self._put_out(stream, error)
        self._break(stream)

    def _put_out(self, stream: JoinStream, error: DairllmError) -> None:
        """It sent what cannot be. Its shard may join again, but is not used at once."""
        if not stream.is_over:
            self._handle(on.MemberAtFault(stream.name, stream.boot_id, f"sent what cannot be: {error}"))
            stream.end(error)
            self._handle(on.LeaseBroken(stream.name, stream.boot_id, stream.id, "it sent what cannot be"))

    def _hear(self, stream: JoinStream, request: cluster_pb2.JoinRequest) -> None:
        event = event_of(stream, request)
        if event is None:
            kind = request.WhichOneof("message") or "an unknown message"
            raise InvalidRequest(f"shard {stream.name!r} sent {kind} on its Join stream, which is not expected")
        if isinstance(event, on.HeartbeatReceived):
            stream.send(cluster_pb2.JoinResponse(heartbeat_ack=cluster_pb2.HeartbeatAck(number=request.heartbeat.number)))
        self._handle(event)
        if isinstance(event, on.CapabilitiesChanged):
            stream.tell_limits(request.capabilities_changed)
        elif isinstance(event, on.ShardLeft):
            stream.end(None)

    async def configure(self, name: str, memory_budget_bytes: int | None, num_threads: int | None) -> cluster_pb2.CapabilitiesChanged:
        """Tell a member other limits, and wait for its answer. Raises PeerUnreachable if it is lost, DeadlineExceeded."""
        stream = self._admitted.get(name)
        if stream is None or stream.is_over:
            raise PeerUnreachable(f"shard {name!r} is not connected; try again when it is back")
        answer = stream.expect_limits()
        self._handle(on.ConfigureRequested(name, memory_budget_bytes, num_threads))
        try:
            return await asyncio.wait_for(answer, CONFIGURE_LIMIT_S)
        except TimeoutError:
            words = f"shard {name!r} has not answered within {CONFIGURE_LIMIT_S:g} s; `dairllm status` shows its limits"
            raise DeadlineExceeded(words) from None
