"""A TCP proxy that misbehaves on command, to stand between two processes of a test."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 * 1024
_LEAST_CORRUPTED_BYTES = 8 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""Value of SO_LINGER: on, and for no time."""


@dataclass(eq=False)
class _Connection:
    """One accepted connection and the one that the proxy opened for it; `target` is absent in a black hole."""

    client: asyncio.StreamWriter
    target: asyncio.StreamWriter | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def abort(self) -> None:
        """Both ends see a reset."""
        for task in self.tasks:
            task.cancel()
        self.abort_writers()

    def abort_writers(self) -> None:
        for writer in (self.client, self.target):
            if writer is not None:
                end: socket.socket | None = writer.get_extra_info("socket")
                if end is not None and end.fileno() >= 0:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()


class TcpProxy:
    """Forwards connections at `address` to a target.

        async with TcpProxy("127.0.0.1", port) as proxy:
            channel = open_channel(proxy.address)
            proxy.cut()

    All commands hold for present and future connections until `heal`; `cut`, `half_close` and `corrupt` act once.
    """

    def __init__(self, target_host: str, target_port: int, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = (target_host, target_port)
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._ended: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._delay_s = 0.0
        self._bytes_per_s: float | None = None
        self._corrupt_after_bytes: int | None = None
        self.forwarded_bytes = 0
        self.corrupted_bytes = 0
        self.accepted_connections = 0

    @property
    def port(self) -> int:
        return self._port

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.stop_listening()
        connections = list(self._connections)
        self.cut()
        await asyncio.gather(*(task for connection in connections for task in connection.tasks), return_exceptions=True)

    async def listen(self) -> None:
        """Accept connections, again on the same port after `stop_listening`."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop_listening(self) -> None:
        """New connections are refused by the system. Present ones go on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def cut(self) -> None:
        """Reset all present connections. New ones are accepted."""
        for connection in list(self._connections):
            connection.abort()
        self._connections.clear()

    def refuse(self) -> None:
        """Reset all present connections and each new one."""
        self._refusing = True
        self.cut()

    def black_hole(self) -> None:
        """Accept everything and forward nothing, as if the network had swallowed it. What arrives meanwhile is forwarded after `heal`."""
        self._flowing.clear()

    def delay(self, delay_s: float) -> None:
        """Each piece of data arrives this much later, in order, without limiting the throughput."""
        self._delay_s = delay_s

    def throttle(self, bytes_per_s: float | None) -> None:
        """Limit each direction of each connection; None is no limit."""
        self._bytes_per_s = bytes_per_s

    def corrupt(self, after_bytes: int = 0) -> None:
        """Flip all bits of one byte on its way to a client, in a piece of data of at least 8 KiB, once this many bytes have passed."""
        self._corrupt_after_bytes = self.forwarded_bytes + after_bytes

    async def half_close(self) -> None:
        """End the stream of data towards the clients; their own data is forwarded on, what the target still sends is lost."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                await connection.client.drain()
                self._ended.add(connection.client)
                connection.client.write_eof()

    def heal(self) -> None:
        """Forward as an honest proxy from now on."""
        self._refusing = False
        self._delay_s = 0.0
        self._bytes_per_s = None
        self._corrupt_after_bytes = None
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted_connections += 1
        connection = _Connection(writer)
        if self._refusing:
            connection.abort()
            return
        current = asyncio.current_task()
        assert current is not None
        connection.tasks.append(current)
        self._connections.add(connection)
        try:
            await self._flowing.wait()
            target_reader, connection.target = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                forth = group.create_task(self._forward(reader, connection.target))
                back = group.create_task(self._forward(target_reader, writer, to_client=True))
                connection.tasks += [forth, back]
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            self._connections.discard(connection)
            self._ended.discard(writer)
            connection.abort_writers()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool = False) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_when_due(queue, writer))
            while data := await reader.read(_CHUNK_BYTES):
                await queue.put((loop.time() + self._delay_s, self._maybe_corrupted(data) if to_client else data))
            await queue.put((loop.time() + self._delay_s, b""))

    def _maybe_corrupted(self, data: bytes) -> bytes:
        after_bytes = self._corrupt_after_bytes
        if after_bytes is None or self.forwarded_bytes < after_bytes or len(data) < _LEAST_CORRUPTED_BYTES:
            return data
        self._corrupt_after_bytes = None
        self.corrupted_bytes += 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]

    async def _write_when_due(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await queue.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            await self._flowing.wait()
            if writer in self._ended:
                continue
            if not data:
                writer.write_eof()
                return
            if self._bytes_per_s is not None:
                await asyncio.sleep(len(data) / self._bytes_per_s)
            writer.write(data)
            await writer.drain()
            self.forwarded_bytes += len(data)
