"""The time, what is to be done, and what was said about it: what all parts of the machine write to."""

from dairllm.coordinator.cluster.actions import Action, ClusterEvent, EventKind, TellEvent
from dairllm.coordinator.cluster.books.records import Records


class Journal:
    """Its time is the machine's own, without those in which the machine itself stood still (a suspended laptop, SIGSTOP): no lease runs out
    then and no deadline passes. Events bear the time of the clock.

    standstill_s: the clock goes on by no more than this from one event to the next, unless the machine stood still.
    """

    def __init__(self, standstill_s: float) -> None:
        self._standstill_s = standstill_s
        self._clock_s: float | None = None
        self._stood_still_s = 0.0
        self.actions: list[Action] = []
        self.records = Records()

    @property
    def now_s(self) -> float:
        assert self._clock_s is not None, "only within handle"
        return self.own_s(self._clock_s)

    @property
    def clock_s(self) -> float:
        """Of the last event; 0 before the first."""
        return self._clock_s or 0.0

    def own_s(self, clock_s: float) -> float:
        """The machine's own time when the clock shows this, if it has not stood still since the last event."""
        return clock_s - self._stood_still_s

    def begin(self, clock_s: float) -> None:
        """A new event: forget the actions of the last one. The time never runs backwards."""
        before_s = clock_s if self._clock_s is None else self._clock_s
        self._clock_s = max(clock_s, before_s)
        passed_s = self._clock_s - before_s
        if passed_s > self._standstill_s:
            self._stood_still_s += passed_s
        self.actions = []

    def do(self, action: Action) -> None:
        self.actions.append(action)

    def tell(self, kind: EventKind, shard: str, text: str, duration_s: float = 0.0) -> None:
        assert self._clock_s is not None, "only within handle"
        event = ClusterEvent(self._clock_s, kind, shard, text, duration_s)
        self.records.add(event)
        self.do(TellEvent(event))
