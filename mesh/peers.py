"""Members of a cluster, as others are told of them."""

from dataclasses import dataclass

MAX_NAME_CHARS = 64
"""Of a member's name."""
COORDINATOR_NAME = "coordinator"
"""The coordinator's, among the members of a ring and those that give weights. No shard may have it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member. addresses: "host:port", to be tried in order."""

    name: str
    addresses: tuple[str, ...]
