"""The coordinator's two edges of the ring: micro-batches go out to the first shard, results come in from the last."""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dairllm.mesh.errors import InvalidRequest, MalformedFrame, NotReady, WrongEpoch
from dairllm.mesh.peers import COORDINATOR_NAME, Peer
from dairllm.mesh.ring.codec import result_from_proto
from dairllm.mesh.ring.credits import OwedCredits
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult
from dairllm.mesh.ring.heartbeats import EdgeAnswers
from dairllm.mesh.ring.member import RingMember
from dairllm.mesh.ring.outgoing import EdgeLost, OutgoingEdge
from dairllm.mesh.streams import first_request
from dairllm.v1 import ring_pb2

RESULT_CREDITS = 64
"""Results are small and handled at once; the number of frames in flight is bounded by the scheduler."""

OPEN_DEADLINE_S = 30.0
FIRST_BATCH_ID = 0
"""Of the frame without rows that shows, before any other is sent, that the ring is whole and that every shard computes."""
_TOKENS_OF_WORK = 1024
"""A row behind so many others is about twice the work of a first one."""


class RingEnds(NamedTuple):
    """Names of the shards that the coordinator sends to, and that send to it."""

    first: str
    last: str


class _Watch(NamedTuple):
    """Whom the members of the open ring are reported to. at_fault: with a name, and what it did."""

    ends: RingEnds
    at_fault: Callable[[str, str], None]


