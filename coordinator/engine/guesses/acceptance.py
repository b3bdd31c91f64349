"""How often guesses were right, by how much spoke for them. Pure.

It is measured of every guess that could be compared with the token that came, also of those that were never sent: so guesses that did not
pay are found to pay again without a price.
"""

from bisect import bisect_right

PASTS = (3, 4, 6, 9, 16)
"""Where the groups of `past` begin, after the first."""
_EXPECTED = (0.15, 0.25, 0.4, 0.55, 0.7, 0.8)
"""Of each group, before anything was measured; counts as much as one guess."""
_WEIGHT_OF_OTHERS = 4.0
"""What other sequences have shown counts as much as so many guesses of its own."""
_MOST_COUNTED = 64.0
"""The oldest count less and less."""


class _Counts:
    def __init__(self) -> None:
        self.right = [0.0] * len(_EXPECTED)
        self.all = [0.0] * len(_EXPECTED)

    def add(self, group: int, is_right: bool) -> None:
        if self.all[group] >= _MOST_COUNTED:
            self.right[group] /= 2
            self.all[group] /= 2
        self.right[group] += is_right
        self.all[group] += 1


class Acceptance:
    """Of one sequence, with what others have shown where it has shown little itself."""

    def __init__(self, others: "Acceptance | None" = None) -> None:
        self._others = others
        self._counts = _Counts()

    def note(self, past: int, is_right: bool) -> None:
        group = bisect_right(PASTS, past)
        self._counts.add(group, is_right)
        if self._others is not None:
            self._others.note(past, is_right)

    def chance(self, past: int) -> float:
        """That the next guess is right, if so much of the past is the same."""
        group = bisect_right(PASTS, past)
        right, count = self._counts.right[group], self._counts.all[group]
        if self._others is None:
            return (right + _EXPECTED[group]) / (count + 1)
        return (right + _WEIGHT_OF_OTHERS * self._others.chance(past)) / (count + _WEIGHT_OF_OTHERS)
