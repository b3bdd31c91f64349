"""The edge from the member before: credits, and streams that replace one another."""

import pytest

from dairllm.mesh.errors import Busy, DairllmError, WrongEpoch
from dairllm.shard_service.ring.incoming import IncomingEdge
from dairllm.v1 import ring_pb2


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
