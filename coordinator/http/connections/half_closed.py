"""A client that has said all that it has to say (FIN) may still listen: HTTP allows it, and `nc` and some proxies do it.

FIN looks the same from a client that has gone. The difference shows only when something is sent to it: who has gone answers with RST. So
an event stream needs nothing more, its tokens and comments are sent anyway. While a whole answer is being made nothing is to be sent, so
the client gets '100 Continue' now and then, which any client of HTTP/1.1 passes over (RFC 9110, 15.2). What is lost is some computing for
a client that has gone: PROBE_TICKS ticks of it, and for HTTP/1.0, which has no such message, all of the answer.
"""

import asyncio
import socket
from collections.abc import Callable

PROBE_TICKS = 5
"""The first probe is late, since most answers are there before it."""


class HalfClosed:
    """Watches a connection whose client has closed its half, until `stop`. probe: sends something, if that is possible now."""

    def __init__(self, transport: asyncio.Transport, probe: Callable[[], None], tick_s: float) -> None:
        self._transport = transport
        self._probe = probe
        self._tick_s = tick_s
        self._ticks = 0
        self._timer = self._next_tick()

    def stop(self) -> None:
        self._timer.cancel()

    def _next_tick(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        """asyncio does not look at the socket any more: a reset is seen here, or by the next write."""
        if self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
            return
        self._ticks += 1
        if self._ticks % PROBE_TICKS == 0:
            self._probe()
        self._timer = self._next_tick()
