"""The edge to the next member of the ring: it is dialled once per epoch and carries every frame of the epoch.

Within an epoch a broken edge stays broken: whoever made the plan is told and makes another.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc
import grpc.aio

from dairllm.mesh.channels import error_from_rpc
from dairllm.mesh.checked_channels import REFUSED
from dairllm.mesh.errors import DairllmError, PeerUnreachable
from dairllm.mesh.peers import Peer
from dairllm.mesh.ring.codec import forward_request
from dairllm.mesh.ring.dialling import ANSWER_DEADLINE_S, EdgeDialler, ForwardCall
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult
from dairllm.mesh.ring.heartbeats import PeerSilent, Silence
from dairllm.mesh.streams import first_to_end, next_message
from dairllm.mesh.telemetry import fields
from dairllm.v1 import ring_pb2

QUEUE_FRAMES = 8
CONNECT_DEADLINE_S = 4.0
"""The coordinator counts the member as alive: if it can't be reached for so long, the link is at fault, and another plan may do without."""
READY_DEADLINE_S = 30.0
"""For the next member to be ready once a frame waits for it."""
_MOST_CREDITS = 1024

log = logging.getLogger(__name__)


class EdgeLost(PeerUnreachable):
    """The edge to the next member does not work any more.

    silent: it stood, but nothing came. is_refusal: the member has refused a frame, or answered, as cannot be.
    """

    def __init__(self, message: str, *, silent: bool = False, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.silent = silent
        self.is_refusal = is_refusal


class OutgoingEdge:
    """opening: what the next member is shown. queue_frames: how many frames may wait; 0 if who sends them bounds their number.

    connect_deadline_s: for the next member to answer at all. ready_deadline_s: for it to be ready, once somebody waits for the edge.
    sent: frames that were written to the next member.
    """

    def __init__(
        self,
        peer: Peer,
        opening: ring_pb2.EdgeOpen,
        *,
        queue_frames: int = QUEUE_FRAMES,
        connect_deadline_s: float = CONNECT_DEADLINE_S,
        ready_deadline_s: float = READY_DEADLINE_S,
    ) -> None:
        self._peer = peer
        self._epoch = opening.epoch
        self._dialler = EdgeDialler(peer, opening, connect_deadline_s, ready_deadline_s)
        self._frames: asyncio.Queue[ring_pb2.ForwardRequest] = asyncio.Queue(queue_frames)
        self._credits = asyncio.Semaphore(0)
        self._silence = Silence(peer.name)
        self.sent = 0

    @property
    def peer_name(self) -> str:
        return self._peer.name

    def hurry(self) -> None:
        """Somebody waits for the edge to open, also without a frame."""
        self._dialler.hurry()

    async def send(self, frame: MicroBatch | MicroBatchResult) -> int:
        """Its size in bytes. Waits while the queue is full, which is how the next member's pace reaches the members before."""
        request = forward_request(frame)
        await self._frames.put(request)
        self._dialler.hurry()
        return request.ByteSize()

    def post(self, frame: MicroBatch | MicroBatchResult) -> None:
        """As `send`, where the queue has no bound."""
        self._frames.put_nowait(forward_request(frame))
        self._dialler.hurry()

    async def run(self, on_open: Callable[[], None] | None = None) -> None:
        """Until cancelled. on_open is called when the next member has accepted. Raises EdgeLost."""
        async with AsyncExitStack() as stack:
            call = await self._open(stack)
            log.info("edge to the next member is open", extra=fields(peer=self._peer.name, epoch=self._epoch))
            if on_open is not None:
                on_open()
            # In this order the reader comes first: it knows the status, the writer only that it failed.
            await first_to_end(self._read(call), self._write(call), self._watch_silence())

    async def _open(self, stack: AsyncExitStack) -> ForwardCall:
        try:
            call, accepted = await self._dialler.open(stack)
        except DairllmError as error:
            raise EdgeLost(f"no edge to {self._peer.name}: {error}") from error
        self._grant(accepted.credits)
        self._silence.promised(accepted.heartbeat_interval_ms)
        return call

    async def _watch_silence(self) -> None:
        try:
            await self._silence.watch()
        except PeerSilent as error:
            raise EdgeLost(str(error), silent=True) from error

    async def _read(self, call: ForwardCall) -> None:
        try:
            while (response := await next_message(call)) is not None:
                self._silence.heard()
                self._take(response)
            code, details = await call.code(), await call.details()
        except grpc.aio.AioRpcError as error:
            raise EdgeLost(str(error_from_rpc(error, self._peer.name)), is_refusal=error.code() is REFUSED) from error
        raise EdgeLost(f"{self._peer.name} ended the stream ({code.name} {details or ''})")

    def _take(self, response: ring_pb2.ForwardResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "credit":
            self._grant(response.credit.frames)
        elif kind == "refused":
            status = ring_pb2.FrameStatus.Name(response.refused.status)
            words = f"{self._peer.name} refused frame {response.refused.batch_id} ({status}): {response.refused.message}"
            raise EdgeLost(words, is_refusal=response.refused.status == ring_pb2.FRAME_STATUS_MALFORMED)

    def _grant(self, frames: int) -> None:
        for _ in range(min(frames, _MOST_CREDITS)):
            self._credits.release()

    async def _write(self, call: ForwardCall) -> None:
        while True:
            await self._credits.acquire()
            request = await self._frames.get()
            try:
                await call.write(request)
                self.sent += 1
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                await asyncio.sleep(ANSWER_DEADLINE_S)  # the reader gets the reason first
                raise EdgeLost(f"{self._peer.name} takes no more frames") from error
