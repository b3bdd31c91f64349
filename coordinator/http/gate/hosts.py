"""Which names of this server are real ones.

A page from elsewhere can make a browser take its own name for an address of this machine (DNS rebinding), and read what comes back as its
own. The browser still says by which name it asks, in `Host`. Addresses cannot be rebound.
"""

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from dairllm.mesh.errors import InvalidSetting

ANY = "*"
_AUTHORITY = re.compile(r"(\[[0-9a-f:.%a-z]+\]|[^\s:/?#@\[\]]+)(?::([0-9]{0,5}))?")


class Authority(NamedTuple):
    """host: in lower case, an IPv6 address without brackets. port: None for the scheme's own."""

    host: str
    port: int | None


def parse_authority(text: str) -> Authority | None:
    """Of a `Host` or a URL; None if it is none."""
    found = _AUTHORITY.fullmatch(text.strip().lower())
    if found is None:
        return None
    return Authority(found[1].strip("[]").removesuffix("."), int(found[2]) if found[2] else None)


@dataclass(frozen=True, slots=True)
class Hosts:
    """only_loopback: of addresses and names that mean themselves, just those of loopback. names: in lower case; '*' is any name, and
    '*.example.com' any below example.com."""

    only_loopback: bool = True
    names: frozenset[str] = frozenset()

    def admit(self, host: str) -> bool:
        if host in self.names or ANY in self.names or _is_loopback_name(host):
            return True
        address = _address(host)
        if address is not None:
            return address.is_loopback or not self.only_loopback
        return any(name.startswith("*.") and host.endswith(name[1:]) for name in self.names)


def checked_host(setting: str) -> str:
    """InvalidSetting for what is no name of a host."""
    authority = parse_authority(setting)
    if authority is None or authority.port is not None:
        raise InvalidSetting(
            f"--allowed-host is {setting!r}; expected a name without a port, like cluster.example.com or *.example.com, or *"
        )
    return authority.host


def hosts_of(bound: str, allowed: Iterable[str]) -> Hosts:
    """bound: what the server listens on. allowed: names beside its own."""
    names = set(allowed)
    address = _address(bound)
    if _is_loopback_name(bound) or (address is not None and address.is_loopback):
        return Hosts(True, frozenset(names))
    return Hosts(False, frozenset({*names, bound.lower(), *_own_names()}))


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    short = name.split(".")[0]
    return {name, short, f"{short}.local"}


def _is_loopback_name(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
