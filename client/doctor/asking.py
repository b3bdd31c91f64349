"""Questions for coordinators from a port of the asker's own, which are answered to the asker alone (RFC 6762, sections 5.5 and 6.7).

Such an answer comes back by unicast. So one to a question asked by multicast shows that multicast passes from here to there, whether or not
it passes back; one to a question asked of a host alone shows that a responder is there at all.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zeroconf._dns import DNSAddress, DNSPointer, DNSRecord, DNSService, DNSText
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf.asyncio import AsyncServiceInfo

from dairllm.client.doctor.multicast import GROUP, MAX_PACKET_BYTES, PORT, is_response, new_query_id, query
from dairllm.mesh.discovery.reading import read_coordinator, record_of
from dairllm.mesh.discovery.records import SERVICE_TYPE, DiscoveredCoordinator

_ASK_AGAIN_S = 0.4


@dataclass(frozen=True, slots=True)
class Answered:
    """Processes of dairllm that hear what this machine sends by multicast.

    hosts: where they are. coordinators: those among them, of any cluster.
    """

    hosts: frozenset[str] = frozenset()
    coordinators: frozenset[DiscoveredCoordinator] = frozenset()

    def __or__(self, other: "Answered") -> "Answered":
        return Answered(self.hosts | other.hosts, self.coordinators | other.coordinators)


async def ask_by_multicast(address: str, own_addresses: frozenset[str], duration_s: float) -> Answered:
    """Ask on the interface of this IPv4 address until the time is over. Nobody answers where multicast can't be used."""
    answered = Answered()

    def note(answer: bytes, host: str) -> bool:
        nonlocal answered
        if host not in own_addresses:
            answered |= Answered(frozenset({host}), coordinators_in(answer))
        return False

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        asking.bind((address, 0))
        await _ask(asking, GROUP, duration_s, note)
    return answered


async def answers_directly(host: str, timeout_s: float) -> bool:
    """Whether the responder for multicast DNS on this IPv4 host answers a question that is sent to it alone."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return await _ask(asking, host, timeout_s, lambda answer, sender: True)
    return False


async def _ask(asking: socket.socket, whom: str, duration_s: float, is_enough: Callable[[bytes, str], bool]) -> bool:
    """Ask this host or group, again and again, until an answer is enough or the time is over. Which of them it was is returned.

    is_enough: takes an answer and the address that it came from.
    """
    query_id = new_query_id()
    loop = asyncio.get_running_loop()
    asking.setblocking(False)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(duration_s):
            while True:
                asking.sendto(query(query_id), (whom, PORT))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ASK_AGAIN_S):
                        while True:
                            packet, (host, *_) = await loop.sock_recvfrom(asking, MAX_PACKET_BYTES)
                            if is_response(packet, query_id) and is_enough(packet, host):
                                return True
    return False


def coordinators_in(packet: bytes) -> frozenset[DiscoveredCoordinator]:
    """Those of an mDNS answer that has their records whole."""
    message = DNSIncoming(packet)
    records = message.answers() if message.valid else []
    names = {record.alias for record in records if isinstance(record, DNSPointer) and record.name == SERVICE_TYPE}
    found = (read_coordinator(info) for name in names if (info := _info(name, records)) is not None)
    return frozenset(coordinator for coordinator in found if coordinator is not None)


def _info(name: str, records: Iterable[DNSRecord]) -> AsyncServiceInfo | None:
    place = next((record for record in records if isinstance(record, DNSService) and record.name == name), None)
    text = next((record for record in records if isinstance(record, DNSText) and record.name == name), None)
    if place is None or text is None or not name.endswith(f".{SERVICE_TYPE}"):
        return None
    addresses = [record.address for record in records if isinstance(record, DNSAddress) and record.name == place.server]
    return record_of(name, port=place.port, properties=text.text, addresses=addresses, server=place.server)
