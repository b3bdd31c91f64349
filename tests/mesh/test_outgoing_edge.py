"""The edge to the next member: dialling one that is not ready yet, credits, silence, and what it ends with."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dairllm.mesh.channels import bind, create_server
from dairllm.mesh.errors import WrongEpoch
from dairllm.mesh.peers import Peer
from dairllm.mesh.ring.frames import MicroBatch
from dairllm.mesh.ring.heartbeats import EdgeAnswers
from dairllm.mesh.ring.outgoing import READY_DEADLINE_S, EdgeLost, OutgoingEdge
from dairllm.v1 import ring_pb2, ring_pb2_grpc
from tests.instruments.tcp_proxy import TcpProxy


def batch(number: int) -> MicroBatch:
    return MicroBatch(epoch=1, batch_id=number, encoding="F32", begins=(), slices=(), ends=())


class NextMember(ring_pb2_grpc.RingServiceServicer):
    """Not ready for its first `not_ready` streams; then it takes frames, and answers the first with `answer`. heartbeat_s: 0 for none."""

    def __init__(self, not_ready: int = 0, answer: ring_pb2.ForwardResponse | None = None, heartbeat_s: float = 0.0) -> None:
        self.not_ready = not_ready
        self.heartbeat_s = heartbeat_s
        self.answer = answer
        self.openings: list[ring_pb2.EdgeOpen] = []
        self.frames: asyncio.Queue[ring_pb2.MicroBatch] = asyncio.Queue()

    async def Forward(self, requests: AsyncIterator[ring_pb2.ForwardRequest], context: Any) -> None:
        self.openings.append((await anext(aiter(requests))).open)
        if len(self.openings) <= self.not_ready:
            raise WrongEpoch("not ready yet")
        answers = EdgeAnswers(context, self.heartbeat_s)
        await answers.accept(1)
        async with answers.beating() if self.heartbeat_s else contextlib.nullcontext():
            async for request in requests:
                self.frames.put_nowait(request.micro_batch)
                if self.answer is not None:
                    await answers.write(self.answer)


class Running:
    """A NextMember on a port, and an edge to it that runs, through `proxy`."""

    def __init__(self, member: NextMember, ready_deadline_s: float = READY_DEADLINE_S) -> None:
        self._member = member
        self._ready_deadline_s = ready_deadline_s
        self._server = create_server()

    async def __aenter__(self) -> "Running":
        ring_pb2_grpc.add_RingServiceServicer_to_server(self._member, self._server)
        port = await bind(self._server, "127.0.0.1", 0, "the next member")
        await self._server.start()
        self.proxy = TcpProxy("127.0.0.1", port)
        await self.proxy.listen()
        opening = ring_pb2.EdgeOpen(epoch=1, sender="a", receiver="b")
        self.edge = OutgoingEdge(Peer("b", ("127.0.0.1:9", self.proxy.address)), opening, ready_deadline_s=self._ready_deadline_s)
        self.task = asyncio.create_task(self.edge.run())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.proxy.__aexit__(None, None, None)
        await self._server.stop(None)

    async def send(self, number: int) -> None:
        await self.edge.send(batch(number))


async def test_waits_until_the_next_member_is_ready() -> None:
    member = NextMember(not_ready=3)
    async with Running(member) as running, asyncio.timeout(10):
        await running.send(1)
        assert (await member.frames.get()).batch_id == 1
    assert len(member.openings) == 4


async def test_gives_up_when_a_frame_has_waited_long_enough() -> None:
    async with Running(NextMember(not_ready=10**6), ready_deadline_s=0.3) as running, asyncio.timeout(10):
        done, _ = await asyncio.wait({running.task}, timeout=0.6)
        assert not done, "nothing waits, so nothing is late"
        await running.send(1)
        with pytest.raises(EdgeLost, match="not ready yet"):
            await running.task


async def test_gives_up_without_a_frame_too_if_somebody_waits() -> None:
    async with Running(NextMember(not_ready=10**6), ready_deadline_s=0.3) as running, asyncio.timeout(10):
        running.edge.hurry()
        with pytest.raises(EdgeLost, match="not ready yet"):
            await running.task


async def test_says_when_it_is_open() -> None:
    member, opened = NextMember(not_ready=1), asyncio.Event()
    async with Running(member) as running, asyncio.timeout(10):
        running.task.cancel()
        edge = OutgoingEdge(Peer("b", (running.proxy.address,)), ring_pb2.EdgeOpen(epoch=1, sender="a", receiver="b"))
        task = asyncio.create_task(edge.run(opened.set))
        await opened.wait()
        assert len(member.openings) >= 2, "it was refused before"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_gives_up_on_a_member_that_does_not_answer() -> None:
    edge = OutgoingEdge(Peer("b", ("127.0.0.1:9",)), ring_pb2.EdgeOpen(), connect_deadline_s=0.3)
    with pytest.raises(EdgeLost, match="does not answer"):
        await asyncio.wait_for(edge.run(), 10)


async def test_sends_no_more_than_it_has_credits_for() -> None:
    member = NextMember()
    async with Running(member) as running, asyncio.timeout(10):
        for number in range(3):
            await running.send(number)
        assert (await member.frames.get()).batch_id == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(member.frames.get(), 0.2)


async def test_a_refused_frame_ends_the_edge_with_its_reason() -> None:
    refused = ring_pb2.FrameRefused(batch_id=7, status=ring_pb2.FRAME_STATUS_MALFORMED, message="too long")
    async with Running(NextMember(answer=ring_pb2.ForwardResponse(refused=refused))) as running, asyncio.timeout(10):
        await running.send(7)
        with pytest.raises(EdgeLost, match="too long"):
            await running.task


HEARTBEAT_S = 0.05
LIMIT_S = 4.5 * HEARTBEAT_S


async def test_a_cable_that_swallows_everything_is_noticed_by_its_silence() -> None:
    member = NextMember(heartbeat_s=HEARTBEAT_S)
    async with Running(member) as running, asyncio.timeout(10):
        await running.send(1)
        await member.frames.get()
        done, _ = await asyncio.wait({running.task}, timeout=3 * LIMIT_S)
        assert not done, "heartbeats come, though there is nothing to say"
        running.proxy.black_hole()
        with pytest.raises(EdgeLost, match=r"the edge is silent: nothing was heard of b for 0\.225 s"):
            await running.task


async def test_credits_are_signs_of_life_too() -> None:
    """Of a member whose heartbeats are far apart; what it is silent for in between is no matter."""
    member = NextMember(heartbeat_s=10 * HEARTBEAT_S, answer=ring_pb2.ForwardResponse(credit=ring_pb2.Credit(frames=1)))
    async with Running(member) as running, asyncio.timeout(10):
        for number in range(5):
            await running.send(number)
            assert (await member.frames.get()).batch_id == number
            done, _ = await asyncio.wait({running.task}, timeout=LIMIT_S)
            assert not done


async def test_silence_of_a_member_that_promises_no_heartbeats_means_nothing() -> None:
    member = NextMember()
    async with Running(member) as running, asyncio.timeout(10):
        await running.send(1)
        await member.frames.get()
        done, _ = await asyncio.wait({running.task}, timeout=4 * LIMIT_S)
        assert not done


async def test_nobody_is_blamed_for_a_standstill_of_this_process() -> None:
    member = NextMember(heartbeat_s=HEARTBEAT_S)
    async with Running(member) as running, asyncio.timeout(10):
        await running.send(1)
        await member.frames.get()
        for _ in range(3):
            time.sleep(3 * LIMIT_S)  # the whole loop stands still, and with it both ends
            done, _ = await asyncio.wait({running.task}, timeout=HEARTBEAT_S)
            assert not done
        await running.send(2)


async def test_an_address_that_swallows_everything_does_not_hold_up_another() -> None:
    """Not even while the member is not ready yet."""
    member = NextMember(not_ready=2)
    async with Running(member) as running, TcpProxy("127.0.0.1", 9) as hole, asyncio.timeout(10):
        hole.black_hole()
        running.task.cancel()
        peer = Peer("b", (hole.address, running.proxy.address))
        edge = OutgoingEdge(peer, ring_pb2.EdgeOpen(epoch=1, sender="a", receiver="b"))
        began_s, task = time.monotonic(), asyncio.create_task(edge.run())
        await edge.send(batch(7))
        while (await member.frames.get()).batch_id != 7:
            pass
        assert time.monotonic() - began_s < 3.0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_member_that_can_not_be_reached_is_given_up_in_time_however_many_addresses_it_has() -> None:
    async with contextlib.AsyncExitStack() as stack:
        holes = [await stack.enter_async_context(TcpProxy("127.0.0.1", 9)) for _ in range(4)]
        for hole in holes:
            hole.black_hole()
        peer = Peer("b", tuple(hole.address for hole in holes))
        began_s = time.monotonic()
        with pytest.raises(EdgeLost, match="no edge to b: b does not answer at"):
            await asyncio.wait_for(OutgoingEdge(peer, ring_pb2.EdgeOpen(), connect_deadline_s=1.5).run(), 10)
        assert 1.4 < time.monotonic() - began_s < 3.0
