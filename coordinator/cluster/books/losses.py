"""Members that were lost of late and are not back: a machine that dies stays in sight for a while."""

from collections.abc import Collection
from dataclasses import dataclass

from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.shard_reports import ShardHello

REMEMBERED_S = 600.0
MAX_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class LostShard:
    """hello: what it last said of itself. units: what it computed. reason: what happened. since_s: by the clock."""

    hello: ShardHello
    units: range
    reason: str
    since_s: float


class Losses:
    def __init__(self) -> None:
        self._lost: dict[str, LostShard] = {}

    def note(self, member: Member, units: range, reason: str, clock_s: float) -> None:
        self.forget({member.name})
        self._lost[member.name] = LostShard(member.hello, units, reason, clock_s)
        if len(self._lost) > MAX_REMEMBERED:
            del self._lost[next(iter(self._lost))]

    def forget(self, names: Collection[str]) -> None:
        """They are back."""
        for name in names:
            self._lost.pop(name, None)

    def of_late(self, clock_s: float) -> tuple[LostShard, ...]:
        """The last lost first."""
        return tuple(lost for lost in reversed(self._lost.values()) if clock_s - lost.since_s < REMEMBERED_S)
