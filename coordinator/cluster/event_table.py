"""Which event is about what, in which phases it counts, and who takes care of it: the form of the table that `machine` fills in.

An event that is late, or about a lease, a life of a shard or a plan that is past, fits no row and changes nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from dairllm.coordinator.cluster.books.members import Members
from dairllm.coordinator.cluster.books.state import ClusterState
from dairllm.coordinator.cluster.events import Event
from dairllm.coordinator.cluster.identities import Epoch, LeaseId
from dairllm.coordinator.cluster.phases import Phase

E = TypeVar("E")


class OfShard(Protocol):
    @property
    def name(self) -> str: ...


class OfBoot(OfShard, Protocol):
    @property
    def boot_id(self) -> str: ...


class OfLease(OfBoot, Protocol):
    @property
    def lease(self) -> LeaseId: ...


class OfPlan(Protocol):
    @property
    def epoch(self) -> Epoch: ...


class OfStage(OfBoot, OfPlan, Protocol):
    """Of what one life of a shard does for one plan."""


class Scopes:
    """What an event can be about. Each says whether that is there now."""

    def __init__(self, members: Members, state: ClusterState) -> None:
        self._members = members
        self._state = state

    def cluster(self, event: object) -> bool:
        """The cluster as a whole, which is always there."""
        return True

    def wanted(self, event: OfShard) -> bool:
        """A member, or a shard that is away of which something is wanted."""
        return self._members.is_known(event.name)

    def member(self, event: OfShard) -> bool:
        return event.name in self._members

    def boot(self, event: OfBoot) -> bool:
        """This life of a member."""
        return self._members.is_current(event.name, event.boot_id)

    def lease(self, event: OfLease) -> bool:
        """This Join stream of a member."""
        return self._members.has_lease(event.name, event.boot_id, event.lease)

    def candidate(self, event: OfStage) -> bool:
        """The stage that this life of a member was told to prepare."""
        candidate = self._state.candidate
        return self.boot(event) and candidate is not None and candidate.epoch == event.epoch and event.name in candidate.assigned

    def active(self, event: OfStage) -> bool:
        """The stage that this life of a member has in the active plan."""
        active = self._state.active
        return self.boot(event) and active is not None and self.ring(event) and event.name in active.plan.placement

    def ring(self, event: OfPlan) -> bool:
        """The ring of the active plan."""
        return self._state.active is not None and self._state.active.epoch == event.epoch


@dataclass(frozen=True, slots=True)
class Row(Generic[E]):
    """Events of this type, if they are about something that is there, and come in one of these phases, go to the handler."""

    event: type[E]
    scope: Callable[[E], bool]
    phases: frozenset[Phase]
    handle: Callable[[E], None]


class EventTable:
    """At most one row takes an event: the first that fits."""

    def __init__(self, state: ClusterState, rows: Iterable[Row[Any]]) -> None:
        self._state = state
        self.rows: dict[type, list[Row[Any]]] = {}
        for row in rows:
            self.rows.setdefault(row.event, []).append(row)

    def handle(self, event: Event) -> None:
        for row in self.rows[type(event)]:
            if self._state.phase in row.phases and row.scope(event):
                row.handle(event)
                return
