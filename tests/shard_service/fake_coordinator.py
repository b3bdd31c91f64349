"""A coordinator that does what a test tells it, over real gRPC, and remembers everything that shards say."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from dairllm.coordinator.services.weights_servicer import ModelFileServicer
from dairllm.mesh.arithmetic import DEFAULT_ARITHMETIC
from dairllm.mesh.channels import bind, create_server, dial
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.encodings import parse_encoding
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.peers import COORDINATOR_NAME
from dairllm.mesh.ring.heartbeats import HEARTBEAT_INTERVAL_S, EdgeAnswers
from dairllm.mesh.ring.member import RingMember
from dairllm.mesh.streams import next_message
from dairllm.model_files.codec import file_to_proto, spec_to_proto, unit_to_proto
from dairllm.model_files.containers import open_container
from dairllm.model_files.manifest import Manifest
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc, ring_pb2, ring_pb2_grpc, weights_pb2_grpc

T = TypeVar("T")

CLUSTER = "shard-tests"
PATIENCE_S = 20.0
KV_BLOCKS = 16
KV_BLOCK_TOKENS = 32
CONTEXT = 256
MAX_ROWS = 64
HEARTBEAT_MS = 100
KV_KEY = b"key of the cache"
WIRE = DEFAULT_ARITHMETIC.wire
"""Of every shard, unless an assignment says otherwise."""


async def soon(awaitable: Awaitable[T], timeout_s: float = PATIENCE_S) -> T:
    async with asyncio.timeout(timeout_s):
        return await awaitable


@dataclass
class JoinedShard:
    """One lease, from the coordinator's side."""

    hello: cluster_pb2.Hello
    said: asyncio.Queue[cluster_pb2.JoinRequest] = field(default_factory=asyncio.Queue)
    to_say: asyncio.Queue[cluster_pb2.JoinResponse | DairllmError] = field(default_factory=asyncio.Queue)
    heartbeats: list[cluster_pb2.Heartbeat] = field(default_factory=list)
    progress: list[cluster_pb2.LoadProgress] = field(default_factory=list)
    beat: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        return str(self.hello.addresses[0])

    async def next_message(self, kind: str) -> Any:
        """The next thing it says besides heartbeats and progress, which must be of this kind."""
        message = await soon(self.said.get())
        assert message.WhichOneof("message") == kind, message
        return getattr(message, kind)

    async def assign(self, assignment: cluster_pb2.Assignment) -> cluster_pb2.StageReady:
        """Prepared and activated."""
        ready = await self.prepare(assignment)
        await self.activate(assignment.epoch)
        return ready

    async def prepare(self, assignment: cluster_pb2.Assignment) -> cluster_pb2.StageReady:
        self.say_assignment(assignment)
        ready: cluster_pb2.StageReady = await self.next_message("stage_ready")
        return ready

    async def activate(
        self, epoch: int, alive: Sequence[int] = (), transfers: Sequence[cluster_pb2.KvTransfer] = ()
    ) -> cluster_pb2.StageActivated:
        activation = cluster_pb2.ActivateStage(epoch=epoch, alive_sequences=alive, transfers=transfers)
        self.say(cluster_pb2.JoinResponse(activate_stage=activation))
        activated: cluster_pb2.StageActivated = await self.next_message("stage_activated")
        assert activated.epoch == epoch
        return activated

    def say(self, response: cluster_pb2.JoinResponse) -> None:
        self.to_say.put_nowait(response)

    def say_assignment(self, assignment: cluster_pb2.Assignment) -> None:
        self.say(cluster_pb2.JoinResponse(assignment=assignment))


