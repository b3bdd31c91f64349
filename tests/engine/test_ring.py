"""The coordinator's two edges of the ring over real sockets: what is refused, and that silence is noticed at either."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from dairllm.coordinator.ring import RESULT_CREDITS, Ring, RingEnds
from dairllm.coordinator.services.ring_servicer import ResultsServicer
from dairllm.mesh.channels import bind, create_server, dial, error_from_rpc
from dairllm.mesh.errors import PeerUnreachable, WrongEpoch
from dairllm.mesh.peers import Peer
from dairllm.mesh.ring import heartbeats as edge_heartbeats
from dairllm.mesh.ring.codec import micro_batch_from_proto
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, RingId, SequenceSlice
from dairllm.mesh.ring.heartbeats import EdgeAnswers
from dairllm.mesh.ring.member import RingMember
from dairllm.mesh.ring.outgoing import OutgoingEdge
from dairllm.mesh.streams import next_message
from dairllm.v1 import ring_pb2, ring_pb2_grpc
from tests.instruments.tcp_proxy import TcpProxy

HEARTBEAT_S = 0.05
CLUSTER_HASH = "0123456789abcdef"
ENDS = RingEnds("a", "a")


class FirstShard(ring_pb2_grpc.RingServiceServicer):
    """Accepts every edge. heartbeat_s: 0 for a shard that sends none. pass_on: what it does with a frame; refuses: it refuses all but the
    first."""

    def __init__(self, heartbeat_s: float, pass_on: Callable[[MicroBatch], Awaitable[None]]) -> None:
        self.heartbeat_s = heartbeat_s
        self._pass_on = pass_on
        self.refuses = False

    async def Forward(self, requests: AsyncIterator[ring_pb2.ForwardRequest], context: Any) -> None:
        assert (await anext(aiter(requests))).open.receiver == "a"
        answers = EdgeAnswers(context, self.heartbeat_s)
        await answers.accept(8)
        async with answers.beating() if self.heartbeat_s else contextlib.nullcontext():
            async for request in requests:
                if self.refuses and request.micro_batch.batch_id:
                    words = {"status": "FRAME_STATUS_MALFORMED", "message": "no"}
                    refused = ring_pb2.FrameRefused(epoch=1, batch_id=request.micro_batch.batch_id, **words)
                    await answers.write(ring_pb2.ForwardResponse(refused=refused))
                    continue
                await self._pass_on(micro_batch_from_proto(request.micro_batch))


class Site:
    """A ring, a server for its incoming edge, and a first shard behind a proxy."""

    def __init__(self, heartbeat_s: float) -> None:
        self.completed: list[MicroBatchResult] = []
        self.faults: list[tuple[str, str]] = []
        self.broken: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self.ring = Ring(CLUSTER_HASH, lambda result: self.completed.append(result))
        self._stack = contextlib.AsyncExitStack()
        self.first_shard = FirstShard(heartbeat_s, self._pass_on)
        self._edges: set[asyncio.Task[None]] = set()
        self.is_whole = True

    async def __aenter__(self) -> "Site":
        self.port = await self._serve(ResultsServicer(self.ring))
        self.proxy = await self._stack.enter_async_context(TcpProxy("127.0.0.1", await self._serve(self.first_shard)))
        self._stack.push_async_callback(self.ring.close)
        return self

    async def __aexit__(self, *exception: object) -> None:
        for edge in self._edges:
            edge.cancel()
        await asyncio.gather(*self._edges, return_exceptions=True)
        await self._stack.aclose()

    async def _pass_on(self, batch: MicroBatch) -> None:
        """The first shard is the last one, too; nothing comes back if the ring is not whole."""
        if self.is_whole:
            member = RingMember(CLUSTER_HASH, "a", batch.epoch, self.ring.key_of(batch.epoch))
            edge = OutgoingEdge(Peer("coordinator", (f"127.0.0.1:{self.port}",)), member.opening_to("coordinator"))
            self._edges.add(asyncio.create_task(edge.run()))
            await edge.send(MicroBatchResult(batch.epoch, batch.batch_id, (), ()))

    async def _serve(self, servicer: ring_pb2_grpc.RingServiceServicer) -> int:
        server = create_server()
        ring_pb2_grpc.add_RingServiceServicer_to_server(servicer, server)
        port = await bind(server, "127.0.0.1", 0, "a ring")
        await server.start()
        self._stack.push_async_callback(server.stop, None)
        return port

    async def open(self, epoch: int = 1) -> None:
        async with asyncio.timeout(30):
            at, broken = [self.proxy.address], self.broken
            await self.ring.open(epoch, "f32", ENDS, at, lambda *why: broken.put_nowait(why), lambda *what: self.faults.append(what))

    @contextlib.asynccontextmanager
    async def last_shard(self, epoch: int = 1, key: bytes | None = None, sender: str = "a") -> AsyncIterator[Any]:
        """The stream of the last shard, which has sent its opening."""
        async with asyncio.timeout(10), await dial([f"127.0.0.1:{self.port}"], 5.0, "the coordinator") as channel:
            call = ring_pb2_grpc.RingServiceStub(channel).Forward()
            shown = self.ring.key_of(epoch) if key is None else key
            opening = ring_pb2.EdgeOpen(cluster_hash=CLUSTER_HASH, epoch=epoch, sender=sender, receiver="coordinator", ring_key=shown)
            await call.write(ring_pb2.ForwardRequest(open=opening))
            yield call
            call.cancel()


async def test_a_silent_edge_to_the_first_shard_breaks_the_ring() -> None:
    async with Site(HEARTBEAT_S) as site, asyncio.timeout(60):
        await site.open()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(site.broken.get(), 10 * HEARTBEAT_S)
        site.proxy.black_hole()
        epoch, why = await site.broken.get()
        assert (epoch, why) == (1, "the edge is silent: nothing was heard of a for 0.225 s, though the connection stands")


async def test_a_first_shard_without_heartbeats_is_not_judged_by_its_silence() -> None:
    async with Site(0.0) as site:
        await site.open()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(site.broken.get(), 10 * HEARTBEAT_S)


async def test_an_end_of_the_stream_breaks_the_ring_at_once() -> None:
    async with Site(HEARTBEAT_S) as site, asyncio.timeout(10):
        await site.open()
        site.proxy.cut()
        assert (await site.broken.get())[0] == 1


async def test_a_ring_that_is_closed_says_nothing() -> None:
    async with Site(HEARTBEAT_S) as site:
        await site.open()
        await site.ring.close()
        site.proxy.black_hole()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(site.broken.get(), 10 * HEARTBEAT_S)


async def test_the_last_shard_hears_of_the_coordinator_also_while_it_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_heartbeats.EdgeAnswers.__init__, "__defaults__", (HEARTBEAT_S,))
    async with Site(HEARTBEAT_S) as site:
        await site.open()
        async with site.last_shard() as call:
            accepted = (await call.read()).accepted
            assert (accepted.credits, accepted.heartbeat_interval_ms) == (RESULT_CREDITS, 50)
            assert [(await call.read()).WhichOneof("message") for _ in range(3)] == ["heartbeat"] * 3
            numbers = range(1, RESULT_CREDITS // 2 + 1)
            for number in numbers:
                await call.write(ring_pb2.ForwardRequest(result=ring_pb2.MicroBatchResult(epoch=1, batch_id=number)))
            while (response := await call.read()).WhichOneof("message") == "heartbeat":
                pass
            assert response.credit.frames == len(numbers)
            assert [result.batch_id for result in site.completed] == list(numbers)


async def test_the_default_interval_is_that_of_a_lease() -> None:
    async with Site(HEARTBEAT_S) as site:
        await site.open()
        async with site.last_shard() as call:
            assert (await call.read()).accepted.heartbeat_interval_ms == 1000


@pytest.mark.parametrize(("epoch", "key"), [(2, None), (1, b""), (1, bytes(16))])
async def test_an_edge_of_another_epoch_or_without_its_key_is_refused(epoch: int, key: bytes | None) -> None:
    async with Site(HEARTBEAT_S) as site:
        await site.open()
        async with site.last_shard(epoch, key) as call:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            assert type(error_from_rpc(raised.value)) is WrongEpoch


async def test_an_address_that_swallows_everything_does_not_hold_up_another() -> None:
    async with Site(HEARTBEAT_S) as site, TcpProxy("127.0.0.1", 9) as hole, asyncio.timeout(5):
        hole.black_hole()
        await site.ring.open(1, "f32", ENDS, [hole.address, site.proxy.address], lambda *why: None)
        assert site.ring.epoch == 1


async def test_a_ring_is_open_only_once_a_frame_has_gone_all_the_way_round() -> None:
    async with Site(HEARTBEAT_S) as site:
        site.is_whole = False
        opening = asyncio.create_task(site.open())
        while not site.ring.most_work:
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(opening), 10 * HEARTBEAT_S)
        assert (site.ring.num_back, site.ring.most_work) == (0, 1.0)
        site.proxy.cut()
        with pytest.raises(PeerUnreachable):
            await opening
        site.is_whole = True
        await site.open(2)
        assert (site.ring.num_back, site.ring.most_work) == (1, 0.0)
        assert (site.broken.empty(), site.completed) == (True, [])


async def test_a_long_prompt_is_more_work_than_a_token() -> None:
    async with Site(HEARTBEAT_S) as site:
        await site.open()
        for batch_id, (first, count) in enumerate([(0, 1), (1024, 512)], 1):
            slices = (SequenceSlice(RingId(batch_id), first, (7,) * count, (), num_samples=0),)
            site.ring.send(MicroBatch(1, batch_id, "f32", (), slices, ()))
        assert site.ring.most_work == 512 * 2.5
        await site.ring.close()
        assert site.ring.most_work == 0.0


async def test_a_first_shard_that_is_nowhere_is_an_error() -> None:
    async with Site(HEARTBEAT_S) as site:
        with pytest.raises(PeerUnreachable):
            await asyncio.wait_for(_open_nowhere(site.ring), 10)


async def _open_nowhere(ring: Ring) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dairllm.coordinator.ring.OPEN_DEADLINE_S", 0.3)
        await ring.open(1, "f32", ENDS, ["127.0.0.1:9"], lambda *why: None)


def test_keys_of_caches_differ_by_shard_process_and_run() -> None:
    rings = [Ring(CLUSTER_HASH, lambda result: None) for _ in range(2)]
    keys = [ring.kv_key_of(name, boot) for ring in rings for name in ("a", "b") for boot in ("1", "2")]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & {ring.key_of(epoch) for ring in rings for epoch in range(100)}
    assert rings[0].kv_key_of("a", "1") == keys[0]


async def test_who_sends_results_is_told_that_the_coordinator_ends() -> None:
    async with Site(HEARTBEAT_S) as site:
        await site.open()
        async with site.last_shard() as call:
            assert (await call.read()).WhichOneof("message") == "accepted"
            await site.ring.end()
            with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as caught:
                await _read_to_end(call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def _read_to_end(call: Any) -> None:
    while await next_message(call) is not None:
        pass


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            ring_pb2.ForwardRequest(result=ring_pb2.MicroBatchResult(epoch=1, batch_id=2**60)),
            "MicroBatchResult.batch_id is 1152921504606846976;",
        ),
        (ring_pb2.ForwardRequest(micro_batch=ring_pb2.MicroBatch(epoch=1)), "a frame of another kind"),
        (
            ring_pb2.ForwardRequest(
                result=ring_pb2.MicroBatchResult(
                    epoch=1, results=[ring_pb2.SequenceResult(sampled=[ring_pb2.TokenLogprobs(token_id=2**31)])]
                )
            ),
            "TokenLogprobs.token_id is 2147483648; expected",
        ),
    ],
)
async def test_a_last_shard_that_sends_what_cannot_be_is_named(request_: ring_pb2.ForwardRequest, words: str) -> None:
    async with Site(HEARTBEAT_S) as site:
        await site.open()
        async with site.last_shard() as call:
            await call.read()
            await call.write(request_)
            with pytest.raises(grpc.aio.AioRpcError):
                await _read_to_end(call)
        assert [(name, words in what) for name, what in site.faults] == [("a", True)]
        assert site.completed == []


async def test_results_of_another_member_than_the_last_are_refused() -> None:
    async with Site(HEARTBEAT_S) as site:
        await site.open()
        async with site.last_shard(sender="b") as call:
            with pytest.raises(grpc.aio.AioRpcError, match="'b' sends no results in epoch 1; 'a' does"):
                await call.read()
        assert site.faults == []


async def test_a_first_shard_that_refuses_what_is_right_is_named() -> None:
    async with Site(HEARTBEAT_S) as site, asyncio.timeout(10):
        await site.open()
        site.first_shard.refuses = True
        site.ring.send(MicroBatch(1, 7, "F32", (), (), ()))
        epoch, why = await site.broken.get()
        assert (epoch, site.faults) == (1, [("a", f"does not take what the coordinator sends: {why}")])
        assert why == "a refused frame 7 (FRAME_STATUS_MALFORMED): no"
