"""The edge to the next member of the ring: it is dialled once per epoch and carries every frame of the epoch.

The next member may still be loading: as long as it answers that it is not ready, it is asked again, with a limit only once a frame waits.
Within an epoch a broken edge stays broken: whoever made the plan is told and makes another.
"""

import asyncio
import logging
from contextlib import AsyncExitStack, aclosing, suppress
from typing import TypeAlias

import grpc
import grpc.aio

from dairllm.mesh.channels import dial_each, error_from_rpc
from dairllm.mesh.errors import DairllmError, PeerUnreachable, WrongEpoch
from dairllm.mesh.ring.heartbeats import PeerSilent, Silence
from dairllm.mesh.telemetry import fields
from dairllm.shard_service.assignment import PeerFacts
from dairllm.v1 import ring_pb2, ring_pb2_grpc

QUEUE_FRAMES = 8
CONNECT_DEADLINE_S = 4.0
"""The coordinator counts the member as alive: if it can't be reached for so long, the link is at fault, and another plan may do without."""
READY_DEADLINE_S = 30.0
"""For the next member to be ready once a frame waits for it."""
_ANSWER_DEADLINE_S = 3.0
_FIRST_DIAL_S = 1.0
"""Doubles with every round over the addresses: one that swallows everything must not hold up another where the member is not ready yet."""
_RETRY_S = 0.05
_LONGEST_RETRY_S = 0.5
_MOST_CREDITS = 1024

ForwardCall: TypeAlias = "grpc.aio.StreamStreamCall[ring_pb2.ForwardRequest, ring_pb2.ForwardResponse]"

log = logging.getLogger(__name__)


