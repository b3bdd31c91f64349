"""uvicorn's protocol for HTTP/1.1, with patience that ends, and with ears for clients that only listen any more."""

import asyncio
import logging
import sys
from contextlib import suppress
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dairllm.coordinator.http.connections.crowd import Crowd
from dairllm.coordinator.http.connections.half_closed import HalfClosed
from dairllm.coordinator.http.error_replies import head_too_large, plain_error_body
from dairllm.coordinator.http.limits import HttpLimits

logger = logging.getLogger(__name__)

LINGER_S = 2.0
"""A client that is refused may still be sending, and who closes then destroys the answer on its way."""


class PatientProtocol(H11Protocol):
    """Ends the wait for headers that do not come, and for a client that does not read. A class of its own for each server."""

    limits: ClassVar[HttpLimits]
    crowd: ClassVar[Crowd]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headers_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._half_closed: HalfClosed | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self.crowd.admit(self):
            transport.abort()
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.remove(self)
        for timer in (self._headers_timer, self._stall_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        if self._half_closed is not None:
            self._half_closed.stop()
        super().connection_lost(exc)

    def leave(self) -> None:
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is not None:
            return
        super().data_received(data)
        self.crowd.note(self, self._is_busy)
        if self.conn.their_state is not h11.IDLE:
            self._stop_headers_timer()
        elif self._headers_timer is None:
            self._await_headers()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open for an answer."""
        if not self._is_busy or self.cycle.more_body or self.transport.is_closing():
            return False
        if self._half_closed is None:
            self._half_closed = HalfClosed(self.transport, self._probe, self.limits.half_closed_tick_s)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.crowd.note(self, self._is_busy)
        if self._half_closed is not None and not self._is_busy:
            self.transport.close()

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _probe(self) -> None:
        """Something that a client passes over, where an answer has not begun."""
        if self.conn.our_state is h11.SEND_RESPONSE and self.conn.their_http_version != b"1.0":
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b"")

    def _should_upgrade(self) -> bool:
        """Nothing is offered, and a client that asks for something else in passing is answered in HTTP/1.1 (RFC 9110, 7.8)."""
        return False

    def _await_headers(self) -> None:
        self._headers_timer = self.loop.call_later(self.limits.request_timeout_s, self._end_wait_for_headers)

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
        self._stall_timer = self.loop.call_later(self.limits.write_stall_s, self._check_progress, buffered_bytes)

    def _check_progress(self, buffered_bytes: int) -> None:
        now_bytes = self.transport.get_write_buffer_size()
        if now_bytes < buffered_bytes:
            self._watch_for_stall(now_bytes)
        else:
            logger.info("a client stopped reading its answer and is cut off client=%s", self.client)
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, with the status that h11 suggests, in OpenAI's form; to an answer under way nothing can be added any more."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        status, message, code = self._refusal(sys.exception())
        body = plain_error_body(status, message, code)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        with suppress(h11.LocalProtocolError):
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._stop_headers_timer()
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def _refusal(self, error: BaseException | None) -> tuple[int, str, str]:
        match error:
            case h11.RemoteProtocolError(error_status_hint=431):
                return head_too_large(self.limits.max_head_bytes)
            case h11.RemoteProtocolError(error_status_hint=501):
                return 501, "the transfer-encoding is not supported; expected chunked or none", "unknown_transfer_encoding"
            case _:
                return 400, "the request is not valid HTTP/1.1", "invalid_http"
