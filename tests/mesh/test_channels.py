"""Real servers and channels on loopback."""

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dairllm.mesh import errors
from dairllm.mesh.channels import (
    MAX_MESSAGE_BYTES,
    add_standard_services,
    bind,
    create_server,
    dial,
    error_from_rpc,
    open_blocking_channel,
    open_channel,
)
from dairllm.mesh.errors import DairllmError, InvalidSetting, PeerUnreachable
from dairllm.mesh.streams import next_message
from dairllm.v1 import inference_pb2, inference_pb2_grpc, ring_pb2, ring_pb2_grpc, shard_pb2, shard_pb2_grpc
from tests.instruments.processes import free_port
from tests.instruments.tcp_proxy import TcpProxy

WAIT_S = 10.0
SERVICES = ("dairllm.v1.ShardService", "dairllm.v1.InferenceService", "dairllm.v1.RingService")


class Servicer(shard_pb2_grpc.ShardServiceServicer, inference_pb2_grpc.InferenceServiceServicer, ring_pb2_grpc.RingServiceServicer):
    """Echoes; raises `error` where it is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.generator_closed = asyncio.Event()
        self.stats: shard_pb2.GetStatsResponse | None = None
        self.credits = 1
        self.is_interrupted = False

    async def Echo(self, request: Any, context: Any) -> Any:
        if self.error is not None:
            raise self.error
        return shard_pb2.EchoResponse(payload=request.payload)

    async def GetStats(self, request: Any, context: Any) -> Any:
        if self.stats is not None:
            return self.stats
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "on purpose")

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            for number in range(10**9 if request.ignore_eos else 3):
                yield inference_pb2.GenerateResponse(text=str(number))
            if self.error is not None:
                raise self.error
        finally:
            self.generator_closed.set()

    async def Forward(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        async for _ in request_iterator:
            write = asyncio.ensure_future(context.write(ring_pb2.ForwardResponse(credit=ring_pb2.Credit(frames=self.credits))))
            if self.is_interrupted:
                await asyncio.sleep(0)
                write.cancel()
            await asyncio.wait({write})
            if self.error is not None:
                raise self.error


@contextlib.asynccontextmanager
async def serving(servicer: Servicer, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    server = create_server()
    shard_pb2_grpc.add_ShardServiceServicer_to_server(servicer, server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    ring_pb2_grpc.add_RingServiceServicer_to_server(servicer, server)
    health = add_standard_services(server, SERVICES)
    port = await bind(server, host, port, "the test's server")
    await server.start()
    await health.set_serving(True)
    try:
        yield port
    finally:
        await server.stop(None)


@pytest.fixture
async def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
async def port(servicer: Servicer) -> AsyncIterator[int]:
    async with serving(servicer) as port:
        yield port


@pytest.fixture
async def channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield channel


async def echo(channel: grpc.aio.Channel, payload: bytes = b"hello") -> bytes:
    reply = await shard_pb2_grpc.ShardServiceStub(channel).Echo(shard_pb2.EchoRequest(payload=payload), timeout=WAIT_S)
    return bytes(reply.payload)


async def generate(channel: grpc.aio.Channel, **fields: Any) -> None:
    async for _ in inference_pb2_grpc.InferenceServiceStub(channel).Generate(inference_pb2.GenerateRequest(**fields), timeout=WAIT_S):
        pass


async def forward(channel: grpc.aio.Channel) -> None:
    call = ring_pb2_grpc.RingServiceStub(channel).Forward(iter([ring_pb2.ForwardRequest()]), timeout=WAIT_S)
    async for _ in call:
        pass


CALLS: list[Callable[[grpc.aio.Channel], Awaitable[Any]]] = [echo, generate, forward]
CLASSES = sorted(
    (cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, DairllmError)), key=lambda c: c.__name__
)


@pytest.mark.parametrize("call", CALLS)
async def test_every_error_arrives_as_it_was_raised(
    servicer: Servicer, channel: grpc.aio.Channel, call: Callable[[grpc.aio.Channel], Awaitable[Any]]
) -> None:
    for cls in CLASSES:
        for error in (cls("plain"), cls("Größe 💥: 'x' is wrong", "messages[0].role", 1.25), cls("now", None, 0.0)):
            servicer.error = error
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel)
            assert caught.value.code() is error.meaning.grpc_status
            assert caught.value.details() == error.message
            received = error_from_rpc(caught.value)
            assert (type(received), received) == (cls, replace(error, retry_after_s=error.retry_delay_s))
            assert (received.retry_after_s is None) is not error.meaning.retryable


@pytest.mark.parametrize("call", CALLS)
async def test_another_exception_is_internal_and_stays_here(
    servicer: Servicer,
    channel: grpc.aio.Channel,
    call: Callable[[grpc.aio.Channel], Awaitable[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    servicer.error = RuntimeError("the secret cause")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.debug_error_string() + str(caught.value.details())
    assert type(error_from_rpc(caught.value)) is DairllmError
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert "the secret cause" in str(record.exc_info[1])
    servicer.error = None
    assert await echo(channel) == b"hello"


async def test_a_handler_may_abort_by_itself(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shard_pb2_grpc.ShardServiceStub(channel).GetStats(shard_pb2.GetStatsRequest(), timeout=WAIT_S)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "on purpose")


async def read_to_end(call: Any) -> None:
    while await next_message(call) is not None:
        pass


async def test_an_error_arrives_though_a_write_was_interrupted(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    """As where one task writes and another one fails."""
    servicer.error, servicer.is_interrupted = errors.NotReady("on purpose"), True
    for _ in range(50):
        call = ring_pb2_grpc.RingServiceStub(channel).Forward(iter([ring_pb2.ForwardRequest(open=ring_pb2.EdgeOpen())]))
        with pytest.raises(grpc.aio.AioRpcError, match="on purpose"):
            await asyncio.wait_for(read_to_end(call), WAIT_S)


async def test_a_very_long_message_is_cut(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    servicer.error = errors.Busy("x" * 100_000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo(channel)
    received = error_from_rpc(caught.value)
    assert type(received) is errors.Busy
    assert received.message == "x" * 2000


async def test_a_cancelled_call_closes_its_generator(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(inference_pb2.GenerateRequest(ignore_eos=True), timeout=WAIT_S)
    assert (await call.read()).text == "0"
    call.cancel()
    async with asyncio.timeout(WAIT_S):
        await servicer.generator_closed.wait()


async def test_messages_up_to_the_limit_pass(channel: grpc.aio.Channel) -> None:
    payload = random.Random(1).randbytes(1024) * 20 * 1024
    assert await echo(channel, payload) == payload
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo(channel, bytes(MAX_MESSAGE_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_calls_that_fail_without_our_details_get_the_nearest_error(port: int) -> None:
    async with open_channel(f"127.0.0.1:{free_port()}") as nobody:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo(nobody)
    received = error_from_rpc(caught.value, "shard b")
    assert type(received) is PeerUnreachable
    assert received.message.startswith("shard b: does not answer (")
    assert received.meaning.retryable
    async with open_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary("/dairllm.v1.ShardService/NoSuchMethod")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"", timeout=WAIT_S)
    assert type(error_from_rpc(caught.value)) is errors.Unsupported


def test_a_write_to_a_stream_that_has_just_ended_is_no_internal_error() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error from Core")
    received = error_from_rpc(error, "shard b")
    assert type(received) is PeerUnreachable
    assert received.message == "shard b: the stream has ended"


async def test_a_deadline_that_passes_is_its_own_error(port: int) -> None:
    async with TcpProxy("127.0.0.1", port) as proxy, open_channel(proxy.address) as channel:
        assert await echo(channel) == b"hello"
        proxy.black_hole()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await shard_pb2_grpc.ShardServiceStub(channel).Echo(shard_pb2.EchoRequest(), timeout=0.2)
        assert type(error_from_rpc(caught.value)) is errors.DeadlineExceeded
        proxy.heal()
        assert await echo(channel) == b"hello"


async def test_a_cut_connection_comes_back_within_seconds(port: int) -> None:
    async with TcpProxy("127.0.0.1", port) as proxy, open_channel(proxy.address) as channel:
        assert await echo(channel) == b"hello"
        proxy.cut()
        async with asyncio.timeout(3):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert await echo(channel, b"again") == b"again"
                    break
        assert proxy.accepted_connections == 2


@pytest.mark.slow
@pytest.mark.parametrize("idle_s", [0, 1])
async def test_a_silent_connection_is_given_up_by_keepalive(port: int, idle_s: float) -> None:
    """As a pulled cable: nothing is reset, nothing answers. Ping after 10 s of silence, 5 s for the answer.

    Right after data gRPC has a ping of its own under way; later it has not.
    """
    async with TcpProxy("127.0.0.1", port) as proxy, open_channel(proxy.address) as channel:
        call = ring_pb2_grpc.RingServiceStub(channel).Forward()
        await call.write(ring_pb2.ForwardRequest())
        assert (await call.read()).credit.frames == 1
        await asyncio.sleep(idle_s)
        proxy.black_hole()
        started_s = asyncio.get_running_loop().time()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(25):
                await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert asyncio.get_running_loop().time() - started_s < 17


async def test_each_channel_has_its_own_connection(port: int) -> None:
    async with (
        TcpProxy("127.0.0.1", port) as proxy,
        open_channel(proxy.address) as first,
        open_channel(proxy.address) as second,
    ):
        assert (await echo(first), await echo(second)) == (b"hello", b"hello")
        assert proxy.num_connections == 2


async def test_proxies_of_the_environment_are_ignored(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with open_channel(f"127.0.0.1:{port}") as channel:
        assert await echo(channel) == b"hello"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "localhost"])
async def test_every_way_to_name_this_machine_listens(servicer: Servicer, host: str) -> None:
    async with serving(servicer, host) as port:
        both = [f"[::1]:{port}", f"127.0.0.1:{port}"]
        for address in {"::1": both[:1], "::": both, "0.0.0.0": both}.get(host, both[1:]):
            async with open_channel(address) as channel:
                assert await echo(channel) == b"hello"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "localhost"])
async def test_a_port_in_use_is_named(servicer: Servicer, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        server = create_server()
        with pytest.raises(InvalidSetting, match=rf"the shard can't listen on .*: port {taken} is in use by another process"):
            await bind(server, host, taken, "the shard")
        await server.stop(None)


async def test_two_servers_never_share_a_port(servicer: Servicer, port: int) -> None:
    server = create_server()
    with pytest.raises(InvalidSetting, match=f"port {port} is in use"):
        await bind(server, "127.0.0.1", port, "the second server")
    await server.stop(None)


@pytest.mark.parametrize(("host", "reason"), [("192.0.2.77", "Cannot assign"), ("no-such-host.invalid", "no host of this machine")])
async def test_a_host_that_is_not_here_is_refused(host: str, reason: str) -> None:
    server = create_server()
    with pytest.raises(InvalidSetting, match=f"the shard can't listen on {host}:1234: .*{reason}"):
        await bind(server, host, 1234, "the shard")
    await server.stop(None)


async def test_dial_takes_the_address_that_answers(port: int) -> None:
    async with TcpProxy("127.0.0.1", port) as black_hole:
        black_hole.black_hole()
        addresses = [f"127.0.0.1:{free_port()}", black_hole.address, f"127.0.0.1:{port}"]
        started_s = asyncio.get_running_loop().time()
        async with await dial(addresses, 5.0, "shard a") as channel:
            assert asyncio.get_running_loop().time() - started_s < 1.5
            assert await echo(channel) == b"hello"
            assert black_hole.forwarded_bytes == 0


async def test_dial_gives_up_at_once_where_all_refuse() -> None:
    started_s = asyncio.get_running_loop().time()
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with pytest.raises(PeerUnreachable, match=f"shard a does not answer at {addresses[0]}, {addresses[1]}"):
        await dial(addresses, 30.0, "shard a")
    assert asyncio.get_running_loop().time() - started_s < 3


async def test_dial_gives_up_in_time_where_nothing_answers(port: int) -> None:
    async with TcpProxy("127.0.0.1", port) as proxy:
        proxy.black_hole()
        started_s = asyncio.get_running_loop().time()
        with pytest.raises(PeerUnreachable, match=r"waited up to 0\.5 s"):
            await dial([proxy.address], 0.5, "shard a")
        assert asyncio.get_running_loop().time() - started_s < 2
    with pytest.raises(PeerUnreachable, match="it has none"):
        await dial([], 1.0, "shard a")


async def test_health_and_reflection(channel: grpc.aio.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", *SERVICES):
        status = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S)
        assert status.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await health.Check(health_pb2.HealthCheckRequest(service="none"), timeout=WAIT_S)
    reflection: Any = reflection_pb2_grpc
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    call = reflection.ServerReflectionStub(channel).ServerReflectionInfo(requests, timeout=WAIT_S)
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


STRANGERS = {
    "random bytes": random.Random(2).randbytes(4096),
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2 preface alone": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 preface and rubbish": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.Random(3).randbytes(4096),
    "a huge frame": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "nothing": b"",
}


@pytest.mark.parametrize("data", STRANGERS.values(), ids=STRANGERS)
async def test_strangers_leave_the_server_serving(port: int, channel: grpc.aio.Channel, data: bytes) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        with contextlib.suppress(OSError):
            await writer.drain()
        if data.startswith(b"GET"):
            await asyncio.wait_for(reader.read(100), WAIT_S)
        writer.transport.abort()
    assert await echo(channel) == b"hello"


async def test_a_tls_client_leaves_the_server_serving(port: int, channel: grpc.aio.Channel) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context()), WAIT_S)
    assert await echo(channel) == b"hello"


async def test_malformed_messages_are_refused(channel: grpc.aio.Channel) -> None:
    method = channel.unary_unary("/dairllm.v1.ShardService/Echo")
    with pytest.raises(grpc.aio.AioRpcError):
        await method(b"\xff\xff\xff", timeout=WAIT_S)
    assert await echo(channel) == b"hello"


TOO_MANY = 2**32 - 1


async def test_requests_out_of_range_never_reach_a_servicer(servicer: Servicer, channel: grpc.aio.Channel) -> None:
    """Also in the middle of a stream; the process answers on."""
    call = ring_pb2_grpc.RingServiceStub(channel).Forward(timeout=WAIT_S)
    await call.write(ring_pb2.ForwardRequest())
    assert (await call.read()).credit.frames == 1
    await call.write(ring_pb2.ForwardRequest(result=ring_pb2.MicroBatchResult(epoch=2**64 - 1)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = error_from_rpc(caught.value)
    assert (type(error), error.param) == (errors.InvalidRequest, "epoch")
    assert f"MicroBatchResult.epoch is {2**64 - 1}; expected a whole number up to " in str(error)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(channel, model="x" * 5000)
    assert f"GenerateRequest.model is {'x' * 60!r} (5000 characters); expected at most 4096 characters" in str(error_from_rpc(caught.value))
    assert await echo(channel) == b"hello"


async def ask_stats(channel: grpc.aio.Channel) -> None:
    await shard_pb2_grpc.ShardServiceStub(channel).GetStats(shard_pb2.GetStatsRequest(), timeout=WAIT_S)


async def read_credit(channel: grpc.aio.Channel) -> None:
    stream = ring_pb2_grpc.RingServiceStub(channel).Forward(timeout=WAIT_S)
    await stream.write(ring_pb2.ForwardRequest())
    await stream.read()


@pytest.mark.parametrize("call", [ask_stats, forward, read_credit])
async def test_answers_out_of_range_never_reach_a_caller(
    servicer: Servicer, channel: grpc.aio.Channel, call: Callable[[grpc.aio.Channel], Awaitable[None]]
) -> None:
    servicer.stats = shard_pb2.GetStatsResponse(epoch=2**64 - 1)
    servicer.credits = TOO_MANY
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel)
    words = f"GetStatsResponse.epoch is {2**64 - 1}" if call is ask_stats else f"Credit.frames is {TOO_MANY}"
    assert str(error_from_rpc(caught.value, "b")).startswith(f"b: sent what cannot be (the answer makes no sense: {words}; expected ")


async def test_answers_out_of_range_never_reach_a_caller_without_an_event_loop(servicer: Servicer, port: int) -> None:
    servicer.stats = shard_pb2.GetStatsResponse(epoch=2**64 - 1)
    servicer.credits = TOO_MANY

    def ask(channel: grpc.Channel) -> None:
        shard_pb2_grpc.ShardServiceStub(channel).GetStats(shard_pb2.GetStatsRequest(), timeout=WAIT_S)

    def ask_credits(channel: grpc.Channel) -> None:
        list(ring_pb2_grpc.RingServiceStub(channel).Forward(iter([ring_pb2.ForwardRequest()]), timeout=WAIT_S))

    with open_blocking_channel(f"127.0.0.1:{port}") as channel:
        for call in (ask, ask_credits):
            with pytest.raises(grpc.RpcError) as caught:
                await asyncio.to_thread(call, channel)
            assert "sent what cannot be" in str(error_from_rpc(caught.value))