class EdgeLost(DairllmError):
    """The edge to the next member does not work any more, or the member has refused a frame. silent: it stood, but nothing came."""

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class OutgoingEdge:
    def __init__(
        self,
        peer: PeerFacts,
        opening: ring_pb2.EdgeOpen,
        *,
        connect_deadline_s: float = CONNECT_DEADLINE_S,
        ready_deadline_s: float = READY_DEADLINE_S,
    ) -> None:
        self._peer = peer
        self._opening = opening
        self._connect_deadline_s = connect_deadline_s
        self._ready_deadline_s = ready_deadline_s
        self._frames: asyncio.Queue[ring_pb2.ForwardRequest] = asyncio.Queue(QUEUE_FRAMES)
        self._frame_waits = asyncio.Event()
        self._credits = asyncio.Semaphore(0)
        self._silence = Silence(peer.name)
        self.sent_bytes = 0

    async def send(self, request: ring_pb2.ForwardRequest) -> None:
        """Waits while the queue is full, which is how the next member's pace reaches the members before."""
        await self._frames.put(request)
        self._frame_waits.set()

    async def run(self) -> None:
        """Until cancelled. Raises EdgeLost."""
        async with AsyncExitStack() as stack:
            call = await self._open(stack)
            log.info("edge to the next member is open", extra=fields(peer=self._peer.name, epoch=self._opening.epoch))
            # In this order the reader comes first: it knows the status, the writer only that it failed.
            tasks = [asyncio.create_task(work) for work in (self._read(call), self._write(call), self._watch_silence())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in tasks:
                if task in done:
                    task.result()

    async def _watch_silence(self) -> None:
        try:
            await self._silence.watch()
        except PeerSilent as error:
            raise EdgeLost(str(error), silent=True) from error

    async def _read(self, call: ForwardCall) -> None:
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                self._silence.heard()
                self._take(response)
            code, details = await call.code(), await call.details()
        except grpc.aio.AioRpcError as error:
            raise EdgeLost(str(error_from_rpc(error, self._peer.name))) from error
        raise EdgeLost(f"{self._peer.name} ended the stream ({code.name} {details or ''})")

    def _take(self, response: ring_pb2.ForwardResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "credit":
            self._grant(response.credit.frames)
        elif kind == "refused":
            status = ring_pb2.FrameStatus.Name(response.refused.status)
            raise EdgeLost(f"{self._peer.name} refused frame {response.refused.batch_id} ({status}): {response.refused.message}")

    def _grant(self, frames: int) -> None:
        for _ in range(min(frames, _MOST_CREDITS)):
            self._credits.release()

    async def _write(self, call: ForwardCall) -> None:
        while True:
            await self._credits.acquire()
            request = await self._frames.get()
            try:
                await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                await asyncio.sleep(_ANSWER_DEADLINE_S)  # the reader gets the reason first
                raise EdgeLost(f"{self._peer.name} takes no more frames") from error
            self.sent_bytes += request.ByteSize()

    # Opening.

    async def _open(self, stack: AsyncExitStack) -> ForwardCall:
        loop = asyncio.get_running_loop()
        addresses = list(self._peer.addresses)
        unreachable_since_s, waiting_since_s = loop.time(), None
        pause_s, dial_s = _RETRY_S, _FIRST_DIAL_S
        while True:
            left_s = unreachable_since_s + self._connect_deadline_s - loop.time()
            error = await self._try_addresses(stack, addresses, min(dial_s, max(left_s, _RETRY_S)))
            if not isinstance(error, DairllmError):
                return error
            now_s = loop.time()
            if isinstance(error, WrongEpoch):
                unreachable_since_s = now_s
            if self._frame_waits.is_set() and waiting_since_s is None:
                waiting_since_s = now_s
            if now_s - unreachable_since_s >= self._connect_deadline_s or now_s - (waiting_since_s or now_s) > self._ready_deadline_s:
                raise EdgeLost(f"no edge to {self._peer.name}: {error}") from error
            await self._pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
            dial_s = _FIRST_DIAL_S if isinstance(error, WrongEpoch) else 2 * dial_s

    async def _pause(self, pause_s: float) -> None:
        """Shorter when the first frame comes: by then the next member is most likely ready."""
        if self._frame_waits.is_set():
            await asyncio.sleep(_RETRY_S)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._frame_waits.wait(), pause_s)

    async def _try_addresses(self, stack: AsyncExitStack, addresses: list[str], dial_s: float) -> "ForwardCall | DairllmError":
        """The first address that leads to the member. One where it is not ready for the epoch yet is tried first from then on."""
        last: DairllmError = PeerUnreachable(f"{self._peer.name} does not answer at {', '.join(addresses) or 'any address: it has none'}")
        async with aclosing(dial_each(addresses, dial_s)) as connected:
            async for address, channel in connected:
                async with AsyncExitStack() as attempt:
                    attempt.push_async_callback(channel.close)
                    try:
                        call = await self._open_at(attempt, channel, address)
                    except DairllmError as error:
                        if isinstance(error, WrongEpoch):
                            addresses.remove(address)
                            addresses.insert(0, address)
                        # That it is not ready yet says more than that another of its addresses does not answer.
                        last = last if isinstance(last, WrongEpoch) else error
                        continue
                    await stack.enter_async_context(attempt.pop_all())
                    return call
        return last

    async def _open_at(self, attempt: AsyncExitStack, channel: grpc.aio.Channel, address: str) -> ForwardCall:
        call = ring_pb2_grpc.RingServiceStub(channel).Forward()
        attempt.callback(call.cancel)
        try:
            async with asyncio.timeout(_ANSWER_DEADLINE_S):
                await call.write(ring_pb2.ForwardRequest(open=self._opening))
                response = await call.read()
                if response is grpc.aio.EOF:
                    raise PeerUnreachable(f"{self._peer.name} ended the stream at once ({(await call.code()).name})")
        except TimeoutError as error:
            raise PeerUnreachable(f"{self._peer.name} does not answer at {address}") from error
        except asyncio.InvalidStateError as error:
            raise PeerUnreachable(f"{self._peer.name} ended the stream at once") from error
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._peer.name) from error
        if response.WhichOneof("message") != "accepted":
            raise PeerUnreachable(f"{self._peer.name} answered the opening of the edge with something else")
        self._grant(response.accepted.credits)
        self._silence.promised(response.accepted.heartbeat_interval_ms)
        return call
