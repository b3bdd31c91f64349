"""Which of a slice's units this shard computes, and where their rows come from and go to. Pure.

Most slices are computed by all units. A replay is computed by some, to rebuild a KV cache that was lost: its rows are embedded anew, or
enter the ring at a shard that has kept them, at the boundary before its first unit. Shards without such units pass it on.
"""

from enum import Enum, auto
from typing import NamedTuple

from dairllm.mesh.errors import MalformedFrame
from dairllm.mesh.ring.frames import Replay, SequenceSlice


class Origin(Enum):
    """Where rows come from. NOWHERE: this shard needs none."""

    NOWHERE = auto()
    TOKENS = auto()
    ACTIVATIONS = auto()
    SENT_ROWS = auto()


class SubRun(NamedTuple):
    """units: empty if the rows are only passed on. sends: to the next member. keeps: what is sent, to send it again."""

    units: range
    origin: Origin
    sends: bool
    keeps: bool


PASSED_ON = SubRun(range(0), Origin.NOWHERE, False, False)


class SubRunPlanner:
    """For the shard of this name, which has the units `span` of num_units."""

    def __init__(self, span: range, num_units: int, shard_name: str) -> None:
        self._span = span
        self._num_units = num_units
        self._shard_name = shard_name
        self._whole = self._between(0, num_units, Origin.TOKENS if span.start == 0 else Origin.ACTIVATIONS)

    def plan(self, slice_: SequenceSlice) -> SubRun:
        """Raises MalformedFrame for a replay that no ring could compute."""
        if slice_.replay is None:
            return self._whole
        if slice_.replay.has_failed:
            return PASSED_ON
        self._require_units(slice_, slice_.replay)
        return self._between(slice_.replay.first_unit, slice_.replay.end_unit, self._origin(slice_, slice_.replay))

    def _origin(self, slice_: SequenceSlice, replay: Replay) -> Origin:
        first, end, span = replay.first_unit, replay.end_unit, self._span
        if replay.replay_at == self._shard_name:
            if not span.start <= first <= span.stop:
                raise MalformedFrame(f"{_who(slice_)} at boundary {first}; expected one of {span.start} to {span.stop} on this shard")
            return Origin.SENT_ROWS
        if span.stop <= first or end <= span.start:
            return Origin.NOWHERE
        if first == span.start == 0:
            return Origin.TOKENS
        if first > span.start:
            raise MalformedFrame(f"{_who(slice_)} at boundary {first}, which lies within this shard, by {replay.replay_at!r}")
        return Origin.ACTIVATIONS

    def _between(self, first: int, end: int, origin: Origin) -> SubRun:
        if origin is Origin.NOWHERE:
            return PASSED_ON
        span = self._span
        units = range(max(span.start, first), min(span.stop, end))
        is_new = bool(units)  # what was sent over this very boundary is kept already
        return SubRun(units, origin, end > span.stop, is_new and end >= span.stop and span.stop < self._num_units)

    def _require_units(self, slice_: SequenceSlice, replay: Replay) -> None:
        first, end = replay.first_unit, replay.end_unit
        if not first < end <= self._num_units:
            raise MalformedFrame(f"{_who(slice_)} by units {first} to {end}; expected a run within 0 to {self._num_units}")
        if bool(first) != bool(replay.replay_at):
            raise MalformedFrame(
                f"{_who(slice_)} from unit {first} by {replay.replay_at or 'nobody'!r}; expected a shard for all but unit 0"
            )
        if end < self._num_units and (slice_.num_samples or slice_.score_targets):
            raise MalformedFrame(f"{_who(slice_)} by units before {end} only, and cannot give tokens")


def _who(slice_: SequenceSlice) -> str:
    return f"sequence {slice_.sequence_id} is replayed"
