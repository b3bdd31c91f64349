"""An mDNS endpoint on the interfaces that this machine has at present."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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


class Presence(ABC):
    def __init__(self, choose_interfaces: Callable[[], list[str | int]]) -> None:
        self._choose_interfaces = choose_interfaces
        self._interfaces: list[str | int] = []
        self._endpoint: AsyncZeroconf | None = None
        self._following: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

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

    @abstractmethod
    async def _attach(self, endpoint: AsyncZeroconf) -> None:
        """Use a new endpoint."""

    @abstractmethod
    async def _detach(self) -> None:
        """The endpoint is about to be closed."""

    @abstractmethod
    async def _refresh(self, endpoint: AsyncZeroconf) -> None:
        """Called every few seconds while there is an endpoint, and soon after `_hurry` was set."""

    async def _follow_interfaces(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_INTERFACES_S):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._follow_interfaces_once()

    async def _follow_interfaces_once(self) -> None:
        interfaces = self._choose_interfaces()
        if interfaces == self._interfaces and self._endpoint is not None:
            await self._refresh(self._endpoint)
            return
        await self._close()
        try:
            self._endpoint = _open_endpoint(interfaces)
            await self._attach(self._endpoint)
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
                await self._detach()
                await endpoint.async_close()


def _open_endpoint(interfaces: Sequence[str | int]) -> AsyncZeroconf:
    version = IPVersion.All if any(isinstance(interface, int) or ":" in interface for interface in interfaces) else IPVersion.V4Only
    return AsyncZeroconf(interfaces=list(interfaces), ip_version=version)


def multicast_interfaces() -> list[str | int]:
    """One address of every real interface, IPv4 where it has one, and loopback."""
    chosen: dict[str, str | int] = {}
    entry: InterfaceAddress
    for entry in sorted(real_interfaces(), key=lambda entry: (":" in entry.address, entry.address)):
        chosen.setdefault(entry.interface, entry.address)
    return [*chosen.values(), LOOPBACK]
