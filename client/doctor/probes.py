"""What `dairllm doctor` tries: connections, questions, searches. Each returns what it saw and judges nothing; each ends in time."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dairllm.mesh.addresses import Address, parse_address
from dairllm.mesh.channels import open_channel
from dairllm.mesh.discovery.browsers import Browser
from dairllm.mesh.discovery.records import DiscoveredCoordinator
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.interfaces import real_interfaces
from dairllm.mesh.streams import next_message
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc

CONNECT_S = 2.5
ASK_S = 2.0
_LINGER_S = 0.5
"""After the first coordinator was found: others of the network answer about as fast."""
_NEIGHBOURS = Path("/proc/net/arp")


@dataclass(frozen=True, slots=True)
class InterfaceSeen:
    """skipped: why it is not used, '' if it is."""

    name: str
    addresses: tuple[str, ...]
    skipped: str


def see_interfaces() -> list[InterfaceSeen]:
    """All interfaces but loopback, used ones first."""
    used: dict[str, list[str]] = {}
    for entry in real_interfaces():
        used.setdefault(entry.interface, []).append(entry.address)
    seen = [InterfaceSeen(name, tuple(addresses), "") for name, addresses in used.items()]
    states = psutil.net_if_stats()
    for name, entries in sorted(psutil.net_if_addrs().items()):
        addresses = tuple(entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6))
        if name not in used and not any(_is_loopback(address) for address in addresses):
            seen.append(InterfaceSeen(name, addresses, _why_skipped(name not in states or states[name].isup, addresses)))
    return seen


def _why_skipped(is_up: bool, addresses: Sequence[str]) -> str:
    if not is_up:
        return "it is down"
    if all("%" in address for address in addresses):
        return "it has no address that other machines could use"
    return "it belongs to containers, virtual machines or a tunnel"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def own_addresses() -> frozenset[str]:
    """Every address of this machine, loopback included."""
    families = (socket.AF_INET, socket.AF_INET6)
    return frozenset(entry.address for entries in psutil.net_if_addrs().values() for entry in entries if entry.family in families)


class Outcome(Enum):
    """How an attempt to connect ended."""

    OPEN = "open"
    REFUSED = "refused"
    NO_ANSWER = "no answer"
    NO_ROUTE = "no route"
    ABSENT = "absent"
    FORBIDDEN = "forbidden here"
    NO_SUCH_HOST = "no such host"


_OUTCOMES = {
    errno.ECONNREFUSED: Outcome.REFUSED,
    errno.ECONNRESET: Outcome.REFUSED,
    errno.ETIMEDOUT: Outcome.NO_ANSWER,
    errno.ENETUNREACH: Outcome.NO_ROUTE,
    errno.EHOSTUNREACH: Outcome.NO_ROUTE,
    errno.EADDRNOTAVAIL: Outcome.NO_ROUTE,
    errno.EACCES: Outcome.FORBIDDEN,
    errno.EPERM: Outcome.FORBIDDEN,
}


@dataclass(frozen=True, slots=True)
class Reach:
    address: str
    outcome: Outcome


async def try_all(addresses: Sequence[str], timeout_s: float = CONNECT_S) -> tuple[Reach, ...]:
    """Connect to each "host:port" at the same time."""
    return tuple(await asyncio.gather(*(try_connect(address, timeout_s) for address in dict.fromkeys(addresses))))


async def try_connect(address: str, timeout_s: float = CONNECT_S) -> Reach:
    """Connect by TCP and hang up. Of a name with several addresses the best outcome counts."""
    loop = asyncio.get_running_loop()
    try:
        target = parse_address(address)
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, InvalidSetting):  # TimeoutError is an OSError
        return Reach(address, Outcome.NO_SUCH_HOST)
    outcomes = await asyncio.gather(*(_connect(family, where, timeout_s) for family, _, _, _, where in found))
    return Reach(address, min(outcomes, key=list(Outcome).index))


async def _connect(family: int, where: Any, timeout_s: float) -> Outcome:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connecting:
            connecting.setblocking(False)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(connecting, where)
            return Outcome.OPEN
    except TimeoutError:
        return Outcome.ABSENT if is_absent_neighbour(where[0], _read(_NEIGHBOURS)) else Outcome.NO_ANSWER
    except OSError as error:
        return _OUTCOMES.get(error.errno or 0, Outcome.NO_ROUTE)


def is_absent_neighbour(host: str, arp_table: str) -> bool:
    """Whether a host of the local network does not even say its hardware address: /proc/net/arp has it without the flag 'complete'."""
    rows = [line.split() for line in arp_table.splitlines()[1:]]
    return any(len(row) > 2 and row[0] == host and not int(row[2], 16) & 0x2 for row in rows)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class CoordinatorAnswer:
    """What a coordinator says of itself and its cluster. ahead_s: its clock minus ours; None if it does not tell."""

    address: str
    state: cluster_pb2.ClusterState
    identity: cluster_pb2.CoordinatorIdentity | None
    ahead_s: float | None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A port that is open, but gave no answer of a coordinator. services: what it offers instead, if it says."""

    address: str
    reason: str
    services: tuple[str, ...] = ()


