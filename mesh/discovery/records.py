"""What is announced, and what was read in the records of others. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum

from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR

SERVICE_TYPE = "_dairllm._tcp.local."
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

_MAX_NAME_BYTES = 200
"""A key and its value together have at most 255 bytes."""


class Role(StrEnum):
    COORDINATOR = "coordinator"
    SHARD = "shard"


class ShardState(StrEnum):
    LOOKING = "looking"
    JOINED = "joined"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a process says of itself.

    id: new with every start of the process; 1 to 63 letters, digits, `-` and `_`. It is public: it must give nobody a right.
    addresses: IP addresses at which `port` can be reached; empty for all of this machine, whatever they become.
    name, state: of a shard.
    """

    id: str
    cluster_hash: str
    port: int
    addresses: tuple[str, ...] = ()
    protocol: str = f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    role: Role = Role.COORDINATOR
    name: str = ""
    state: ShardState = ShardState.LOOKING

    def __post_init__(self) -> None:
        assert ID_PATTERN.fullmatch(self.id), self.id

    @property
    def instance_name(self) -> str:
        return f"{self.id}.{SERVICE_TYPE}"

    @property
    def properties(self) -> dict[str, str]:
        said = {"role": str(self.role), "id": self.id, "cluster": self.cluster_hash, "proto": self.protocol}
        if self.role is Role.SHARD:
            said |= {"name": self.name.encode()[:_MAX_NAME_BYTES].decode(errors="ignore"), "state": str(self.state)}
        return said

    @property
    def wants_to_be_found(self) -> bool:
        return self.role is Role.COORDINATOR or self.state is ShardState.LOOKING


@dataclass(frozen=True, slots=True)
class DiscoveredCoordinator:
    """addresses: all that it announced, each "host:port", for `channels.dial`."""

    coordinator_id: str
    cluster_hash: str
    protocol: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiscoveredShard:
    """shard_id: as in Announcement.id. name: '' if what it announced is none."""

    shard_id: str
    name: str
    cluster_hash: str
    protocol: str
    state: ShardState
    addresses: tuple[str, ...]
