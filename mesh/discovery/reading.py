"""Records as zeroconf gives them, read and checked: anybody can announce anything."""

import re
from collections.abc import Callable
from typing import Any

from zeroconf import BadTypeInNameException, IPVersion
from zeroconf.asyncio import AsyncServiceInfo

from dairllm.mesh.addresses import Address
from dairllm.mesh.discovery.records import ID_PATTERN, SERVICE_TYPE, DiscoveredCoordinator, DiscoveredShard, Role, ShardState

MAX_HOSTS = 8
"""So many addresses of one record are looked at."""

_PROTOCOL = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")


def record_of(name: str, **facts: Any) -> AsyncServiceInfo | None:
    """The record of this instance of SERVICE_TYPE; facts: as AsyncServiceInfo takes them. None for a name that no service may have."""
    try:
        return AsyncServiceInfo(SERVICE_TYPE, name, **facts)
    except (BadTypeInNameException, ValueError):
        return None


def read_coordinator(info: AsyncServiceInfo) -> DiscoveredCoordinator | None:
    """None for a record that is not as `Announcer` writes it for a coordinator."""
    text = _text_of(info)
    addresses = _addresses_of(info)
    if text("role") != Role.COORDINATOR or not ID_PATTERN.fullmatch(text("id")) or not addresses:
        return None
    return DiscoveredCoordinator(text("id"), text("cluster"), text("proto"), addresses)


def read_shard(info: AsyncServiceInfo) -> DiscoveredShard | None:
    """None for a record that is not as `Announcer` writes it for a shard."""
    text = _text_of(info)
    addresses = _addresses_of(info)
    if text("role") != Role.SHARD or text("state") not in list(ShardState) or not addresses:
        return None
    if not (ID_PATTERN.fullmatch(text("id")) and ID_PATTERN.fullmatch(text("cluster")) and _PROTOCOL.fullmatch(text("proto"))):
        return None
    name = text("name") if text("name").isprintable() else ""
    return DiscoveredShard(text("id"), name, text("cluster"), text("proto"), ShardState(text("state")), addresses)


def _text_of(info: AsyncServiceInfo) -> Callable[[str], str]:
    properties = info.decoded_properties
    return lambda key: properties.get(key) or ""


def _addresses_of(info: AsyncServiceInfo) -> tuple[str, ...]:
    """Without link-local IPv6 ones, which mean nothing without an interface."""
    hosts = [host for host in info.parsed_scoped_addresses(IPVersion.All) if not host.lower().startswith("fe80")]
    return tuple(str(Address(host, info.port)) for host in hosts[:MAX_HOSTS]) if info.port else ()