async def ask_coordinator(address: str, timeout_s: float = ASK_S) -> CoordinatorAnswer | NoAnswer:
    async with open_channel(address) as channel:
        call = cluster_pb2_grpc.ClusterServiceStub(channel).WatchCluster(cluster_pb2.WatchClusterRequest(once=True), timeout=timeout_s)
        asked_s = time.time()
        try:
            response = await next_message(call)
        except grpc.aio.AioRpcError as error:
            services = await _services(channel, timeout_s) if error.code() is grpc.StatusCode.UNIMPLEMENTED else ()
            details = " ".join((error.details() or "").split())
            return NoAnswer(address, f"{error.code().name}: {details}", services)
        answered_s = time.time()
    if response is None:
        return NoAnswer(address, "it ended WatchCluster without a message")
    identity = response.coordinator if response.HasField("coordinator") else None
    ahead_s = identity.time_s - (asked_s + answered_s) / 2 if identity and identity.time_s else None
    return CoordinatorAnswer(address, response.state, identity, ahead_s)


async def _services(channel: grpc.aio.Channel, timeout_s: float) -> tuple[str, ...]:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stubs: Any = reflection_pb2_grpc
    call = stubs.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=timeout_s)
    with contextlib.suppress(grpc.aio.AioRpcError):
        response = await next_message(call)
        if response is not None:
            return tuple(service.name for service in response.list_services_response.service)
    return ()


@dataclass(frozen=True, slots=True)
class Browsed:
    """Coordinators that announce themselves by multicast DNS: of this cluster, and of others."""

    own: tuple[DiscoveredCoordinator, ...] = ()
    foreign: tuple[DiscoveredCoordinator, ...] = ()


async def browse(cluster_hash: str, duration_s: float) -> Browsed:
    own: dict[str, DiscoveredCoordinator] = {}
    async with Browser(cluster_hash) as browser:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(duration_s) as limit:
                async for coordinator in browser.found():
                    if not own:
                        limit.reschedule(min(limit.when() or 0.0, asyncio.get_running_loop().time() + _LINGER_S))
                    own[coordinator.coordinator_id] = coordinator
        return Browsed(tuple(own.values()), browser.foreign)


@dataclass(frozen=True, slots=True)
class PortSeen:
    """A TCP port that a program of dairllm uses by default. holder: the program that has it, '' if it is free or hidden from us."""

    port: int
    purpose: str
    is_free: bool
    holder: str = ""


def see_port(port: int, purpose: str) -> PortSeen:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("0.0.0.0", port))
            listening.listen(1)
        except OSError:
            return PortSeen(port, purpose, False, _holder(port))
    return PortSeen(port, purpose, True)


def _holder(port: int) -> str:
    """Programs of other users are hidden from anyone but root."""
    with contextlib.suppress(psutil.Error):
        for entry in psutil.net_connections("tcp"):
            if entry.status == psutil.CONN_LISTEN and entry.laddr and entry.laddr.port == port and entry.pid:
                return " ".join(psutil.Process(entry.pid).cmdline()[:4])
    return ""


def hosts_of(addresses: Sequence[str]) -> tuple[str, ...]:
    """The hosts of "host:port" texts, each once; what is no address is passed over."""
    hosts = []
    for text in addresses:
        with contextlib.suppress(InvalidSetting):
            hosts.append(parse_address(text).host)
    return tuple(dict.fromkeys(hosts))


def local_address(port: int) -> str:
    return str(Address("127.0.0.1", port))
