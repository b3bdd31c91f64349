"""One Join stream: the shard's lease, from hello to its end."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol, TypeAlias

import grpc
import grpc.aio

from dairllm.mesh.channels import error_from_rpc
from dairllm.mesh.errors import DairllmError, PeerUnreachable
from dairllm.mesh.streams import first_to_fail, next_message
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc

WELCOME_DEADLINE_S = 5.0
_GOODBYE_S = 1.0
_SHORTEST_INTERVAL_S = 0.05

JoinCall: TypeAlias = "grpc.aio.StreamStreamCall[cluster_pb2.JoinRequest, cluster_pb2.JoinResponse]"

log = logging.getLogger(__name__)


class OrderTaker(Protocol):
    """Who acts on what the coordinator says."""

    def welcomed(self, welcome: cluster_pb2.Welcome) -> None: ...
    def assign(self, message: cluster_pb2.Assignment) -> None: ...
    def activate(self, message: cluster_pb2.ActivateStage) -> None: ...
    def release(self, message: cluster_pb2.Release) -> None: ...
    def drain(self, message: cluster_pb2.Drain) -> None: ...
    def configure(self, message: cluster_pb2.Configure) -> None: ...
    def prove(self, message: cluster_pb2.Prove) -> None: ...
    def usage(self) -> cluster_pb2.ShardUsage: ...
    def work(self) -> cluster_pb2.ShardWork: ...


class JoinUnsuccessful(Exception):
    """The stream ended before the welcome. error: why."""

    def __init__(self, error: DairllmError) -> None:
        super().__init__(str(error))
        self.error = error


class Lease:
    """`send` queues; what is queued goes out once the shard is a member."""

    def __init__(self, channel: grpc.aio.Channel, hello: cluster_pb2.Hello, member: OrderTaker) -> None:
        self._call: JoinCall = cluster_pb2_grpc.ClusterServiceStub(channel).Join()
        self._hello = hello
        self._member = member
        self._outbox: asyncio.Queue[cluster_pb2.JoinRequest | None] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._heard_s = 0.0
        self._beat_number = 0
        self._beat_sent_s = 0.0
        self._round_trip_us = 0

    def send(self, request: cluster_pb2.JoinRequest) -> None:
        self._outbox.put_nowait(request)

    async def keep(self, on_welcome: Callable[[], None]) -> None:
        """Until the lease ends, by a DairllmError, or until cancelled. Raises JoinUnsuccessful if it never began."""
        try:
            welcome = await self._enter()
            self._heard_s = asyncio.get_running_loop().time()
            self._member.welcomed(welcome)
            on_welcome()
            await self._run(welcome)
        finally:
            self._call.cancel()
            self._ended.set()

    async def leave(self, reason: str) -> None:
        """Say goodbye, after what is queued already, and let the coordinator end the stream; takes at most a second."""
        self.send(cluster_pb2.JoinRequest(leaving=cluster_pb2.Leaving(reason=reason)))
        self._outbox.put_nowait(None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _GOODBYE_S)

    async def _enter(self) -> cluster_pb2.Welcome:
        try:
            async with asyncio.timeout(WELCOME_DEADLINE_S):
                response = await self._say_hello()
        except TimeoutError as error:
            raise JoinUnsuccessful(PeerUnreachable("the coordinator does not answer the hello")) from error
        except grpc.aio.AioRpcError as error:
            raise JoinUnsuccessful(error_from_rpc(error, "the coordinator")) from error
        if response.WhichOneof("message") != "welcome":
            raise JoinUnsuccessful(PeerUnreachable("the coordinator's first message is not `welcome`"))
        return response.welcome

    async def _say_hello(self) -> cluster_pb2.JoinResponse:
        with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended already: reading says why
            await self._call.write(cluster_pb2.JoinRequest(hello=self._hello))
        response: cluster_pb2.JoinResponse | None = await next_message(self._call)
        if response is None:
            raise JoinUnsuccessful(PeerUnreachable(f"the coordinator ended the stream ({(await self._call.code()).name})"))
        return response

    async def _run(self, welcome: cluster_pb2.Welcome) -> None:
        interval_s = max(welcome.heartbeat_interval_ms / 1000, _SHORTEST_INTERVAL_S)
        timeout_s = max(welcome.lease_timeout_ms / 1000, interval_s)
        # The reader first: it knows why the stream ended.
        await first_to_fail(self._read(), self._write(), self._beat(interval_s), self._watch_silence(timeout_s))

    async def _read(self) -> None:
        try:
            while (response := await next_message(self._call)) is not None:
                self._heard_s = asyncio.get_running_loop().time()
                self._take(response)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, "the coordinator") from error
        raise PeerUnreachable("the coordinator has ended the lease")

    def _take(self, response: cluster_pb2.JoinResponse) -> None:
        match response.WhichOneof("message"):
            case "heartbeat_ack":
                if response.heartbeat_ack.number == self._beat_number:
                    self._round_trip_us = round((self._heard_s - self._beat_sent_s) * 1e6)
            case "assignment":
                self._member.assign(response.assignment)
            case "activate_stage":
                self._member.activate(response.activate_stage)
            case "release":
                self._member.release(response.release)
            case "drain":
                self._member.drain(response.drain)
            case "configure":
                self._member.configure(response.configure)
            case "prove":
                self._member.prove(response.prove)
            case other:
                log.warning("the coordinator sent %s, which this version does not know", other or "an unknown message")

    async def _write(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader says why
            while (request := await self._outbox.get()) is not None:
                await self._call.write(request)
            await self._call.done_writing()

    async def _beat(self, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._beat_number += 1
            self._beat_sent_s = loop.time()
            beat = cluster_pb2.Heartbeat(
                number=self._beat_number, round_trip_us=self._round_trip_us, usage=self._member.usage(), work=self._member.work()
            )
            self.send(cluster_pb2.JoinRequest(heartbeat=beat))
            await asyncio.sleep(interval_s)

    async def _watch_silence(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        while (left_s := self._heard_s + timeout_s - loop.time()) > 0:
            await asyncio.sleep(left_s)
        raise PeerUnreachable(f"nothing was heard of the coordinator for {timeout_s:g} s")
