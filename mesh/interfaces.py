"""Network interfaces of this machine that other machines may reach."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

_VIRTUAL = re.compile(r"docker|br-[0-9a-f]{12}$|veth|virbr|vnet|lxcbr|lxdbr|podman|cni|flannel|cali|vboxnet|vmnet|tun|tap|wg|tailscale|zt")
"""Interfaces of containers, virtual machines and tunnels."""
_IPV4_ROUTES = Path("/proc/net/route")
_IPV6_ROUTES = Path("/proc/net/ipv6_route")
_LOOPBACK_IPV6_ROUTE_INTERFACE = "lo"


EVERY_ADDRESS = ("", "0.0.0.0", "::")
"""What servers listen on to be reached at all addresses of this machine."""


class InterfaceAddress(NamedTuple):
    interface: str
    address: str


def real_interface_addresses() -> list[str]:
    """Addresses of this machine on real networks: the default route's interface first, IPv4 before IPv6; none of loopback.

    Interfaces that belong to containers, virtual machines and tunnels are left out, unless they carry the default route or there is no
    other: inside a container or a network namespace a virtual interface is the real one. IPv6 link-local addresses are left out, for
    they mean nothing without the other side's interface.
    """
    return [entry.address for entry in real_interfaces()]


async def announced_addresses(host: str) -> tuple[str, ...]:
    """IP addresses at which a server that listens on this host, a name or an address, can be reached; loopback alone for an unknown name.

    Empty for all addresses of this machine, whatever they become.
    """
    if host in EVERY_ADDRESS:
        return ()
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ("127.0.0.1",)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def real_interfaces() -> list[InterfaceAddress]:
    """As `real_interface_addresses`, with the interfaces' names."""
    found = list(_reachable_addresses())
    with_default_route = _default_route_interfaces()
    real = [entry for entry in found if entry.interface in with_default_route or not _VIRTUAL.match(entry.interface)] or found
    return sorted(real, key=lambda entry: (entry.interface not in with_default_route, ":" in entry.address))


def _reachable_addresses() -> Iterator[InterfaceAddress]:
    states = psutil.net_if_stats()
    for interface, addresses in sorted(psutil.net_if_addrs().items()):
        if interface in states and not states[interface].isup:
            continue
        for entry in addresses:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and _is_reachable(entry.address):
                yield InterfaceAddress(interface, entry.address)


def _is_reachable(address: str) -> bool:
    """IPv4 link-local counts: two machines on one cable without DHCP have nothing else."""
    if "%" in address:
        return False
    ip = ipaddress.ip_address(address)
    return not (ip.is_loopback or ip.is_unspecified or ip.is_multicast or (ip.version == 6 and ip.is_link_local))


def _default_route_interfaces() -> frozenset[str]:
    """Known on Linux only; elsewhere no interface is preferred."""
    ipv4 = (fields[0] for fields in _table(_IPV4_ROUTES) if len(fields) > 7 and fields[1] == fields[7] == "00000000")
    ipv6 = (fields[9] for fields in _table(_IPV6_ROUTES) if len(fields) > 9 and int(fields[0], 16) == int(fields[1], 16) == 0)
    return frozenset({*ipv4, *ipv6}) - {_LOOPBACK_IPV6_ROUTE_INTERFACE}


def _table(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
