"""The edge from the member before: credits, and streams that replace one another."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest

from dairllm.mesh.channels import bind, create_server, open_channel
from dairllm.mesh.errors import Busy, DairllmError, MalformedFrame, WrongEpoch
from dairllm.mesh.peers import COORDINATOR_NAME, Peer
from dairllm.mesh.ring.member import RingMember
from dairllm.mesh.ring.outgoing import OutgoingEdge
from dairllm.mesh.streams import next_message
from dairllm.shard_service.epochs.counters import Counters
from dairllm.shard_service.epochs.epoch_run import EpochRun
from dairllm.shard_service.ring.incoming import IncomingEdge
from dairllm.shard_service.servicers import RingServicer
from dairllm.v1 import ring_pb2, ring_pb2_grpc


def batch(number: int) -> ring_pb2.MicroBatch:
    return ring_pb2.MicroBatch(epoch=1, batch_id=number)


async def test_credits_come_back_as_frames_are_taken() -> None:
    edge = IncomingEdge(capacity=2)
    stream = edge.open("a")
    assert stream.granted == 2
    edge.put(stream, batch(1), 0.0)
    edge.put(stream, batch(2), 0.0)
    with pytest.raises(Busy, match="frame 3"):
        edge.put(stream, batch(3), 0.0)
    assert (await edge.take()).message.batch_id == 1
    assert (await stream.next_response()).credit.frames == 1
    edge.put(stream, batch(3), 0.0)
    assert [(await edge.take()).message.batch_id for _ in range(2)] == [2, 3]


async def test_credits_come_back_half_of_them_at_once() -> None:
    edge = IncomingEdge(capacity=8)
    stream = edge.open("a")
    for number in range(4):
        edge.put(stream, batch(number), 0.0)
    for _ in range(3):
        await edge.take()
    response = asyncio.ensure_future(stream.next_response())
    await asyncio.sleep(0)
    assert not response.done()
    await edge.take()
    assert (await response).credit.frames == 4


async def test_a_second_stream_gets_the_room_that_is_left() -> None:
    edge = IncomingEdge(capacity=2)
    first = edge.open("a")
    edge.put(first, batch(1), 0.0)
    second = edge.open("a")
    assert second.granted == 1
    with pytest.raises(DairllmError, match="replaced"):
        await first.next_response()
    edge.put(first, batch(99), 0.0)
    edge.put(second, batch(2), 0.0)
    assert [(await edge.take()).message.batch_id for _ in range(2)] == [1, 2]
    assert (await second.next_response()).credit.frames == 2


async def test_a_closed_edge_says_why() -> None:
    edge = IncomingEdge()
    stream = edge.open("a")
    stream.refuse(ring_pb2.FrameRefused(batch_id=5))
    edge.close(WrongEpoch("over"))
    assert (await stream.next_response()).refused.batch_id == 5
    with pytest.raises(WrongEpoch):
        await stream.next_response()
    with pytest.raises(WrongEpoch):
        edge.open("a")


class Host:
    """All of a StageHost that the servicer needs."""

    def __init__(self, edge: IncomingEdge) -> None:
        self.edge = edge

    def incoming(self, opening: ring_pb2.EdgeOpen) -> IncomingEdge:
        return self.edge


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([ring_pb2.ForwardRequest(micro_batch=ring_pb2.MicroBatch(epoch=2**63))], "MicroBatch.epoch is 9223372036854775808; expected"),
        ([ring_pb2.ForwardRequest(result=ring_pb2.MicroBatchResult(epoch=1))], "a shard takes micro-batches; got result"),
        ([ring_pb2.ForwardRequest(micro_batch=batch(number)) for number in (1, 2)], "'b' sent frame 2 without a credit"),
    ],
)
async def test_a_sender_of_what_cannot_be_is_told_on(requests: list[ring_pb2.ForwardRequest], words: str) -> None:
    accused: list[tuple[str, str]] = []
    edge = IncomingEdge(1, lambda sender, error: accused.append((sender, str(error))))
    server = create_server()
    ring_pb2_grpc.add_RingServiceServicer_to_server(RingServicer(Host(edge)), server)  # type: ignore[arg-type]
    port = await bind(server, "127.0.0.1", 0, "a ring")
    await server.start()
    async with asyncio.timeout(20), open_channel(f"127.0.0.1:{port}") as channel:
        call = ring_pb2_grpc.RingServiceStub(channel).Forward()
        for request in [ring_pb2.ForwardRequest(open=ring_pb2.EdgeOpen(sender="b")), *requests]:
            await call.write(request)
        with pytest.raises(grpc.aio.AioRpcError):
            await read_to_end(call)
    await server.stop(None)
    assert [(sender, words in error) for sender, error in accused] == [("b", True)]


async def read_to_end(call: Any) -> None:
    while await next_message(call) is not None:
        pass


class Refusing:
    """A stage that refuses every frame. error: with what."""

    def __init__(self, error: DairllmError) -> None:
        self.error = error

    def compute(self, frame: object, queue_us: int) -> object:
        raise self.error


@pytest.mark.parametrize(
    ("sender", "error", "is_accused"),
    [
        ("b", MalformedFrame("no rows"), True),
        ("b", DairllmError("the kernels refused the frame"), False),
        (COORDINATOR_NAME, MalformedFrame("no rows"), False),
    ],
)
async def test_the_member_before_is_accused_once_of_frames_that_cannot_be(sender: str, error: DairllmError, is_accused: bool) -> None:
    """Not of what went wrong here; and the coordinator knows itself what it sends."""
    accused: list[tuple[str, DairllmError]] = []
    assignment = SimpleNamespace(epoch=1, next=Peer("c", ()))
    opening = RingMember("", "a", 1).opening_to("c")
    with ThreadPoolExecutor(1) as thread:
        run = EpochRun(
            assignment,  # type: ignore[arg-type]
            Refusing(error),  # type: ignore[arg-type]
            OutgoingEdge(assignment.next, opening, connect_deadline_s=30.0),
            thread,
            Counters(),
            lambda assignment, why: None,
            lambda assignment, sender, error: accused.append((sender, error)),
        )
        run.start()
        stream = run.incoming.open(sender)
        for number in (1, 2):
            frame = batch(number)
            frame.encoding = ring_pb2.MicroBatch(encoding="ENCODING_F32").encoding
            run.incoming.put(stream, frame, 0.0)
        refused: list[int] = []
        async with asyncio.timeout(20):
            while len(refused) < 2:
                response = await stream.next_response()
                refused += [response.refused.batch_id] if response.WhichOneof("message") == "refused" else []
        run.stop(error)
        await run.ended()
    assert refused == [1, 2]
    assert accused == ([(sender, error)] if is_accused else [])
