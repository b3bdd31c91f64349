"""The edge from the predecessor in the ring: frames wait here, at most as many as the sender has credits for.

Frames stay in order over all streams of an epoch. A sender may send as many frames as it was granted; credits go back when frames are taken
off the queue. When a second stream of the epoch replaces the first, credits of the first are void, and frames that had arrived stay.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from dairllm.mesh.errors import Busy, DairllmError, PeerUnreachable
from dairllm.mesh.ring.credits import OwedCredits
from dairllm.v1 import ring_pb2

CAPACITY = 8


class IncomingStream:
    """The server's side of one Forward call: what it has to answer, collected without ever blocking who answers."""

    def __init__(self, sender: str, capacity: int) -> None:
        self.sender = sender
        self.granted = 0
        self._credits = OwedCredits(capacity)
        self._refusals: deque[ring_pb2.FrameRefused] = deque()
        self._work = asyncio.Event()
        self._end: DairllmError | None = None

    def return_credit(self) -> None:
        self.granted += 1
        self._credits.owe()
        if self._credits.is_due:
            self._work.set()

    def refuse(self, refusal: ring_pb2.FrameRefused) -> None:
        self._refusals.append(refusal)
        self._work.set()

    def end(self, error: DairllmError) -> None:
        self._end = error
        self._work.set()

    async def next_response(self) -> ring_pb2.ForwardResponse:
        """Waits for something to say. Raises the error that ends the stream, once everything else was said."""
        while True:
            if self._refusals:
                return ring_pb2.ForwardResponse(refused=self._refusals.popleft())
            if self._end is not None:
                raise self._end
            if self._credits.is_due:
                return ring_pb2.ForwardResponse(credit=ring_pb2.Credit(frames=self._credits.pay()))
            self._work.clear()
            await self._work.wait()


class QueuedFrame(NamedTuple):
    """arrived_s: by the event loop's clock. stream: where a refusal goes."""

    message: ring_pb2.MicroBatch
    arrived_s: float
    stream: IncomingStream


class IncomingEdge:
    """All streams of one epoch from the predecessor. received: frames so far.

    on_fault: is told of a sender that sends what cannot be, and of what it sent.
    """

    def __init__(self, capacity: int = CAPACITY, on_fault: Callable[[str, DairllmError], None] = lambda sender, error: None) -> None:
        self._on_fault = on_fault
        self._capacity = capacity
        self._queue: deque[QueuedFrame] = deque()
        self._stream: IncomingStream | None = None
        self._arrived = asyncio.Event()
        self._closed: DairllmError | None = None
        self.received = 0

    def open(self, sender: str) -> IncomingStream:
        """A new stream, which replaces the one before. `granted` is the number of credits to begin with."""
        if self._closed is not None:
            raise self._closed
        if self._stream is not None:
            self._stream.end(PeerUnreachable("another stream of the same epoch has replaced this one"))
        self._stream = IncomingStream(sender, self._capacity)
        self._stream.granted = self._capacity - len(self._queue)
        return self._stream

    def put(self, stream: IncomingStream, message: ring_pb2.MicroBatch, arrived_s: float) -> None:
        """Raises Busy when the sender has no credit."""
        if stream is not self._stream:
            return  # it was told so: nothing that it sends now counts
        if not stream.granted:
            raise Busy(f"{stream.sender!r} sent frame {message.batch_id} without a credit")
        stream.granted -= 1
        self.received += 1
        self._queue.append(QueuedFrame(message, arrived_s, stream))
        self._arrived.set()

    def accuse(self, stream: IncomingStream, error: DairllmError) -> None:
        """Nobody is accused for a stream that was replaced."""
        if stream is self._stream and self._closed is None:
            self._on_fault(stream.sender, error)

    async def take(self) -> QueuedFrame:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._queue.popleft()
        if self._stream is not None:
            self._stream.return_credit()
        return frame

    def close(self, error: DairllmError) -> None:
        """The epoch is over: the stream ends with this error, and so does every one that is opened later."""
        self._closed = error
        if self._stream is not None:
            self._stream.end(error)
