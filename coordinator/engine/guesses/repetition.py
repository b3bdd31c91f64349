"""Guesses from what a sequence holds already: where its last tokens have stood before, the same may follow. Pure.

The place is looked up as LZ77 does it: every pair of tokens leads to the last place behind such a pair, and from there to the one before.
Of these the one with the longest common past is taken, and followed for as long as the sequence goes on as it did there.
"""

from array import array
from collections.abc import Iterator, Sequence

from dairllm.coordinator.engine.guesses.acceptance import Acceptance
from dairllm.coordinator.engine.guesses.guesser import Guess

LONGEST_PAST = 32
"""So many tokens before two places are compared."""
PLACES_TRIED = 16
_NOWHERE = 0
"""No pair stands before the first token."""
_NO_TOKEN = -1


class Repetition:
    """A `Guesser`. acceptance: by how many tokens before the place that is followed are the same as those at the end."""

    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._tokens: list[int] = []
        self._last_behind: dict[tuple[int, int], int] = {}
        self._one_before = array("I")
        self._place = _NOWHERE
        self._past = 0

    def follow(self, tokens: list[int], most: int) -> int:
        self._tokens = tokens
        start = len(self._one_before)
        stop = min(len(tokens), start + most)
        for position in range(start, stop):
            self._go_on(tokens[position])
            pair = (tokens[position - 1] if position else _NO_TOKEN, tokens[position])
            self._one_before.append(self._last_behind.get(pair, _NOWHERE))
            self._last_behind[pair] = position + 1
        if self._place == _NOWHERE and stop == len(tokens):
            self._look_up(tokens)
        return stop - start

    def guesses(self, num_ahead: int) -> Iterator[Guess]:
        """What stands there; behind the end of the tokens it begins again at that place."""
        while self._place != _NOWHERE:
            token_id = self._tokens[self._place + num_ahead % (len(self._tokens) - self._place)]
            yield Guess(token_id, self._acceptance.chance(self._past + num_ahead))
            num_ahead += 1

    def _go_on(self, token_id: int) -> None:
        if self._place == _NOWHERE:
            return
        is_right = self._tokens[self._place] == token_id
        self._acceptance.note(self._past, is_right)
        self._place, self._past = (self._place + 1, self._past + 1) if is_right else (_NOWHERE, 0)

    def _look_up(self, tokens: Sequence[int]) -> None:
        """Of places with the same past the last one."""
        place = self._one_before[-1] if self._one_before else _NOWHERE
        for _ in range(PLACES_TRIED):
            if place == _NOWHERE:
                return
            past = _common_past(tokens, place)
            if past > self._past:
                self._place, self._past = place, past
            place = self._one_before[place - 1]


def _common_past(tokens: Sequence[int], place: int) -> int:
    """How many tokens before this place are the same as those before the end."""
    most = min(LONGEST_PAST, place)
    return next((past for past in range(most) if tokens[place - 1 - past] != tokens[-1 - past]), most)
