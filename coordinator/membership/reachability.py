"""Which address of a member another member should dial. Pure.

A loopback address means something else on every host, so it is only given to members of the coordinator's own host: the one that the
member named, since it may listen at no other, else the usual one. For the others the host that the coordinator sees a shard at comes
first: it is known to work from at least one other machine.
"""

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from dairllm.mesh.addresses import Address, parse_address
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.peers import COORDINATOR_NAME

MAX_ADDRESSES = 32


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is: what it says of itself, "host:port", and the host that its connection comes from."""

    addresses: tuple[str, ...]
    observed_host: str

    def is_on(self, own_hosts: Collection[str]) -> bool:
        """Whether it is on the coordinator's host, whose addresses are `own_hosts`."""
        return is_loopback(self.observed_host) or self.observed_host in own_hosts


class Places:
    """Where the coordinator and its members are. own_addresses: "host:port", loopback included; own_hosts: addresses of its machine."""

    def __init__(self, own_addresses: tuple[str, ...], own_hosts: Collection[str]) -> None:
        self._own_hosts = own_hosts
        self._places = {COORDINATOR_NAME: Place(own_addresses, "127.0.0.1")}

    def note(self, name: str, place: Place) -> None:
        self._places[name] = place

    def forget(self, name: str) -> None:
        del self._places[name]

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def addresses(self, source: str, target: str) -> tuple[str, ...]:
        """Where `source` should dial `target`, best first. Nothing is known of members that are away."""
        nowhere = Place((), "")
        return addresses_from(self._places.get(source, nowhere), self._places.get(target, nowhere), self._own_hosts)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of_peer(peer: str) -> str:
    """The host in what gRPC calls a peer: "ipv4:10.0.0.5:41234" or "ipv6:%5Bfe80::1%5D:41234". An IPv4 address that came in over IPv6 is
    given as IPv4; '' for anything else."""
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return ""
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return host.removeprefix("::ffff:") if "." in host else host


def addresses_from(source: Place, target: Place, own_hosts: Collection[str]) -> tuple[str, ...]:
    """Addresses of `target` that `source` should dial, best first, without repetition."""
    parsed = _parse(target.addresses)
    ports = list(dict.fromkeys(address.port for address in parsed))
    outside = [address for address in parsed if not is_loopback(address.host)]
    if not is_loopback(target.observed_host) and target.observed_host:
        outside = [Address(target.observed_host, port) for port in ports] + outside
    if source.is_on(own_hosts) and target.is_on(own_hosts):
        named = [address for address in parsed if is_loopback(address.host)]
        outside = (named or [Address("127.0.0.1", port) for port in ports]) + outside
    return tuple(dict.fromkeys(str(address) for address in outside))[:MAX_ADDRESSES]


def _parse(addresses: Sequence[str]) -> list[Address]:
    """What cannot be an address is passed over: it comes from another machine."""
    return [address for address in map(_parse_or_none, addresses[:MAX_ADDRESSES]) if address is not None]


def _parse_or_none(text: str) -> Address | None:
    try:
        return parse_address(text)
    except InvalidSetting:
        return None


def advertised(hosts: Iterable[str], port: int) -> tuple[str, ...]:
    return tuple(str(Address(host, port)) for host in hosts)
