"""What must be computed again when the plan changes under running sequences. Pure.

A sequence's KV cache lies, layer by layer, with the shards that computed it. When layers move, their cache is handed over by
the old owner, or it is rebuilt: rows that entered those layers before are sent through them once more. Such rows exist where
shards sent them on: every shard records what it sends at its outgoing boundary, and at boundary 0 there are always the token ids.
A row's bits do not depend on when it is computed (docs/architecture.md, 'The same bits everywhere'), so the rebuilt cache is the lost one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Holder(NamedTuple):
    """One life of a shard: after a restart it holds nothing of what it held."""

    name: str
    boot_id: str


class StagePlace(NamedTuple):
    holder: Holder
    units: range


Placement = tuple[StagePlace, ...]
"""All stages in ring order; together they hold every unit once."""


class Replay(NamedTuple):
    """Rows enter at boundary first_unit, from the records of shard replay_at ('' for token ids); units [first_unit, end_unit) compute."""

    first_unit: int
    end_unit: int
    replay_at: str


@dataclass(frozen=True, slots=True)
class Holdings:
    """Where a sequence's past lies. cache: who holds the KV of each unit; records: who has sent all its rows at a boundary."""

    cache: Mapping[int, Holder]
    records: Mapping[int, Holder]

    @classmethod
    def of(cls, placement: Placement) -> "Holdings":
        """Of a sequence whose every row was computed under this placement."""
        return cls(owners(placement), {stage.units.stop: stage.holder for stage in placement[:-1]})

    def after(self, placement: Placement, replay: Replay | None) -> "Holdings":
        """What holds once the sequence goes on under the placement, after the replay.

        A shard's records at a boundary stay complete while it goes on sending there; where a replay passes a boundary, they are made anew.
        """
        now = Holdings.of(placement)
        records = {boundary: holder for boundary, holder in now.records.items() if self.records.get(boundary) == holder}
        if replay is not None:
            records |= {b: holder for b, holder in now.records.items() if replay.first_unit < b <= replay.end_unit}
        return Holdings(now.cache, records)


def owners(placement: Placement) -> dict[int, Holder]:
    return {unit: stage.holder for stage in placement for unit in stage.units}


def plan_replay(holdings: Holdings, placement: Placement, transferred: frozenset[int]) -> Replay | None:
    """The cheapest replay that leaves every layer's cache with its owner under the placement; None if it is there already.

    transferred: units whose cache the new owner has taken over from the old.
    """
    num_units = placement[-1].units.stop
    now = owners(placement)
    layers = range(1, num_units - 1)
    missing = [unit for unit in layers if holdings.cache.get(unit) != now[unit] and unit not in transferred]
    if not missing:
        return None
    usable = [b for b, holder in holdings.records.items() if b <= missing[0] and _can_send(holder, b, placement)]
    boundary = max(usable, default=0)
    return Replay(boundary, missing[-1] + 1, holdings.records[boundary].name if boundary else "")


def _can_send(holder: Holder, boundary: int, placement: Placement) -> bool:
    """Rows can enter the ring at the shard that has recorded them if they are needed there or right behind it."""
    return any(stage.holder == holder and stage.units.start <= boundary <= stage.units.stop for stage in placement)
