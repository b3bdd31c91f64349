"""An mDNS endpoint on the interfaces that this machine has at present."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from zeroconf import Error, IPVersion
from zeroconf.asyncio import AsyncZeroconf

from dairllm.mesh.interfaces import InterfaceAddress, real_interfaces
from dairllm.mesh.telemetry import fields, get_logger

LOOPBACK = "127.0.0.1"

_FOLLOW_INTERFACES_S = 2.0
_CLOSE_TIMEOUT_S = 3.0

logger = get_logger(__name__)


class Part(ABC):
    """What uses an endpoint: an announcer or a browser. hurry: set when it has something to do soon."""

    def __init__(self) -> None:
        self.hurry = asyncio.Event()
        self._alone: Presence | None = None

    @property
    def is_local(self) -> bool:
        """Whether it concerns this machine alone, so that nothing may go to a network."""
        return False

    @abstractmethod
    async def attach(self, endpoint: AsyncZeroconf) -> None:
        """Use a new endpoint."""

    @abstractmethod
    async def detach(self) -> None:
        """The endpoint is about to be closed."""

    @abstractmethod
    async def refresh(self, endpoint: AsyncZeroconf) -> None:
        """Called every few seconds while there is an endpoint, and soon after `hurry` was set."""

    async def start(self) -> None:
        """As a `Presence` of its own."""
        self._alone = Presence(self)
        await self._alone.start()

    async def stop(self) -> None:
        if self._alone is not None:
            await self._alone.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.stop()


class Presence:
    """One endpoint for several parts. A process has one: of several that share the port, a question that is sent to this machine alone
    reaches only one, which may not know the answer."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts
        self._interfaces: list[str | int] = []
        self._endpoint: AsyncZeroconf | None = None
        self._following: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        for part in parts:
            part.hurry = self._hurry

    async def start(self) -> None:
        """Returns once the first packets are on their way. An interface or a system that permits no multicast is logged, not raised."""
        await self._follow_interfaces_once()
        self._following = asyncio.create_task(self._follow_interfaces(), name="mdns-interfaces")

    async def stop(self) -> None:
        """Says goodbye. Takes at most a few seconds; may be called again."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            self._following = None
        await self._close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.stop()

    async def _follow_interfaces(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_INTERFACES_S):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._follow_interfaces_once()

    async def _follow_interfaces_once(self) -> None:
        interfaces: list[str | int] = [LOOPBACK] if any(part.is_local for part in self._parts) else _multicast_interfaces()
        if interfaces == self._interfaces and self._endpoint is not None:
            for part in self._parts:
                await part.refresh(self._endpoint)
            return
        await self._close()
        try:
            self._endpoint = _open_endpoint(interfaces)
            for part in self._parts:
                await part.attach(self._endpoint)
        except (OSError, Error) as error:
            if interfaces != self._interfaces:  # say it once
                logger.warning("multicast does not work here", extra=fields(interfaces=interfaces, error=error))
        self._interfaces = interfaces

    async def _close(self) -> None:
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        with contextlib.suppress(TimeoutError, OSError, Error):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                for part in self._parts:
                    await part.detach()
                await endpoint.async_close()


def _open_endpoint(interfaces: Sequence[str | int]) -> AsyncZeroconf:
    version = IPVersion.All if any(isinstance(interface, int) or ":" in interface for interface in interfaces) else IPVersion.V4Only
    return AsyncZeroconf(interfaces=list(interfaces), ip_version=version)


def _multicast_interfaces() -> list[str | int]:
    """One address of every real interface, IPv4 where it has one, and loopback."""
    chosen: dict[str, str | int] = {}
    entry: InterfaceAddress
    for entry in sorted(real_interfaces(), key=lambda entry: (":" in entry.address, entry.address)):
        chosen.setdefault(entry.interface, entry.address)
    return [*chosen.values(), LOOPBACK]
