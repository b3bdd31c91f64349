"""The app on uvicorn, and a graceful end."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from dairllm.coordinator.http.connections.binding import BACKLOG, bind_all
from dairllm.coordinator.http.connections.crowd import Crowd
from dairllm.coordinator.http.connections.descriptors import allow_descriptors, descriptors_run_out_quietly
from dairllm.coordinator.http.connections.protocol import PatientProtocol
from dairllm.coordinator.http.limits import HttpLimits

CHECK_INTERVAL_S = 0.05
CANCEL_AFTER_S = 5
"""How long after its connection was cut a request may take to end before uvicorn cancels it, with a traceback in the log."""
ACCEPTED_AT_ONCE = 8
"""asyncio takes the backlog for this, too, and goes on so many times where no descriptor is left."""


async def serve(app: Starlette, host: str, port: int, stop: asyncio.Event, on_listening: Callable[[int], None]) -> None:
    """Serves `app`, made by `create_app`, until `stop` is set; answers under way then have `HttpLimits.shutdown_s` to end.

    host: a name or an address; all its addresses are bound. port 0 takes a free one. on_listening is told the port once connections
    are accepted. Raises InvalidSetting if the host or the port cannot be bound.
    """
    limits: HttpLimits = app.state.limits
    sockets = await bind_all(host, port)
    server = _Server(_config(app, limits))
    with descriptors_run_out_quietly():
        running = asyncio.create_task(server.serve(sockets))
        stopping = asyncio.create_task(stop.wait())
        try:
            await _wait_until_started(server, running)
            for one in sockets:
                one.listen(BACKLOG)
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


def _config(app: Starlette, limits: HttpLimits) -> uvicorn.Config:
    class Protocol(PatientProtocol):
        pass

    Protocol.limits = limits
    Protocol.crowd = Crowd(min(limits.max_connections, allow_descriptors(2 * limits.max_connections) // 2))
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=ACCEPTED_AT_ONCE,
        h11_max_incomplete_event_size=limits.max_head_bytes,
        timeout_keep_alive=round(limits.idle_s),
        timeout_graceful_shutdown=round(limits.shutdown_s) + CANCEL_AFTER_S,
    )


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
