"""How a shard finds the coordinator on the local network: multicast DNS (RFC 6762) and service discovery (RFC 6763).

The coordinator announces an instance of SERVICE_TYPE. Its text record says `role=coordinator`, `id`, `cluster` (a hash of the cluster's
name) and `proto`; never a secret. Both sides use all real interfaces and loopback, so that processes on one machine find each
other without a network; both follow interfaces that come and go. Where multicast is blocked nothing is found and nothing fails.
"""

import asyncio
import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from zeroconf import DNSQuestionType, Error, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from dairllm.mesh.addresses import Address
from dairllm.mesh.interfaces import InterfaceAddress, real_interface_addresses, real_interfaces
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR
from dairllm.mesh.telemetry import fields, get_logger

__all__ = ["SERVICE_TYPE", "Announcement", "Announcer", "Browser", "DiscoveredCoordinator", "real_interface_addresses"]

SERVICE_TYPE = "_dairllm._tcp.local."
LOOPBACK = "127.0.0.1"

_ROLE = "coordinator"
_RECORD_TTL_S = 30
"""Short, since a killed coordinator can't take its records back."""
_FOLLOW_INTERFACES_S = 2.0
_BROWSE_AGAIN_S = 8.0
"""A browser asks after 0, 1, 3 and 7 s and then only listens; a new one begins again."""
_RESOLVE_TIMEOUT_S = 3.0
_CLOSE_TIMEOUT_S = 3.0
_RETRY_S = 2.0
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a coordinator says of itself.

    coordinator_id: new with every start of the process; 1 to 63 letters, digits, `-` and `_`.
    addresses: IP addresses at which `port` can be reached; empty for all of this machine, whatever they become.
    """

    coordinator_id: str
    cluster_hash: str
    port: int
    addresses: tuple[str, ...] = ()
    protocol: str = f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"

    def __post_init__(self) -> None:
        assert _ID.fullmatch(self.coordinator_id), self.coordinator_id

    @property
    def instance_name(self) -> str:
        return f"{self.coordinator_id}.{SERVICE_TYPE}"


@dataclass(frozen=True, slots=True)
class DiscoveredCoordinator:
    """addresses: all that it announced, each "host:port", for `channels.dial`."""

    coordinator_id: str
    cluster_hash: str
    protocol: str
    addresses: tuple[str, ...]


class _Presence(ABC):
    """An mDNS endpoint on the interfaces that this machine has at present."""

    def __init__(self, choose_interfaces: Callable[[], list[str | int]]) -> None:
        self._choose_interfaces = choose_interfaces
        self._interfaces: list[str | int] = []
        self._endpoint: AsyncZeroconf | None = None
        self._following: asyncio.Task[None] | None = None

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
    async def _refresh(self) -> None:
        """Called every few seconds while there is an endpoint."""

    async def _follow_interfaces(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_INTERFACES_S)
            await self._follow_interfaces_once()

    async def _follow_interfaces_once(self) -> None:
        interfaces = self._choose_interfaces()
        if interfaces == self._interfaces and self._endpoint is not None:
            await self._refresh()
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


def _multicast_interfaces() -> list[str | int]:
    """One address of every real interface, IPv4 where it has one, and loopback."""
    chosen: dict[str, str | int] = {}
    entry: InterfaceAddress
    for entry in sorted(real_interfaces(), key=lambda entry: (":" in entry.address, entry.address)):
        chosen.setdefault(entry.interface, entry.address)
    return [*chosen.values(), LOOPBACK]


class Announcer(_Presence):
    """Announces a coordinator from `start` to `stop`, and answers whoever asks."""

    def __init__(self, announcement: Announcement) -> None:
        super().__init__(self._interfaces_of_addresses)
        self._announcement = announcement
        self._announced: tuple[str, ...] = ()

    def _addresses(self) -> tuple[str, ...]:
        """Loopback only where there is nothing else: to another machine it would mean that machine itself."""
        return self._announcement.addresses or tuple(real_interface_addresses()) or (LOOPBACK,)

    def _interfaces_of_addresses(self) -> list[str | int]:
        return [LOOPBACK] if self._addresses() == (LOOPBACK,) else _multicast_interfaces()

    def _service_info(self) -> AsyncServiceInfo:
        said = self._announcement
        return AsyncServiceInfo(
            SERVICE_TYPE,
            said.instance_name,
            port=said.port,
            parsed_addresses=list(self._announced),
            server=f"{said.coordinator_id}.local.",
            properties={"role": _ROLE, "id": said.coordinator_id, "cluster": said.cluster_hash, "proto": said.protocol},
            host_ttl=_RECORD_TTL_S,
            other_ttl=_RECORD_TTL_S,
        )

    async def _attach(self, endpoint: AsyncZeroconf) -> None:
        self._announced = self._addresses()
        # Ids are unique, so nobody is asked whether the name is free: that would take longer than finding.
        await endpoint.async_register_service(self._service_info(), cooperating_responders=True)

    async def _detach(self) -> None:
        """Closing the endpoint takes the records back."""

    async def _refresh(self) -> None:
        if self._addresses() != self._announced and self._endpoint is not None:
            self._announced = self._addresses()
            await self._endpoint.async_update_service(self._service_info())


@dataclass(slots=True)
class _Candidate:
    coordinator: DiscoveredCoordinator
    order: int
    tried_at_s: float | None = None


class Browser(_Presence):
    """Looks for coordinators of one cluster from `start` to `stop`."""

    def __init__(self, cluster_hash: str) -> None:
        super().__init__(_multicast_interfaces)
        self._cluster_hash = cluster_hash
        self._candidates: dict[str, _Candidate] = {}
        self._foreign: dict[str, DiscoveredCoordinator] = {}
        self._num_seen = 0
        self._changed = asyncio.Event()
        self._browser: AsyncServiceBrowser | None = None
        self._browsing_since_s = 0.0
        self._resolving: set[asyncio.Task[None]] = set()

    @property
    def foreign(self) -> tuple[DiscoveredCoordinator, ...]:
        """Coordinators of other clusters on this network, for a message to someone who wonders why nothing is found."""
        return tuple(self._foreign.values())

    async def found(self) -> AsyncIterator[DiscoveredCoordinator]:
        """Coordinators to try, one after the other; without end: the caller leaves when one has worked, or when its time is over.

        The newest first: an older one is likely the record of a process that was killed. One that was tried comes again after two
        seconds, or at once if it announces new addresses, after those that were not tried.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            candidate = self._next(loop.time())
            if candidate is not None:
                candidate.tried_at_s = loop.time()
                yield candidate.coordinator
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S / 4 if self._candidates else None):
                    await self._changed.wait()

    def _next(self, now_s: float) -> _Candidate | None:
        ready = [c for c in self._candidates.values() if c.tried_at_s is None or now_s - c.tried_at_s >= _RETRY_S]
        return max(ready, key=lambda c: (c.tried_at_s is None, c.order), default=None)

    async def _attach(self, endpoint: AsyncZeroconf) -> None:
        self._browsing_since_s = asyncio.get_running_loop().time()
        # Questions for multicast answers only: a unicast answer may reach another process on this machine that shares the port.
        self._browser = AsyncServiceBrowser(
            endpoint.zeroconf, SERVICE_TYPE, handlers=[self._on_service_state_change], question_type=DNSQuestionType.QM
        )

    async def _detach(self) -> None:
        browser, self._browser = self._browser, None
        for task in self._resolving:
            task.cancel()
        await asyncio.gather(*self._resolving, return_exceptions=True)
        if browser is not None:
            await browser.async_cancel()

    async def _refresh(self) -> None:
        if asyncio.get_running_loop().time() - self._browsing_since_s >= _BROWSE_AGAIN_S and self._endpoint is not None:
            await self._detach()
            await self._attach(self._endpoint)

    def _on_service_state_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            self._candidates.pop(name, None)
            self._foreign.pop(name, None)
            return
        task = asyncio.create_task(self._resolve(zeroconf, name), name="mdns-resolve")
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if not await info.async_request(zeroconf, _RESOLVE_TIMEOUT_S * 1000, question_type=DNSQuestionType.QM):
            return
        coordinator = _coordinator_of(info)
        if coordinator is None:
            logger.debug("a record is not of a coordinator", extra=fields(record=name))
        elif coordinator.cluster_hash != self._cluster_hash:
            self._foreign[name] = coordinator
        else:
            self._take(name, coordinator)

    def _take(self, name: str, coordinator: DiscoveredCoordinator) -> None:
        known = self._candidates.get(name)
        if known is None or known.coordinator != coordinator:
            self._num_seen += 1
            self._candidates[name] = _Candidate(coordinator, self._num_seen)
            self._changed.set()


def _coordinator_of(info: AsyncServiceInfo) -> DiscoveredCoordinator | None:
    """None for a record that is not as `Announcer` writes it: anybody can announce anything."""
    text = info.decoded_properties
    values = {key: text.get(key) or "" for key in ("role", "id", "cluster", "proto")}
    hosts = [host for host in info.parsed_scoped_addresses(IPVersion.All) if not host.lower().startswith("fe80")]
    if values["role"] != _ROLE or not _ID.fullmatch(values["id"]) or not info.port or not hosts:
        return None
    addresses = tuple(str(Address(host, info.port)) for host in hosts)
    return DiscoveredCoordinator(values["id"], values["cluster"], values["proto"], addresses)
