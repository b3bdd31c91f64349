"""What guesses come from: the one interface of all their sources. Pure."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Guess(NamedTuple):
    """chance: that this token comes, if all before it do."""

    token_id: int
    chance: float


class Guesser(Protocol):
    """Of one sequence. Wrong guesses cost time, never a token."""

    def follow(self, tokens: list[int], most: int) -> int:
        """These have come: the same list in every call, which only grows. At most so many more of them are taken in; how many were.
        Nothing is guessed before all are."""
        ...

    def guesses(self, num_ahead: int) -> Iterator[Guess]:
        """One after the other from so many positions behind the last token on, for as long as there are any. Those before it were given
        earlier, and none has turned out to be wrong."""
        ...
