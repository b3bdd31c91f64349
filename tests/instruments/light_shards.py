"""Many shards in one process: each holds a real lease over its own connection, and none has weights or computes.

They answer what the coordinator asks as the protocol says, so that a plan of them is made, and pass frames without rows on, so that its
ring opens; nothing would come of an answer. A deaf one takes frames and keeps them.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc

from dairllm.kernels_pyx import BLOCK_FORMATS, STAGE_FEATURES
from dairllm.mesh.arithmetic import ARITHMETIC_FEATURE
from dairllm.mesh.cache_types import CACHE_FEATURES
from dairllm.mesh.channels import bind, create_server, error_from_rpc, open_channel
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.peers import COORDINATOR_NAME, Peer
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR, software_version
from dairllm.mesh.ring.codec import micro_batch_from_proto
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult
from dairllm.mesh.ring.member import RingMember
from dairllm.mesh.ring.outgoing import EdgeLost, OutgoingEdge
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc, ring_pb2, ring_pb2_grpc

RESERVED_BYTES = 1 << 20
DECODE_S_PER_BYTE = 1e-10
CREDITS = 8
LAST_WORD_S = 5.0
"""How long the last heartbeats may wait for their acknowledgements."""


Lie = Callable[[MicroBatch], MicroBatchResult]


@dataclass
class LightShard:
    """One shard.

    beats: heartbeats that were sent; round_trips_s: of those that were acknowledged, in order, as far back as nobody has cleared it.
    end: why the lease ended; '' while it has not. is_deaf: frames end with it, and it says nothing of them.
    lie: what it sends instead of each frame with rows.
    """

    hello: cluster_pb2.Hello
    is_deaf: bool = False
    lie: Lie | None = None
    welcomed: asyncio.Event = field(default_factory=asyncio.Event)
    beats: int = 0
    acknowledged: int = 0
    round_trips_s: list[float] = field(default_factory=list)
    assignments: int = 0
    activations: int = 0
    end: str = ""
    activated: asyncio.Event = field(default_factory=asyncio.Event)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _sent_s: dict[int, float] = field(default_factory=dict)
    _interval_s: float = 0.0
    _is_quiet: bool = False
    _assignment: cluster_pb2.Assignment = field(default_factory=cluster_pb2.Assignment)
    _edge: OutgoingEdge | None = None
    _edge_task: asyncio.Task[None] | None = None
    _epoch: int = 0
    _received: int = 0

    @property
    def name(self) -> str:
        return str(self.hello.name)

    @property
    def has_heard_all(self) -> bool:
        return self.acknowledged == self.beats

    def fall_quiet(self) -> None:
        """No further heartbeats."""
        self._is_quiet = True

    async def hold(self, coordinator: str) -> None:
        """Join, and keep the lease until cancelled; `end` says why if it ends before."""
        async with open_channel(coordinator) as channel:
            call = cluster_pb2_grpc.ClusterServiceStub(channel).Join()
            async with asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(self._beat(call))
                try:
                    self.end = await self._talk(call)
                finally:
                    self.welcomed.set()
                    self.activated.set()
                    beating.cancel()
                    if self._edge_task is not None:
                        self._edge_task.cancel()

    async def _talk(self, call: Any) -> str:
        """Answer until the stream ends; returns why it did."""
        try:
            await self._write(call, cluster_pb2.JoinRequest(hello=self.hello))
            async for response in call:
                for answer in self._answers(response):
                    await self._write(call, answer)
        except grpc.aio.AioRpcError as error:
            return str(error_from_rpc(error, "the coordinator"))
        except asyncio.InvalidStateError:
            return "the stream ended while an answer was written"
        return "the coordinator ended the stream"

    async def _write(self, call: Any, request: cluster_pb2.JoinRequest) -> None:
        """gRPC takes one message at a time."""
        async with self._writing:
            await call.write(request)

    def _answers(self, response: cluster_pb2.JoinResponse) -> Sequence[cluster_pb2.JoinRequest]:
        match response.WhichOneof("message"):
            case "welcome":
                self._interval_s = response.welcome.heartbeat_interval_ms / 1000
                self.welcomed.set()
            case "heartbeat_ack":
                self._note_round_trip(response.heartbeat_ack.number)
            case "assignment":
                self.assignments += 1
                self._assignment = response.assignment
                return _prepared(response.assignment)
            case "activate_stage":
                self.activations += 1
                self.activated.set()
                epoch = response.activate_stage.epoch
                self._open_edge(epoch)
                return [cluster_pb2.JoinRequest(stage_activated=cluster_pb2.StageActivated(epoch=epoch))]
        return []

    def _open_edge(self, epoch: int) -> None:
        if self._edge_task is not None:
            self._edge_task.cancel()
        order = self._assignment
        member = RingMember(self.hello.cluster_hash, self.name, epoch, order.ring_key)
        self._edge = OutgoingEdge(Peer(order.next.name, tuple(order.next.addresses)), member.opening_to(order.next.name))
        self._epoch, self._received = epoch, 0
        self._edge_task = asyncio.create_task(self._keep_edge(self._edge), name=f"{self.name} to {order.next.name}")

    async def _keep_edge(self, edge: OutgoingEdge) -> None:
        with contextlib.suppress(EdgeLost):
            await edge.run()

    async def pass_on(self, message: ring_pb2.MicroBatch) -> None:
        self._received += 1
        if self._edge is not None and not self.is_deaf:
            frame = micro_batch_from_proto(message)
            if self.lie is not None and frame.slices:
                await self._edge.send(self.lie(frame))
                return
            is_last = self._assignment.next.name == COORDINATOR_NAME
            await self._edge.send(MicroBatchResult(frame.epoch, frame.batch_id, (), ()) if is_last else frame)

    def _work(self) -> cluster_pb2.ShardWork | None:
        sent = self._edge.sent if self._edge is not None else 0
        frames = {"received_frames": self._received, "computed_frames": self._received, "sent_frames": sent}
        return None if self.is_deaf else cluster_pb2.ShardWork(epoch=self._epoch, **frames)

    def _note_round_trip(self, number: int) -> None:
        self.acknowledged += 1
        self.round_trips_s.append(asyncio.get_running_loop().time() - self._sent_s.pop(number))

    async def _beat(self, call: Any) -> None:
        """At fixed times, however long writing takes."""
        await self.welcomed.wait()
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader says why
            while not self._is_quiet:
                self.beats += 1
                self._sent_s[self.beats] = loop.time()
                round_trip_us = round(self.round_trips_s[-1] * 1e6) if self.round_trips_s else 0
                usage, work = cluster_pb2.ShardUsage(), self._work()
                beat = cluster_pb2.Heartbeat(number=self.beats, round_trip_us=round_trip_us, usage=usage, work=work)
                await self._write(call, cluster_pb2.JoinRequest(heartbeat=beat))
                due_s += self._interval_s
                await asyncio.sleep(due_s - loop.time())


def _prepared(assignment: cluster_pb2.Assignment) -> Sequence[cluster_pb2.JoinRequest]:
    """As from a shard that has the weights at once."""
    size_bytes = sum(unit.size_bytes for unit in assignment.units)
    epoch = assignment.epoch
    progress = cluster_pb2.LoadProgress(epoch=epoch, loaded_bytes=size_bytes, total_bytes=size_bytes, from_memory_bytes=size_bytes)
    ready = cluster_pb2.StageReady(epoch=epoch, weights_bytes=size_bytes)
    return [cluster_pb2.JoinRequest(load_progress=progress), cluster_pb2.JoinRequest(stage_ready=ready)]


class _Ring(ring_pb2_grpc.RingServiceServicer):
    """Accepts every edge and keeps it. shards: whose frames these are, by name."""

    def __init__(self, shards: Mapping[str, LightShard]) -> None:
        self._shards = shards

    async def Forward(
        self, request_iterator: AsyncIterator[ring_pb2.ForwardRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[ring_pb2.ForwardResponse]:
        shard: LightShard | None = None
        async for request in request_iterator:
            if request.WhichOneof("message") == "open":
                shard = self._shards[request.open.receiver]
                yield ring_pb2.ForwardResponse(accepted=ring_pb2.EdgeAccepted(credits=CREDITS))
            elif shard is not None:
                await shard.pass_on(request.micro_batch)
                yield ring_pb2.ForwardResponse(credit=ring_pb2.Credit(frames=1))


class LightFleet:
    """`count` light shards of one coordinator; a context manager, within which they join and hold their leases.

    room_bytes: of each, for weights and KV cache; 0 makes every plan impossible. deaf: they keep every frame. lie: of each.
    """

    def __init__(self, coordinator: str, cluster: str, count: int, room_bytes: int, *, deaf: bool = False, lie: Lie | None = None) -> None:
        self._deaf, self._lie = deaf, lie
        self._coordinator = coordinator
        self._cluster = cluster
        self._count = count
        self._room_bytes = room_bytes
        self._tasks: list[asyncio.Task[None]] = []
        self._server: grpc.aio.Server | None = None
        self.shards: list[LightShard] = []

    async def __aenter__(self) -> Self:
        self._server = create_server()
        by_name: dict[str, LightShard] = {}
        ring_pb2_grpc.add_RingServiceServicer_to_server(_Ring(by_name), self._server)
        port = await bind(self._server, "127.0.0.1", 0, "the light shards' ring")
        await self._server.start()
        self.shards = [LightShard(self._hello(f"light-{number:04}", port), self._deaf, self._lie) for number in range(self._count)]
        by_name.update({shard.name: shard for shard in self.shards})
        self._tasks = [asyncio.create_task(shard.hold(self._coordinator), name=shard.name) for shard in self.shards]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self._server is not None
        await self._server.stop(None)

    def _hello(self, name: str, port: int) -> cluster_pb2.Hello:
        return cluster_pb2.Hello(
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            software_version=software_version(),
            cluster_hash=cluster_hash(self._cluster),
            name=name,
            boot_id=secrets.token_hex(8),
            addresses=[f"127.0.0.1:{port}"],
            capabilities=cluster_pb2.ShardCapabilities(
                memory_budget_bytes=RESERVED_BYTES + self._room_bytes,
                reserved_bytes=RESERVED_BYTES,
                num_threads=1,
                decode_s_per_byte=DECODE_S_PER_BYTE,
                block_formats=list(BLOCK_FORMATS),
                features=(*STAGE_FEATURES, *CACHE_FEATURES, ARITHMETIC_FEATURE),
            ),
        )

    async def joined(self, timeout_s: float) -> None:
        """Until every shard was welcomed, or its lease has ended. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            for shard in self.shards:
                await shard.welcomed.wait()

    async def activated(self, timeout_s: float) -> None:
        """Until every shard has a part in a plan that is activated, or its lease has ended. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            for shard in self.shards:
                await shard.activated.wait()

    async def fall_quiet(self) -> None:
        """Send no further heartbeats, and give the last ones time to be acknowledged."""
        for shard in self.shards:
            shard.fall_quiet()
        deadline_s = asyncio.get_running_loop().time() + LAST_WORD_S
        while not all(shard.has_heard_all or shard.end for shard in self.shards) and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.01)

    @property
    def ended(self) -> dict[str, str]:
        """Leases that ended although nobody asked for it: why, by name."""
        self._raise_faults()
        return {shard.name: shard.end for shard in self.shards if shard.end}

    @property
    def beats(self) -> int:
        return sum(shard.beats for shard in self.shards)

    @property
    def unacknowledged(self) -> int:
        """Heartbeats without an answer."""
        return sum(shard.beats - shard.acknowledged for shard in self.shards)

    @property
    def round_trips_s(self) -> list[float]:
        """Of all heartbeats since the last call of `forget_round_trips`, ascending."""
        return sorted(time_s for shard in self.shards for time_s in shard.round_trips_s)

    def forget_round_trips(self) -> None:
        for shard in self.shards:
            shard.round_trips_s.clear()

    def _raise_faults(self) -> None:
        """A shard that failed by itself is no word about the coordinator."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
