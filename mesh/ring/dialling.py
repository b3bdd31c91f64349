"""Opening an edge of the ring: the next member is dialled at all of its addresses until one of them accepts.

The next member may still be loading: as long as it answers that it is not ready, it is asked again, with a limit only once somebody waits
for the edge.
"""

import asyncio
from contextlib import AsyncExitStack, aclosing, suppress
from typing import NamedTuple, TypeAlias

import grpc
import grpc.aio

from dairllm.mesh.channels import dial_each, error_from_rpc
from dairllm.mesh.errors import DairllmError, PeerUnreachable, WrongEpoch
from dairllm.mesh.peers import Peer
from dairllm.mesh.streams import next_message
from dairllm.v1 import ring_pb2, ring_pb2_grpc

ANSWER_DEADLINE_S = 3.0
_FIRST_DIAL_S = 1.0
"""Doubles with every round over the addresses: one that swallows everything must not hold up another where the member is not ready yet."""
_RETRY_S = 0.05
_LONGEST_RETRY_S = 0.5

ForwardCall: TypeAlias = "grpc.aio.StreamStreamCall[ring_pb2.ForwardRequest, ring_pb2.ForwardResponse]"


class OpenedEdge(NamedTuple):
    call: ForwardCall
    accepted: ring_pb2.EdgeAccepted


class EdgeDialler:
    """connect_deadline_s: for the member to answer at all. ready_deadline_s: for it to be ready, once somebody waits for the edge."""

    def __init__(self, peer: Peer, opening: ring_pb2.EdgeOpen, connect_deadline_s: float, ready_deadline_s: float) -> None:
        self._peer = peer
        self._opening = opening
        self._connect_deadline_s = connect_deadline_s
        self._ready_deadline_s = ready_deadline_s
        self._is_awaited = asyncio.Event()

    def hurry(self) -> None:
        """Somebody waits for the edge from now on."""
        self._is_awaited.set()

    async def open(self, stack: AsyncExitStack) -> OpenedEdge:
        """The call and its channel are closed with the stack. Raises DairllmError, the reason of the last try, when time is over."""
        loop = asyncio.get_running_loop()
        addresses = list(self._peer.addresses)
        unreachable_since_s, awaited_since_s = loop.time(), None
        pause_s, dial_s = _RETRY_S, _FIRST_DIAL_S
        while True:
            left_s = unreachable_since_s + self._connect_deadline_s - loop.time()
            error = await self._try_addresses(stack, addresses, min(dial_s, max(left_s, _RETRY_S)))
            if not isinstance(error, DairllmError):
                return error
            now_s = loop.time()
            if isinstance(error, WrongEpoch):
                unreachable_since_s = now_s
            if self._is_awaited.is_set() and awaited_since_s is None:
                awaited_since_s = now_s
            if now_s - unreachable_since_s >= self._connect_deadline_s or now_s - (awaited_since_s or now_s) > self._ready_deadline_s:
                raise error
            await self._pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
            dial_s = _FIRST_DIAL_S if isinstance(error, WrongEpoch) else 2 * dial_s

    async def _pause(self, pause_s: float) -> None:
        """Shorter when somebody waits: by then the next member is most likely ready."""
        if self._is_awaited.is_set():
            await asyncio.sleep(_RETRY_S)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_awaited.wait(), pause_s)

    async def _try_addresses(self, stack: AsyncExitStack, addresses: list[str], dial_s: float) -> OpenedEdge | DairllmError:
        """The first address that leads to the member. One where it is not ready for the epoch yet is tried first from then on."""
        last: DairllmError = PeerUnreachable(f"{self._peer.name} does not answer at {', '.join(addresses) or 'any address: it has none'}")
        async with aclosing(dial_each(addresses, dial_s)) as connected:
            async for address, channel in connected:
                async with AsyncExitStack() as attempt:
                    attempt.push_async_callback(channel.close)
                    try:
                        opened = await self._open_at(attempt, channel, address)
                    except DairllmError as error:
                        if isinstance(error, WrongEpoch):
                            addresses.remove(address)
                            addresses.insert(0, address)
                        # That it is not ready yet says more than that another of its addresses does not answer.
                        last = last if isinstance(last, WrongEpoch) else error
                        continue
                    await stack.enter_async_context(attempt.pop_all())
                    return opened
        return last

    async def _open_at(self, attempt: AsyncExitStack, channel: grpc.aio.Channel, address: str) -> OpenedEdge:
        call = ring_pb2_grpc.RingServiceStub(channel).Forward()
        attempt.callback(call.cancel)
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                await call.write(ring_pb2.ForwardRequest(open=self._opening))
                response = await next_message(call)
                if response is None:
                    raise PeerUnreachable(f"{self._peer.name} ended the stream at once ({(await call.code()).name})")
        except TimeoutError as error:
            raise PeerUnreachable(f"{self._peer.name} does not answer at {address}") from error
        except asyncio.InvalidStateError as error:
            raise PeerUnreachable(f"{self._peer.name} ended the stream at once") from error
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._peer.name) from error
        if response.WhichOneof("message") != "accepted":
            raise PeerUnreachable(f"{self._peer.name} answered the opening of the edge with something else")
        return OpenedEdge(call, response.accepted)
