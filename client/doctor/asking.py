"""Questions asked by multicast from a port of the asker's own, which are answered to the asker alone (RFC 6762, section 6.7).

Such an answer comes back by unicast. So it shows that multicast passes from here to there, whether or not it passes back.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from zeroconf._dns import DNSAddress, DNSPointer, DNSRecord, DNSService, DNSText
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf.asyncio import AsyncServiceInfo

from dairllm.client.doctor.multicast import GROUP, MAX_PACKET_BYTES, PORT, is_response, new_query_id, query
from dairllm.mesh.discovery.reading import read_coordinator, record_of
from dairllm.mesh.discovery.records import SERVICE_TYPE, DiscoveredCoordinator

_ASK_AGAIN_S = 0.5


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
    query_id = new_query_id()
    loop = asyncio.get_running_loop()
    answered = Answered()
    with contextlib.suppress(OSError, TimeoutError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        asking.bind((address, 0))
        async with asyncio.timeout(duration_s):
            while True:
                asking.sendto(query(query_id), (GROUP, PORT))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ASK_AGAIN_S):
                        while True:
                            packet, (host, *_) = await loop.sock_recvfrom(asking, MAX_PACKET_BYTES)
                            if host not in own_addresses and is_response(packet, query_id):
                                answered |= Answered(frozenset({host}), coordinators_in(packet))
    return answered


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
