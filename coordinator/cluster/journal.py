"""The time, what is to be done, and what was said about it: what all parts of the machine write to."""

from collections import deque

from dairllm.coordinator.cluster.actions import Action, ClusterEventRecord, EventKind, RecordEvent

MAX_RECORDS = 200


class Journal:
    def __init__(self) -> None:
        self._now_s: float | None = None
        self.actions: list[Action] = []
        self.records: deque[ClusterEventRecord] = deque(maxlen=MAX_RECORDS)

    @property
    def now_s(self) -> float:
        assert self._now_s is not None, "only within handle"
        return self._now_s

    def begin(self, now_s: float) -> float:
        """A new event: forget the actions of the last one. Returns the seconds since then; the time never runs backwards."""
        before_s = now_s if self._now_s is None else self._now_s
        self._now_s = max(now_s, before_s)
        self.actions = []
        return self._now_s - before_s

    def do(self, action: Action) -> None:
        self.actions.append(action)

    def record(self, kind: EventKind, shard: str, text: str, duration_s: float = 0.0) -> None:
        record = ClusterEventRecord(self.now_s, kind, shard, text, duration_s)
        self.records.append(record)
        self.do(RecordEvent(record))
