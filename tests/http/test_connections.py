"""Clients that go away, stall, or do not speak HTTP; a port that is taken; the end of the server. Real sockets throughout."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import resource
import socket
import struct

import pytest
from prometheus_client import CollectorRegistry

from dairllm.coordinator.http.app import create_app
from dairllm.coordinator.http.connections.server import ACCEPTED_AT_ONCE, serve
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.mesh.errors import InvalidSetting
from tests.http.conftest import LIMITS, Site, request_bytes, run_site
from tests.text.fakes import FakeEngine, make_served

CHAT = "/v1/chat/completions"
DEADLINE_S = 10


def chat_body(**fields: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()


async def within_deadline(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), DEADLINE_S)


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST, as a killed process with unread data does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("pause_at", [-1, 5])
@pytest.mark.parametrize("by_reset", [True, False])
async def test_a_client_that_goes_away_ends_its_sequences(site: Site, stream: bool, pause_at: int, by_reset: bool) -> None:
    site.engine.pause_at = pause_at
    _, writer = await site.connect()
    writer.write(request_bytes(CHAT, chat_body(stream=stream, n=2)))
    await within_deadline(site.engine.paused)
    reset(writer) if by_reset else writer.close()
    await within_deadline(site.engine.all_ended)
    assert len(site.engine.requests) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_has_said_all_is_answered(site: Site, stream: bool) -> None:
    """It closes its half before the answer begins, and for longer than several looks at whether it is still there."""
    site.engine.pause_at = 0
    reader, writer = await site.connect()
    writer.write(request_bytes(CHAT, chat_body(stream=stream)))
    writer.write_eof()
    await within_deadline(site.engine.paused)
    asyncio.get_running_loop().call_later(12 * LIMITS.half_closed_tick_s, site.engine.resume.set)
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    _, _, final = answer.rpartition(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert final.startswith(b"HTTP/1.1 200 ")
    assert b'"finish_reason":"stop"' in final
    assert final.endswith(b"0\r\n\r\n" if stream else b"}")


async def test_who_watches_events_and_goes_is_noticed_although_nothing_happens(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(b"GET /api/cluster/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
    writer.write_eof()
    await asyncio.wait_for(reader.readuntil(b"shard b joined"), DEADLINE_S)
    await asyncio.wait_for(reader.readuntil(b": keep-alive"), DEADLINE_S)
    writer.close()
    async with asyncio.timeout(DEADLINE_S):
        while 'dairllm_http_requests_total{route="/api/cluster/events"' not in (await site.get("/metrics")).text:
            await asyncio.sleep(0.02)


async def test_several_requests_before_the_end_are_all_answered(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(3 * b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" + b"GET /he")
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert answer.count(b"HTTP/1.1 200 ") == 3


async def test_a_request_that_is_cut_off_is_not_answered(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(request_bytes(CHAT, chat_body())[:-1])
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
    assert not site.engine.requests


async def test_a_client_that_goes_away_disturbs_nobody(site: Site) -> None:
    site.engine.pause_at = 3
    _, writer = await site.connect()
    writer.write(request_bytes(CHAT, chat_body(stream=True)))
    await within_deadline(site.engine.paused)
    other = asyncio.create_task(site.post(CHAT, {"messages": [{"role": "user", "content": "Hi"}]}))
    writer.close()
    site.engine.resume.set()
    assert (await other).json()["choices"][0]["message"]["content"] == "Hello, world"


async def test_a_client_that_never_reads_is_cut_off(site: Site) -> None:
    """Megabytes of log-probabilities fill every buffer on the way; then the stall is noticed, and meanwhile others are served."""
    site.engine.reply = lambda request: b"x" * 400
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, ("127.0.0.1", site.port))
        await loop.sock_sendall(deaf, request_bytes(CHAT, chat_body(stream=True, n=64, logprobs=True, top_logprobs=20)))
        assert (await site.get("/healthz")).status_code == 200
        await within_deadline(site.engine.all_ended)
        assert site.engine.num_generated < 64 * 400 / 2
    reply = await site.post(CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2})
    assert reply.json()["choices"][0]["message"]["content"] == "xx"


async def test_a_client_that_reads_slowly_is_not_cut_off(site: Site) -> None:
    site.engine.reply = lambda request: b"x" * 100
    reader, writer = await site.connect()
    writer.write(request_bytes(CHAT, chat_body(stream=True, n=4, logprobs=True, top_logprobs=20)))
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        part = await asyncio.wait_for(reader.read(65536), DEADLINE_S)
        assert part
        received += part
        await asyncio.sleep(0.005)
    assert b"[DONE]" in received


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03" * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
)
async def test_strangers_are_answered_quietly(site: Site, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await site.connect()
    writer.write(sent)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert (await site.get("/healthz")).status_code == 200
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


async def test_what_is_no_http_gets_an_error_in_openais_form(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(b"hello there\r\n\r\n")
    head, _, body = (await asyncio.wait_for(reader.read(), DEADLINE_S)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_garbage_after_a_request_under_way_does_not_hurt(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.engine.pause_at = 2
    reader, writer = await site.connect()
    writer.write(request_bytes(CHAT, chat_body(stream=True)) + b"\x00garbage\r\n\r\n")
    await within_deadline(site.engine.paused)
    site.engine.resume.set()
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert b"[DONE]" in answer
    assert not [record for record in caplog.records if record.exc_info]


async def test_headers_that_never_come_are_not_awaited_for_ever(site: Site) -> None:
    for sent in (b"", b"GET / HT"):
        reader, writer = await site.connect()
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""


async def test_a_head_that_is_too_large_is_refused_in_words_although_it_is_still_being_sent(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ")
    for _ in range(8):
        writer.write(b"y" * (LIMITS.max_head_bytes // 4))
    head, _, body = (await asyncio.wait_for(reader.read(), DEADLINE_S)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["code"] == "head_too_large"


async def test_a_body_that_never_comes_is_not_awaited_for_ever(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_slow"


async def test_a_connection_serves_many_requests(site: Site) -> None:
    reader, writer = await site.connect()
    for _ in range(3):
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(15) == b'{"status":"ok"}'


async def test_the_connection_that_was_idle_for_longest_makes_room() -> None:
    async with run_site(make_served(), dataclasses.replace(LIMITS, max_connections=3, request_timeout_s=60)) as site:
        site.engine.pause_at = 1
        _, busy = await site.connect()
        busy.write(request_bytes(CHAT, chat_body(stream=True)))
        await within_deadline(site.engine.paused)
        first, _ = await site.connect()
        second, second_writer = await site.connect()
        third, third_writer = await site.connect()
        assert await asyncio.wait_for(first.read(), DEADLINE_S) == b""
        for reader, writer in ((second, second_writer), (third, third_writer)):
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).startswith(b"HTTP/1.1 200 ")
        assert site.engine.num_open == 1


async def test_connections_without_descriptors_wait_and_are_told_of_in_a_sentence(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(20)]
        free = stack.enter_context(socket.socket()).fileno() + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            while "cannot be accepted" not in caplog.text:
                await asyncio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        told = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(told) <= ACCEPTED_AT_ONCE
        assert not any(record.exc_info for record in told)
        for client in clients:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(client, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 4096), DEADLINE_S)
            assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_request_to_upgrade_is_answered_without_a_word_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for protocol in (b"h2c", b"websocket"):
        reader, writer = await site.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: %b\r\n\r\n" % protocol)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).startswith(b"HTTP/1.1 200 ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_connection_that_is_idle_is_kept_for_as_long_as_pools_of_clients_keep_theirs() -> None:
    assert HttpLimits().idle_s > 60
    async with run_site(make_served(), dataclasses.replace(LIMITS, idle_s=1, request_timeout_s=60)) as site:
        reader, writer = await site.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), DEADLINE_S)).startswith(b"HTTP/1.1 200 ")


async def serve_on(host: str, port: int) -> None:
    app = create_app(make_served(), FakeEngine(), dict, CollectorRegistry())
    await serve(app, host, port, asyncio.Event(), lambda port: None)


async def test_a_port_in_use_is_named(site: Site) -> None:
    with pytest.raises(InvalidSetting, match=f"port {site.port} on 127.0.0.1 is in use"):
        await serve_on("127.0.0.1", site.port)


async def test_a_host_that_is_not_of_this_machine_is_named() -> None:
    with pytest.raises(InvalidSetting, match=r"192\.0\.2\.1"):
        await serve_on("192.0.2.1", 0)
    with pytest.raises(InvalidSetting, match=r"no-such-host\.invalid"):
        await serve_on("no-such-host.invalid", 0)


async def test_a_name_is_served_on_all_its_addresses() -> None:
    app = create_app(make_served(), FakeEngine(), dict, CollectorRegistry())
    stop, listening = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(app, "localhost", 0, stop, listening.set_result))
    port = await asyncio.wait_for(listening, DEADLINE_S)
    _, writer = await asyncio.open_connection("localhost", port)
    writer.close()
    await writer.wait_closed()
    stop.set()
    await asyncio.wait_for(serving, DEADLINE_S)


async def test_stopping_lets_answers_end(caplog: pytest.LogCaptureFixture) -> None:
    async with run_site(make_served()) as site:
        site.engine.pause_at = 2
        reader, writer = await site.connect()
        writer.write(request_bytes(CHAT, chat_body(stream=True)))
        await within_deadline(site.engine.paused)
        site.stop.set()
        site.engine.resume.set()
        assert b"[DONE]" in await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_stopping_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    async with run_site(make_served()) as site:
        site.engine.pause_at = 2
        _, writer = await site.connect()
        events, events_writer = await site.connect()
        writer.write(request_bytes(CHAT, chat_body(stream=True)))
        events_writer.write(b"GET /api/cluster/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await within_deadline(site.engine.paused)
        await events.readuntil(b"data: ")
    assert site.engine.num_open == 0
    assert (await events.read()).endswith(b"0\r\n\r\n")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
