"""What a user can set."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """coordinator: "host:port", or None to look for it on the network. host: None for every interface. port: 0 for any free one.

    is_named: whether a person chose the name; else another is taken where a living shard has it.
    discovery: whether mDNS is used at all. weights_cache_bytes: most that fetched weights may take on disk; 0 keeps none.
    direct_weights: whether the URLs are asked that the coordinator names.
    """

    cluster: str
    name: str
    budget_bytes: int
    is_named: bool = True
    coordinator: str | None = None
    discovery: bool = True
    host: str | None = None
    port: int = 0
    threads: int | None = None
    model_dirs: tuple[Path, ...] = ()
    weights_cache_bytes: int = 0
    direct_weights: bool = True
    ready_file: Path | None = None
