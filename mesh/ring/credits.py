"""Credits go back several at once: a message of their own for each frame costs both ends about as much as a frame of one row.

What is held back is less than half of what was granted. So a sender that has none left gets some as soon as its frames are taken.
"""


class OwedCredits:
    """granted: how many the sender had to begin with, or may have outstanding at most."""

    def __init__(self, granted: int) -> None:
        self._at_once = max(1, granted // 2)
        self._owed = 0

    def owe(self) -> None:
        """A frame was taken."""
        self._owed += 1

    @property
    def is_due(self) -> bool:
        return self._owed >= self._at_once

    def pay(self) -> int:
        """All that is owed."""
        owed, self._owed = self._owed, 0
        return owed
