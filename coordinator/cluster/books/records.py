"""What has happened, as people look it up: the latest, and of hours rather than minutes.

What is said again of the same shard with other numbers, such as a refusal at every attempt, is one record with the time of the last. Where
there is no room for all, the oldest of the most frequent kind goes: a loss is kept while plans and speeds come and go.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import replace

from dairllm.coordinator.cluster.actions import ClusterEvent, EventKind

MAX_RECORDS = 200
_ROUTINE = frozenset(
    {
        EventKind.REFUSED,
        EventKind.SPEED_CHANGED,
        EventKind.LEFT_OUT,
        EventKind.PREPARING,
        EventKind.CANDIDATE_DROPPED,
        EventKind.LOADED,
        EventKind.LOAD_FAILED,
    }
)
"""Kinds that are told again and again; each of the others is a record of its own."""
_NUMBERS = re.compile(r"\d+(\.\d+)?")


class Records:
    def __init__(self) -> None:
        self._records: dict[Hashable, ClusterEvent] = {}
        self._kinds: Counter[EventKind] = Counter()
        self._count = 0

    def __iter__(self) -> Iterator[ClusterEvent]:
        """Oldest first."""
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, event: ClusterEvent) -> None:
        self._count += 1
        is_routine = event.kind in _ROUTINE
        key = (event.kind, event.shard, _NUMBERS.sub("#", event.text)) if is_routine else self._count
        before = self._remove(key) if key in self._records else None
        self._records[key] = replace(event, number=self._count, times=before.times + 1 if before else 1)
        self._kinds[event.kind] += 1
        if len(self._records) > MAX_RECORDS:
            kind = max(self._kinds, key=lambda kind: self._kinds[kind])
            self._remove(next(key for key, record in self._records.items() if record.kind == kind))

    def _remove(self, key: Hashable) -> ClusterEvent:
        record = self._records.pop(key)
        self._kinds[record.kind] -= 1
        return record
