"""Stop strings.

A stop string ends the answer where the first one is complete; of those complete at one place, the longest counts. Text that may yet
become a stop string is held back, so that no part of one is ever given out, and how the text was cut into tokens does not matter.
"""

from collections.abc import Sequence


class StopFilter:
    """Passes text on up to the first stop string. `found` once one was complete; what comes later is dropped."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be given out by now."""
        if self.found:
            return ""
        pending = self._held + text
        begin = self._first_stop(pending)
        if begin is not None:
            self.found, self._held = True, ""
            return pending[:begin]
        keep = self._length_to_hold(pending)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, pending: str) -> int | None:
        hits = [(begin + len(stop), begin) for stop in self._stops if (begin := pending.find(stop)) >= 0]
        return min(hits)[1] if hits else None

    def _length_to_hold(self, pending: str) -> int:
        longest = min(max((len(stop) for stop in self._stops), default=1) - 1, len(pending))
        for length in range(longest, 0, -1):
            tail = pending[len(pending) - length :]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