class Ring:
    """At most one epoch at a time.

    on_result is called with every result of the open epoch. num_back: how many frames of it have come back, the first one included.
    """

    def __init__(self, cluster_hash: str, on_result: Callable[[MicroBatchResult], None]) -> None:
        self._on_result = on_result
        self._secret = secrets.token_bytes(32)
        self._closed = self._member = RingMember(cluster_hash, COORDINATOR_NAME, None)
        self._watch: _Watch | None = None
        self._edge: OutgoingEdge | None = None
        self._sender: asyncio.Task[None] | None = None
        self._receivers: set[asyncio.Task[None]] = set()
        self._has_ended = False
        self._opened: asyncio.Future[None] | None = None
        self._under_way: dict[int, float] = {}
        self.num_back = 0

    @property
    def epoch(self) -> int:
        """The open epoch; 0 while closed."""
        return self._member.epoch or 0

    @property
    def most_work(self) -> float:
        """Of the frames under way, in rows of a short sequence; 0 if none is."""
        return max(self._under_way.values(), default=0.0)

    def key_of(self, epoch: int) -> bytes:
        """What members of this epoch's ring show each other. Epochs of another run of the coordinator have other keys."""
        return hashlib.blake2b(epoch.to_bytes(8, "big"), key=self._secret, digest_size=16).digest()

    def kv_key_of(self, name: str, boot_id: str) -> bytes:
        """What is shown to this process of a shard by whoever fetches KV cache from it. Not of an epoch: its cache may be of several."""
        return hashlib.blake2b(f"{name}\n{boot_id}".encode(), key=self._secret, digest_size=16, person=b"kv").digest()

    async def open(
        self,
        epoch: int,
        wire: str,
        ends: RingEnds,
        addresses: Sequence[str],
        on_broken: Callable[[int, str], None],
        on_fault: Callable[[str, str], None] = lambda name, reason: None,
    ) -> None:
        """Dial the first shard at any of `addresses`, and wait until a frame has gone all the way round.

        on_broken is called at most once, with the epoch and a sentence, when the edge to the first shard fails later; nothing can be sent
        then until the next open(). on_fault is called with the name of a member that sends what cannot be, and with what it did.
        Raises PeerUnreachable, with the reason of the last try, after OPEN_DEADLINE_S.
        """
        await self.close()
        self._under_way, self.num_back = {}, 0
        self._member = replace(self._closed, epoch=epoch, ring_key=self.key_of(epoch))
        self._watch = _Watch(ends, on_fault)
        self._edge = OutgoingEdge(
            Peer(ends.first, tuple(addresses)),
            self._member.opening_to(ends.first),
            queue_frames=0,  # the scheduler bounds the number of frames in flight
            connect_deadline_s=OPEN_DEADLINE_S,
            ready_deadline_s=OPEN_DEADLINE_S,
        )
        self._edge.hurry()
        self._opened = opened = asyncio.get_running_loop().create_future()
        self._sender = asyncio.create_task(self._keep_edge(epoch, self._edge, opened, on_broken, on_fault), name=f"ring-{epoch}")
        self.send(MicroBatch(epoch, FIRST_BATCH_ID, wire, (), (), ()))
        await opened

    def shut(self) -> None:
        """From now on nothing is sent, and results of the epoch that was open are refused."""
        self._member = self._closed
        self._edge = None
        self._under_way = {}
        if self._sender is not None:
            self._sender.cancel()

    async def close(self) -> None:
        """Shut, and wait until the outgoing edge is gone."""
        self.shut()
        sender, self._sender = self._sender, None
        if sender is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await sender

    async def end(self) -> None:
        """Close for good. Who sends results is told, so that no stream holds up the end of the process."""
        self._has_ended = True
        for receiver in self._receivers:
            receiver.cancel()
        await self.close()

    def send(self, batch: MicroBatch) -> None:
        if self._edge is not None and batch.epoch == self.epoch:
            self._under_way[batch.batch_id] = _work_of(batch)
            self._edge.post(batch)

    async def _keep_edge(
        self,
        epoch: int,
        edge: OutgoingEdge,
        opened: asyncio.Future[None],
        on_broken: Callable[[int, str], None],
        on_fault: Callable[[str, str], None],
    ) -> None:
        try:
            await edge.run()
        except EdgeLost as error:
            if error.is_refusal and epoch == self.epoch:  # what the coordinator sends is right
                on_fault(edge.peer_name, f"does not take what the coordinator sends: {error}")
            if not opened.done():
                opened.set_exception(error)
            elif epoch == self.epoch:
                self._edge = None
                on_broken(epoch, str(error))

    async def receive(self, requests: AsyncIterator[ring_pb2.ForwardRequest], answers: EdgeAnswers) -> None:
        """Serve the edge from the last shard: RingService.Forward of the coordinator.

        Raises InvalidRequest, DeadlineExceeded, WrongCluster, WrongEpoch, MalformedFrame, NotReady once the ring has ended.
        """
        opening = (await first_request(requests, "open")).open
        self._member.require(opening)
        assert self._watch is not None, "a ring without members takes no results"
        last = self._watch.ends.last
        if opening.sender != last:
            raise WrongEpoch(f"{opening.sender!r} sends no results in epoch {opening.epoch}; {last!r} does")
        receiver = asyncio.create_task(self._receive_results(requests, answers, self._watch))
        self._receivers.add(receiver)
        try:
            await receiver
        except asyncio.CancelledError:
            if self._has_ended:
                raise NotReady("the coordinator is shutting down") from None
            raise
        finally:
            self._receivers.discard(receiver)

    async def _receive_results(self, requests: AsyncIterator[ring_pb2.ForwardRequest], answers: EdgeAnswers, watch: _Watch) -> None:
        await answers.accept(RESULT_CREDITS)
        credits = OwedCredits(RESULT_CREDITS)
        async with answers.beating():
            try:
                async for request in requests:
                    if request.WhichOneof("message") != "result":
                        raise MalformedFrame("the coordinator takes results only, and got a frame of another kind")
                    self._member.require_epoch(request.result.epoch)
                    self._take(result_from_proto(request.result))
                    credits.owe()
                    if credits.is_due:
                        await answers.write(ring_pb2.ForwardResponse(credit=ring_pb2.Credit(frames=credits.pay())))
            except (InvalidRequest, MalformedFrame) as error:
                watch.at_fault(watch.ends.last, f"sent what cannot be: {error}")
                raise

    def _take(self, result: MicroBatchResult) -> None:
        if self._under_way.pop(result.batch_id, None) is not None:
            self.num_back += 1
        if result.batch_id != FIRST_BATCH_ID:
            self._on_result(result)
        elif self._opened is not None and not self._opened.done():
            self._opened.set_result(None)


def _work_of(batch: MicroBatch) -> float:
    return max(1.0, sum(slice_.num_rows * (1 + slice_.end_position / _TOKENS_OF_WORK) for slice_ in batch.slices))