class _Cluster(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, coordinator: "FakeCoordinator") -> None:
        self._coordinator = coordinator

    async def Join(self, requests: AsyncIterator[cluster_pb2.JoinRequest], context: Any) -> AsyncIterator[cluster_pb2.JoinResponse]:
        hello = (await anext(aiter(requests))).hello
        self._coordinator.hellos.append(hello)
        refusal = self._coordinator.refusal(hello)
        if refusal is not None:
            self._coordinator.refused.set()
            raise refusal
        shard = JoinedShard(hello)
        yield cluster_pb2.JoinResponse(welcome=self._coordinator.welcome)
        self._coordinator.joined.put_nowait(shard)
        reader = asyncio.create_task(self._listen(shard, requests))
        try:
            while not shard.ended.is_set():
                response = await shard.to_say.get()
                if isinstance(response, DairllmError):
                    raise response
                if not self._coordinator.is_silent:
                    yield response
        finally:
            reader.cancel()

    async def _listen(self, shard: JoinedShard, requests: AsyncIterator[cluster_pb2.JoinRequest]) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "heartbeat":
                shard.heartbeats.append(request.heartbeat)
                shard.beat.set()
                acknowledgement = cluster_pb2.HeartbeatAck(number=request.heartbeat.number)
                shard.to_say.put_nowait(cluster_pb2.JoinResponse(heartbeat_ack=acknowledgement))
            elif kind == "load_progress":
                shard.progress.append(request.load_progress)
            else:
                if kind == "leaving" and request.leaving.drain and self._coordinator.releases_leavers:
                    shard.say(cluster_pb2.JoinResponse(release=cluster_pb2.Release(leave=True)))
                shard.said.put_nowait(request)
        shard.ended.set()
        shard.to_say.put_nowait(cluster_pb2.JoinResponse())


class _Ring(ring_pb2_grpc.RingServiceServicer):
    def __init__(self, coordinator: "FakeCoordinator") -> None:
        self._coordinator = coordinator

    async def Forward(self, requests: AsyncIterator[ring_pb2.ForwardRequest], context: Any) -> None:
        opening = (await anext(aiter(requests))).open
        self._coordinator.return_edges.put_nowait(opening)
        answers = EdgeAnswers(context, self._coordinator.ring_heartbeat_s)
        await answers.accept(self._coordinator.return_credits)
        async with answers.beating():
            async for request in requests:
                self._coordinator.results.put_nowait(request.result)
                await answers.write(ring_pb2.ForwardResponse(credit=ring_pb2.Credit(frames=1)))


class FakeCoordinator:
    """A context manager. `refusal`: the error for a hello, or None to welcome it."""

    def __init__(self, model: Path | None = None, *, coordinator_id: str = "fake", lease_timeout_ms: int = 5000) -> None:
        self.model = model
        self.manifest: Manifest | None = build_manifest(model) if model is not None else None
        self.welcome = cluster_pb2.Welcome(
            coordinator_id=coordinator_id, heartbeat_interval_ms=HEARTBEAT_MS, lease_timeout_ms=lease_timeout_ms
        )
        self.refusal: Callable[[cluster_pb2.Hello], DairllmError | None] = lambda hello: None
        self.refused = asyncio.Event()
        self.is_silent = False
        self.releases_leavers = True
        self.return_credits = 8
        self.ring_heartbeat_s = HEARTBEAT_INTERVAL_S
        self.hellos: list[cluster_pb2.Hello] = []
        self.joined: asyncio.Queue[JoinedShard] = asyncio.Queue()
        self.return_edges: asyncio.Queue[ring_pb2.EdgeOpen] = asyncio.Queue()
        self.results: asyncio.Queue[ring_pb2.MicroBatchResult] = asyncio.Queue()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        self._server = create_server()
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(_Cluster(self), self._server)
        ring_pb2_grpc.add_RingServiceServicer_to_server(_Ring(self), self._server)
        if self.manifest is not None and self.model is not None:
            weights_pb2_grpc.add_WeightsServiceServicer_to_server(
                ModelFileServicer(self.manifest, open_container(self.model).paths), self._server
            )
        self.port = await bind(self._server, "127.0.0.1", port, "the fake coordinator")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)

    async def __aenter__(self) -> "FakeCoordinator":
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def next_shard(self) -> JoinedShard:
        return await soon(self.joined.get())

    def assignment(
        self,
        epoch: int,
        units: range | None = None,
        *,
        next_member: cluster_pb2.Peer | None = None,
        model_folder: str | None = None,
        **changes: Any,
    ) -> cluster_pb2.Assignment:
        """All units, from the model's file, unless told otherwise."""
        manifest = self.manifest
        assert manifest is not None
        assert self.model is not None
        span = range(len(manifest.units)) if units is None else units
        assignment = cluster_pb2.Assignment(
            epoch=epoch,
            model_digest=manifest.model_digest,
            spec=spec_to_proto(manifest.spec),
            units=[unit_to_proto(manifest.units[index]) for index in span],
            model_folder=str(self.model.parent) if model_folder is None else model_folder,
            model_files=[file_to_proto(file) for file in manifest.files],
            next=next_member or cluster_pb2.Peer(name="coordinator", addresses=[self.address]),
            num_kv_blocks=KV_BLOCKS,
            kv_block_tokens=KV_BLOCK_TOKENS,
            context_length=CONTEXT,
            max_batch_rows=MAX_ROWS,
            kv_key=KV_KEY,
            wire=parse_encoding(WIRE),
        )
        for name, value in changes.items():
            setattr(assignment, name, value)
        return assignment


