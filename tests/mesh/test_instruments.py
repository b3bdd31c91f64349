"""The tools that other tests rely on do what they say."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import psutil
import pytest

from tests.instruments.clusters import wait_for
from tests.instruments.namespaces import NamespaceError, Namespaces, unavailable_reason
from tests.instruments.processes import ManagedProcess, ProcessFailed, free_port, leaving_nothing_behind
from tests.instruments.tcp_proxy import TcpProxy

WAIT_S = 5.0
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

needs_namespaces = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo until the other side ends its data."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with TcpProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


async def round_trip_s(stream: Stream, data: bytes = b"hello") -> float:
    started_s = time.monotonic()
    stream[1].write(data)
    assert await asyncio.wait_for(stream[0].readexactly(len(data)), WAIT_S) == data
    return time.monotonic() - started_s


@pytest.fixture
async def stream(proxy: TcpProxy) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    yield reader, writer
    writer.transport.abort()


async def test_the_proxy_forwards(proxy: TcpProxy, stream: Stream) -> None:
    assert await round_trip_s(stream, bytes(10**6)) < WAIT_S
    assert proxy.forwarded_bytes == 2 * 10**6
    stream[1].write_eof()
    assert await asyncio.wait_for(stream[0].read(), WAIT_S) == b""


async def test_the_proxy_cuts(proxy: TcpProxy, stream: Stream) -> None:
    await round_trip_s(stream)
    proxy.cut()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(stream[0].readexactly(1), WAIT_S)
    assert proxy.num_connections == 0


async def test_the_proxy_delays_without_limiting(proxy: TcpProxy, stream: Stream) -> None:
    await round_trip_s(stream)
    proxy.delay(0.1)
    assert 0.2 <= await round_trip_s(stream, bytes(10**6)) < 1.0


async def test_the_proxy_throttles(proxy: TcpProxy, stream: Stream) -> None:
    proxy.throttle(100_000)
    assert await round_trip_s(stream, bytes(20_000)) >= 0.2


async def test_the_proxy_swallows_and_heals(proxy: TcpProxy, stream: Stream) -> None:
    await round_trip_s(stream)
    proxy.black_hole()
    stream[1].write(b"late")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream[0].read(1), 0.2)
    proxy.heal()
    assert await asyncio.wait_for(stream[0].readexactly(4), WAIT_S) == b"late"


async def test_the_proxy_half_closes(proxy: TcpProxy, stream: Stream) -> None:
    await round_trip_s(stream)
    forwarded = proxy.forwarded_bytes
    await proxy.half_close()
    assert await asyncio.wait_for(stream[0].read(), WAIT_S) == b""
    stream[1].write(b"on")
    async with asyncio.timeout(WAIT_S):
        while proxy.forwarded_bytes < forwarded + 2:
            await asyncio.sleep(0.01)


async def test_the_proxy_refuses_and_stops_listening(proxy: TcpProxy) -> None:
    proxy.refuse()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(1), WAIT_S) == b""
    writer.transport.abort()
    proxy.heal()
    await proxy.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    await proxy.listen()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await round_trip_s((reader, writer))
    writer.transport.abort()


def test_a_process_that_ends_early_shows_its_last_words() -> None:
    process = ManagedProcess([sys.executable, "-c", "print('last words'); raise SystemExit(3)"], name="it")
    with process, pytest.raises(ProcessFailed, match=r"(?s)it ended with code 3 before it was ready.*last words"):
        process.wait_ready()


def test_a_process_that_is_never_ready_is_not_waited_for() -> None:
    process = ManagedProcess([sys.executable, "-c", "import time; time.sleep(100)"], name="it")
    with process, pytest.raises(ProcessFailed, match=r"not ready within 0\.1 s"):
        process.wait_ready(0.1)


def test_a_managed_process_ends_with_its_children() -> None:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '100']); print('up'); time.sleep(100)"
    with ManagedProcess([sys.executable, "-c", code]) as process:
        process.wait_output("up")
        [child] = psutil.Process(process.pid).children()
    psutil.wait_procs([child], timeout=WAIT_S)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_leaks_are_reported() -> None:
    with contextlib.ExitStack() as cleanup, pytest.raises(AssertionError, match=r"left behind: .*threads.*forgotten.*sockets"):
        leak_a_thread_and_a_socket(cleanup)


def leak_a_thread_and_a_socket(cleanup: contextlib.ExitStack) -> None:
    stop = threading.Event()
    cleanup.callback(stop.set)
    with leaving_nothing_behind(timeout_s=0.1):
        threading.Thread(target=stop.wait, name="forgotten").start()
        cleanup.enter_context(socket.create_server(("127.0.0.1", free_port())))


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 9000), timeout=1.5)"
LISTEN = "import socket, time; s = socket.create_server(('0.0.0.0', 9000)); print('up', flush=True); time.sleep(100)"


@pytest.mark.namespaces
@needs_namespaces
def test_hosts_reach_each_other_until_the_cable_is_pulled() -> None:
    with Namespaces(["a", "b"], default_route=True) as network, network.managed("b", [sys.executable, "-c", LISTEN]) as listening:
        listening.wait_output("up")

        def reaches() -> bool:
            return network.run("a", [sys.executable, "-c", CONNECT, network.address("b")], output=subprocess.DEVNULL).wait(10) == 0

        wait_for(reaches, "the cable to carry")
        network.link_down("b")
        assert not reaches()
        network.link_up("b")
        wait_for(reaches, "the cable to carry again")
        network.block_multicast("b")
        wait_for(reaches, "what is not multicast to pass")


@pytest.mark.namespaces
@needs_namespaces
def test_a_network_that_can_not_be_built_leaves_nothing() -> None:
    network = Namespaces(["a"])
    in_the_way = network.namespace("a")
    subprocess.run(["ip", "netns", "add", in_the_way], check=True)
    try:
        with pytest.raises(NamespaceError, match="File exists"):
            network.__enter__()
        listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert [name.split()[0] for name in listed.splitlines() if name.startswith(in_the_way[:-1])] == [in_the_way]
    finally:
        subprocess.run(["ip", "netns", "delete", in_the_way], check=True)
