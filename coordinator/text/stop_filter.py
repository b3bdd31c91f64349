"""Stop strings.

A stop string ends the answer where the first one is complete; of those complete at one place, the longest counts. Text that may yet
become a stop string is held back, so that no part of one is ever given out, and how the text was cut into tokens does not matter.
"""

from collections.abc import Sequence
from functools import lru_cache


class StopFilter:
    """Passes text on up to the first stop string. `found` once one was complete; what comes later is dropped.

    A character takes the same time however long the strings are (Knuth, Morris and Pratt 1977).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _fallbacks(stop)) for stop in stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be given out by now."""
        if self.found or not self._stops:
            return "" if self.found else text
        pending = self._held + text
        for end in range(len(self._held) + 1, len(pending) + 1):
            longest = self._read(pending[end - 1])
            if longest:
                self.found, self._held = True, ""
                return pending[: end - longest]
        keep = max(self._matched, default=0)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _read(self, character: str) -> int:
        """Length of the longest stop string that this character completes; 0 for none."""
        longest = 0
        for index, (stop, fallbacks) in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = fallbacks[matched - 1]
            matched += stop[matched] == character
            self._matched[index] = matched
            if matched == len(stop):
                longest = max(longest, matched)
        return longest


@lru_cache(maxsize=256)
def _fallbacks(stop: str) -> tuple[int, ...]:
    """For each prefix of it, how many of its last characters are a shorter prefix."""
    lengths = [0]
    for character in stop[1:]:
        matched = lengths[-1]
        while matched and stop[matched] != character:
            matched = lengths[matched - 1]
        lengths.append(matched + (stop[matched] == character))
    return tuple(lengths)
