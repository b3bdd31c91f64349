"""Who asks: what the cluster's work is shared among (`coordinator.engine.turns`)."""

import hashlib
import ipaddress

NAME_LENGTH = 16
HOST_BITS_V6 = 64
"""A host has a whole such network of addresses to itself."""


def client_name(authorization: str | None, address: str) -> str:
    """Of the client with this API key (`Bearer …`), which is not checked and not kept, else of the one at this address; '' is nowhere."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return "key " + hashlib.sha256(key.strip().encode(errors="surrogateescape")).hexdigest()[:NAME_LENGTH]
    return f"address {_host_of(address)}"


def _host_of(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, HOST_BITS_V6), strict=False))


def address_of_peer(peer: str) -> str:
    """Of a peer as gRPC writes it: `ipv4:192.0.2.1:5000`, `ipv6:%5B2001:db8::1%5D:5000`, `unix:…`."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
