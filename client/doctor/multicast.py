"""Whether multicast DNS works on this machine's interfaces: what is sent is heard, and others are heard.

A host always hears its own multicast packets, whatever the network does with them. So what shows that the network between drops multicast
is the silence of a coordinator that answers the same question when it is asked directly.
"""

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dairllm.mesh.discovery.records import SERVICE_TYPE

GROUP = "224.0.0.251"
PORT = 5353
_IP_MULTICAST_ALL = 49
"""Linux, missing in Python's socket module: when off, a socket hears only the interfaces that it joined the group on."""
_TYPE_PTR, _CLASS_IN = 12, 1
_IS_RESPONSE = 0x8000
MAX_PACKET_BYTES = 9000


@dataclass(frozen=True, slots=True)
class MulticastSeen:
    """One interface. error: why it could not be tried, '' if it could. others: hosts whose multicast DNS was heard on it."""

    interface: str
    address: str
    error: str
    heard_itself: bool
    others: tuple[str, ...] = ()


async def probe_multicast(interface: str, address: str, own_addresses: frozenset[str], duration_s: float) -> MulticastSeen:
    """Ask for coordinators on the interface of this IPv4 address and listen for `duration_s`."""
    query_id = new_query_id()
    try:
        with _listening_socket(address) as listening, _sending_socket(address) as sending:
            sending.sendto(query(query_id), (GROUP, PORT))
            heard_itself, others = await _listen(listening, query_id, own_addresses, duration_s)
    except OSError as error:
        return MulticastSeen(interface, address, error.strerror or str(error), False)
    return MulticastSeen(interface, address, "", heard_itself, others)


def query(query_id: int, service: str = SERVICE_TYPE) -> bytes:
    """A question for the instances of a service: RFC 1035, section 4.1."""
    labels = b"".join(bytes([len(label)]) + label for label in service.rstrip(".").encode().split(b"."))
    return struct.pack(">6H", query_id, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", _TYPE_PTR, _CLASS_IN)


def is_response(packet: bytes, query_id: int) -> bool:
    return len(packet) >= 12 and int.from_bytes(packet[:2], "big") == query_id and bool(int.from_bytes(packet[2:4], "big") & _IS_RESPONSE)


def new_query_id() -> int:
    return 1 + secrets.randbelow(0xFFFF)


async def _listen(
    listening: socket.socket, query_id: int, own_addresses: frozenset[str], duration_s: float
) -> tuple[bool, tuple[str, ...]]:
    heard_itself, others = False, set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(duration_s):
            while True:
                packet, (host, *_) = await asyncio.get_running_loop().sock_recvfrom(listening, MAX_PACKET_BYTES)
                if host not in own_addresses:
                    others.add(host)
                elif packet[:2] == query_id.to_bytes(2, "big"):
                    heard_itself = True
    return heard_itself, tuple(sorted(others))


@contextlib.contextmanager
def _listening_socket(address: str) -> Iterator[socket.socket]:
    with _shared_socket() as listening:
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        listening.bind(("", PORT))
        membership = socket.inet_aton(GROUP) + socket.inet_aton(address)
        listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        yield listening


@contextlib.contextmanager
def _sending_socket(address: str) -> Iterator[socket.socket]:
    """From port 5353, so that answers come by multicast."""
    with _shared_socket() as sending:
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        sending.bind((address, PORT))
        yield sending


@contextlib.contextmanager
def _shared_socket() -> Iterator[socket.socket]:
    """Port 5353 is shared by all programs that speak multicast DNS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as shared:
        shared.setblocking(False)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield shared


def heard_others(seen: Sequence[MulticastSeen]) -> tuple[str, ...]:
    return tuple(sorted({host for entry in seen for host in entry.others}))
