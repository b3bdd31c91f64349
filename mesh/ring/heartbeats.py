"""Signs of life on an edge of the ring: the receiver says something every second, and the sender listens.

A cable that drops everything breaks no connection, and if both ends still reach the coordinator, their leases do not see it either. What is
measured is silence while this process itself ran: after a standstill of its own it listens anew before it blames anybody.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import grpc.aio

from dairllm.mesh.errors import PeerUnreachable
from dairllm.v1 import ring_pb2

HEARTBEAT_INTERVAL_S = 1.0
MISSED_INTERVALS = 4.5
"""As for a lease: after so many intervals of silence an edge is lost."""
_SHORTEST_INTERVAL_S = 0.05
_TICKS_PER_INTERVAL = 4
_HEARTBEAT = ring_pb2.ForwardResponse(heartbeat=ring_pb2.EdgeHeartbeat())

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class PeerSilent(PeerUnreachable):
    """The connection stands, and nothing comes."""


class EdgeAnswers:
    """The receiver's responses on one Forward stream, which may be written by several tasks."""

    def __init__(self, context: Context, interval_s: float = HEARTBEAT_INTERVAL_S) -> None:
        self._context = context
        self._interval_s = interval_s
        self._writing = asyncio.Lock()

    async def accept(self, credits: int) -> None:
        accepted = ring_pb2.EdgeAccepted(credits=credits, heartbeat_interval_ms=round(self._interval_s * 1000))
        await self.write(ring_pb2.ForwardResponse(accepted=accepted))

    async def write(self, response: ring_pb2.ForwardResponse) -> None:
        async with self._writing:
            await self._context.write(response)

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Heartbeats go out within the block, which belongs behind `accept`."""
        task = asyncio.create_task(self._beat(), name="edge-heartbeats")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # that the stream broke is told to whoever reads it

    async def _beat(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.write(_HEARTBEAT)


class Silence:
    """How long nothing was heard of the receiver of an edge, counted in short ticks of this process's own event loop.

    Time in which the loop stood still is one tick, however long it was: what the peer said meanwhile is read only now.
    """

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._interval_s = 0.0
        self._ticks = 0

    def promised(self, heartbeat_interval_ms: int) -> None:
        """From EdgeAccepted: 0 if the receiver sends no heartbeats, so that its silence means nothing."""
        self._interval_s = max(heartbeat_interval_ms / 1000, _SHORTEST_INTERVAL_S) if heartbeat_interval_ms else 0.0
        self._ticks = 0

    def heard(self) -> None:
        self._ticks = 0

    async def watch(self) -> NoReturn:
        """Raises PeerSilent once the receiver was silent for too long."""
        while not self._interval_s or self._ticks < MISSED_INTERVALS * _TICKS_PER_INTERVAL:
            await asyncio.sleep((self._interval_s or HEARTBEAT_INTERVAL_S) / _TICKS_PER_INTERVAL)
            self._ticks += 1
        silent_s = MISSED_INTERVALS * self._interval_s
        raise PeerSilent(f"the edge is silent: nothing was heard of {self._peer} for {silent_s:g} s, though the connection stands")