class RingEdge:
    """The edge to the first shard, from the coordinator's side. Use `async with await RingEdge.open(...)`."""

    def __init__(self, channel: grpc.aio.Channel, call: Any) -> None:
        self._channel = channel
        self.call = call
        self.credits = 0

    @classmethod
    async def open(cls, shard: JoinedShard, epoch: int, receiver: str | None = None, cluster: str = CLUSTER) -> "RingEdge":
        """receiver: whom the edge is meant for, if it is another than the shard that is dialled."""
        edge = cls(await dial([shard.address], 5.0, "the shard"), None)
        edge.call = ring_pb2_grpc.RingServiceStub(edge._channel).Forward()
        try:
            opening = RingMember(cluster_hash(cluster), COORDINATOR_NAME, epoch).opening_to(
                shard.hello.name if receiver is None else receiver
            )
            await edge.call.write(ring_pb2.ForwardRequest(open=opening))
            response = await soon(next_message(edge.call))
            assert response is not None, await edge.call.code()
            edge.credits = response.accepted.credits
        except BaseException:
            await edge.close()
            raise
        return edge

    async def __aenter__(self) -> "RingEdge":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.call.cancel()
        await self._channel.close()

    async def send(self, batch: ring_pb2.MicroBatch) -> None:
        await soon(self.call.write(ring_pb2.ForwardRequest(micro_batch=batch)))

    async def next_refusal(self) -> ring_pb2.FrameRefused:
        while True:
            response: ring_pb2.ForwardResponse | None = await soon(next_message(self.call))
            assert response is not None, await self.call.code()
            if response.WhichOneof("message") == "refused":
                return response.refused

    async def status(self) -> grpc.StatusCode:
        """How the stream ends."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await soon(next_message(self.call)) is not None:
                pass
        return await soon(self.call.code())


class Frames:
    """Makes the frames of one greedy sequence."""

    def __init__(self, epoch: int, sequence_id: int = 1, **sampling: Any) -> None:
        self.epoch = epoch
        self.sequence_id = sequence_id
        self._sampling = ring_pb2.SamplingParams(**sampling)
        self._batch_ids = itertools.count(1)
        self._position = 0
        self._blocks = 0

    def set_back(self, num_rows: int) -> None:
        """The next rows take the place of these."""
        self._position -= num_rows

    def next(self, token_ids: list[int], *, sample: bool = True, **changes: Any) -> ring_pb2.MicroBatch:
        first, self._position = self._position, self._position + len(token_ids)
        needed = -(-self._position // KV_BLOCK_TOKENS)
        new_blocks, self._blocks = range(self._blocks, needed), needed
        part = ring_pb2.SequenceSlice(
            sequence_id=self.sequence_id, first_position=first, token_ids=token_ids, new_block_ids=new_blocks, num_samples=int(sample)
        )
        for name, value in changes.items():
            getattr(part, name).extend(value) if isinstance(value, list) else setattr(part, name, value)
        begins = []
        if first == 0:
            begins.append(ring_pb2.SequenceBegin(sequence_id=self.sequence_id, prompt_length=len(token_ids), sampling=self._sampling))
        return ring_pb2.MicroBatch(
            epoch=self.epoch, batch_id=next(self._batch_ids), encoding=parse_encoding(WIRE), begins=begins, slices=[part]
        )


async def greedy_tokens(edge: RingEdge, coordinator: FakeCoordinator, frames: Frames, prompt: list[int], count: int) -> list[int]:
    """`count` tokens after the prompt, one frame after the other."""
    tokens: list[int] = []
    pending = prompt
    while len(tokens) < count:
        await edge.send(frames.next(pending))
        result = await soon(coordinator.results.get())
        tokens.append(result.results[0].sampled[0].token_id)
        pending = [tokens[-1]]
    return tokens
