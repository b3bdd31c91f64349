"""How long frames that only decode take by their number of rows: once around the ring, and at its slowest stage. Pure.

Measured apart for frames that were alone on the ring and for those beside others, since machines and stages may have to share what they
compute with. What was never measured is derived from what was, hopefully: a row more costs little where weights are read from memory or
from a disk. If that is wrong, it is measured soon.
"""

from typing import NamedTuple

ROW_COST = 0.06
"""Of the time of a frame with one row, for each row more, before it was measured."""
SMOOTHING = 0.25
FORGOTTEN_AFTER = 400
"""Frames: what was measured so long ago may hold no more."""


class FrameTime(NamedTuple):
    """In seconds. round_s: once around the ring. stage_s: at its slowest stage."""

    round_s: float
    stage_s: float

    def scaled(self, factor: float) -> "FrameTime":
        return FrameTime(self.round_s * factor, self.stage_s * factor)

    def towards(self, other: "FrameTime", share: float) -> "FrameTime":
        return FrameTime(*(mine + share * (its - mine) for mine, its in zip(self, other, strict=True)))


class _Measured(NamedTuple):
    time: FrameTime
    at_frame: int


class RingPace:
    """Of one plan."""

    def __init__(self) -> None:
        self._by_rows: dict[bool, dict[int, _Measured]] = {False: {}, True: {}}
        self._num_frames = 0

    def note(self, rows: int, time: FrameTime, *, is_beside: bool) -> None:
        """A frame with so many rows has come back."""
        self._num_frames += 1
        self._forget_old()
        expected = self.time(rows, is_beside=is_beside)
        measured = expected.towards(time, SMOOTHING) if expected else time
        self._by_rows[is_beside][rows] = _Measured(measured, self._num_frames)

    def time(self, rows: int, *, is_beside: bool) -> FrameTime | None:
        """None while nothing is known."""
        known = self._by_rows[is_beside] or self._by_rows[not is_beside]
        if not known:
            return None
        if rows in known:
            return known[rows].time
        below = max((count for count in known if count < rows), default=None)
        above = min((count for count in known if count > rows), default=None)
        if below is None or above is None:
            nearest = below or above
            assert nearest is not None, "one of them is known"
            return known[nearest].time.scaled((1 + ROW_COST * rows) / (1 + ROW_COST * nearest))
        return known[below].time.towards(known[above].time, (rows - below) / (above - below))

    def _forget_old(self) -> None:
        oldest = self._num_frames - FORGOTTEN_AFTER
        for by_rows in self._by_rows.values():
            for rows in [rows for rows, measured in by_rows.items() if measured.at_frame <= oldest]:
                del by_rows[rows]
