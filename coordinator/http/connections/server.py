"""The app on uvicorn: sockets, deadlines for clients that stall, and a graceful end."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from dairllm.coordinator.http.error_replies import plain_error_body
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.mesh.errors import InvalidSetting

logger = logging.getLogger(__name__)

BACKLOG = 512
CHECK_INTERVAL_S = 0.05
CANCEL_AFTER_S = 5
"""How long after its connection was cut a request may take to end before uvicorn cancels it, with a traceback in the log."""


async def serve(app: Starlette, host: str, port: int, stop: asyncio.Event, on_listening: Callable[[int], None]) -> None:
    """Serves `app`, made by `create_app`, until `stop` is set; answers under way then have `HttpLimits.shutdown_s` to end.

    host: a name or an address; all its addresses are bound. port 0 takes a free one. on_listening is told the port once connections
    are accepted. Raises InvalidSetting if the host or the port cannot be bound.
    """
    limits: HttpLimits = app.state.limits
    sockets = await _bind(host, port)
    config = uvicorn.Config(
        app,
        http=_protocol_with(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=round(limits.shutdown_s) + CANCEL_AFTER_S,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets))
    stopping = asyncio.create_task(stop.wait())
    try:
        await _wait_until_started(server, running)
        on_listening(sockets[0].getsockname()[1])
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        app.state.stopping.set()
        stopping.cancel()
        server.should_exit = True
        cutting = asyncio.get_running_loop().call_later(limits.shutdown_s, server.cut_connections)
        await running
        cutting.cancel()
        for one in sockets:
            one.close()


async def _wait_until_started(server: uvicorn.Server, running: asyncio.Task[None]) -> None:
    while not server.started and not running.done():
        await asyncio.sleep(CHECK_INTERVAL_S)  # uvicorn has nothing to wait for


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the business of the process."""
        yield

    def cut_connections(self) -> None:
        """Requests under way see that their client is gone, and end."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def _bind(host: str, port: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidSetting(f"the HTTP host {host!r} cannot be resolved ({error}); expected an address of this machine") from error
    except OverflowError as error:
        raise InvalidSetting(f"the HTTP port is {port}; expected 0 to 65535") from error
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, sockaddr[0]) for family, _, _, _, sockaddr in found):
        actual_port = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_bind_one(family, str(address), actual_port))
        except OSError as error:
            if sockets and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            for one in sockets:
                one.close()
            raise _bind_error(error, host, actual_port) from error
    return sockets


def _bind_one(family: int, address: str, port: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        one.bind((address, port))
        one.listen(BACKLOG)
        one.setblocking(False)
    except BaseException:
        one.close()
        raise
    return one


def _bind_error(error: OSError, host: str, port: int) -> InvalidSetting:
    match error.errno:
        case errno.EADDRINUSE:
            return InvalidSetting(f"the HTTP port {port} on {host} is in use; expected a free port, or 0 for any", "port")
        case errno.EACCES:
            return InvalidSetting(f"the HTTP port {port} on {host} is not allowed for this user; expected a port over 1023", "port")
        case _:
            return InvalidSetting(f"{host} port {port} cannot be bound for HTTP ({error.strerror}); expected an address of this machine")


def _protocol_with(limits: HttpLimits) -> type[asyncio.Protocol]:
    class Protocol(PatientProtocol):
        request_timeout_s = limits.request_timeout_s
        write_stall_s = limits.write_stall_s

    return Protocol


class PatientProtocol(H11Protocol):
    """uvicorn's protocol for HTTP/1.1, with patience that ends: for the headers of a request, and for a client that does not read."""

    request_timeout_s: float
    write_stall_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headers_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._headers_timer = self.loop.call_later(self.request_timeout_s, self._end_wait_for_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_headers_timer()
        elif self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self.request_timeout_s, self._end_wait_for_headers)

    def _stop_headers_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _end_wait_for_headers(self) -> None:
        self._headers_timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_for_stall(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _watch_for_stall(self, buffered_bytes: int) -> None:
        self._stall_timer = self.loop.call_later(self.write_stall_s, self._check_progress, buffered_bytes)

    def _check_progress(self, buffered_bytes: int) -> None:
        now_bytes = self.transport.get_write_buffer_size()
        if now_bytes < buffered_bytes:
            self._watch_for_stall(now_bytes)
        else:
            logger.info("a client stopped reading its answer and is cut off client=%s", self.client)
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in OpenAI's form; when an answer is under way there is nothing to be said any more."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = plain_error_body(400, "the request is not valid HTTP/1.1", "invalid_http")
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        with suppress(h11.LocalProtocolError):
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
