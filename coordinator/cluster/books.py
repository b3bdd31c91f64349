"""What all parts of the machine share: settings, journal, members, state, where the KV cache lies, and which links fail."""

from dataclasses import dataclass

from dairllm.coordinator.cluster.cache_places import CachePlaces
from dairllm.coordinator.cluster.journal import Journal
from dairllm.coordinator.cluster.links import Links
from dairllm.coordinator.cluster.roster import Roster
from dairllm.coordinator.cluster.state import ClusterConfig, ClusterState


@dataclass(frozen=True, slots=True)
class Books:
    config: ClusterConfig
    journal: Journal
    members: Roster
    state: ClusterState
    cache: CachePlaces
    links: Links


class Part:
    """A part of the machine. It reads and changes the books, and has no memory of its own; it calls only parts that it was given."""

    def __init__(self, books: Books) -> None:
        self._config = books.config
        self._journal = books.journal
        self._members = books.members
        self._state = books.state
        self._cache = books.cache
        self._links = books.links

    @property
    def _now_s(self) -> float:
        return self._journal.now_s
