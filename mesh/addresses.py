"""Addresses of processes as people write them: `host:port`, with an IPv6 address in brackets."""

import ipaddress
import re
from dataclasses import dataclass

from dairllm.mesh.errors import InvalidSetting

DEFAULT_GRPC_PORT = 7117
"""Where a coordinator listens for shards and clients unless told otherwise."""

_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_SCOPE = re.compile(r"[A-Za-z0-9_.-]+")
_EXPECTED = "expected HOST:PORT, [IPV6]:PORT"


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """host: a name, an IPv4 address or an IPv6 address without brackets (a scope may follow: `fe80::1%eth0`). port: 1 to 65535."""

    host: str
    port: int

    def __str__(self) -> str:
        """The text that `parse_address` turns into an equal address, and that gRPC dials."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int | None = None) -> Address:
    """Read `host:port`; the port may be missing if there is a default. Raises InvalidSetting, with the text, for anything else."""
    host, port_text = _split(text, default_port)
    if not _is_host(host):
        raise InvalidSetting(f"address {text!r}: {host!r} is no host name or IP address; {_EXPECTED}")
    if port_text is None:
        if default_port is None:
            raise InvalidSetting(f"address {text!r} has no port; {_EXPECTED}")
        return Address(host, default_port)
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 1 <= int(port_text) <= 65535):
        raise InvalidSetting(f"address {text!r}: port {port_text!r} is no whole number from 1 to 65535")
    return Address(host, int(port_text))


def _split(text: str, default_port: int | None) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise InvalidSetting(f"address {text!r} has brackets that hold no IPv6 address; {_EXPECTED}")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        if default_port is not None and _is_host(text):
            return text, None
        raise InvalidSetting(f"address {text!r} has several colons; an IPv6 address is written in brackets: {_EXPECTED}")
    host, colon, port_text = text.partition(":")
    return host, port_text if colon else None


def _is_host(host: str) -> bool:
    if ":" in host:
        address, percent, scope = host.partition("%")
        return _is_ip(address) and (not percent or _SCOPE.fullmatch(scope) is not None)
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdigit():
        return _is_ip(host)
    return len(host) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in labels)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
