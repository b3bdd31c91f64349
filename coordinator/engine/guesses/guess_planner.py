"""Which guesses go around the ring, with what. Pure.

A guess is a row more in a frame that goes anyway (width), or the first row of a frame that is sent before its time, where stages would be
idle (depth). Both follow from how long frames take and how often guesses are right; where they do not pay there are none.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from dairllm.coordinator.engine.facts import RingGeometry
from dairllm.coordinator.engine.guesses.acceptance import Acceptance
from dairllm.coordinator.engine.guesses.choice import best_count, pays_ahead
from dairllm.coordinator.engine.guesses.guesser import Guesser
from dairllm.coordinator.engine.guesses.pace import FrameTime, RingPace
from dairllm.coordinator.engine.guesses.repetition import Repetition
from dairllm.coordinator.engine.sequences import Sequence

MOST_IN_A_SLICE = 16
TOKENS_AT_ONCE = 4096
"""So many tokens of prompts are taken in for one frame, some milliseconds: a long prompt is, while its first tokens are awaited."""
LEAST_CHANCE = 0.02
"""That a guess and all before it are right: less pays nowhere."""

MakeGuesser = Callable[[Acceptance], Guesser]
"""Of one sequence; it is told what all of them have shown."""


class _NextGuess(NamedTuple):
    """chance: that the guess is right and all before it in its sequence are."""

    chance: float
    sequence: Sequence
    token_id: int


class GuessPlanner:
    def __init__(self, make_guesser: MakeGuesser = Repetition) -> None:
        self._make_guesser = make_guesser
        self._acceptance = Acceptance()
        self._pace = RingPace()
        self._frames_at_once = 1
        self._left_to_take_in = 0

    def begin_plan(self, geometry: RingGeometry) -> None:
        """What was measured holds no more."""
        self._pace = RingPace()
        self._frames_at_once = geometry.frames_at_once

    def note_time(self, rows: int, time: FrameTime, *, is_beside: bool) -> None:
        """A frame that only decoded has come back. is_beside: others were on the ring meanwhile."""
        self._pace.note(rows, time, is_beside=is_beside)

    def along(self, ready: Collection[Sequence], num_decoding: int, most_rows: int) -> dict[Sequence, list[int]]:
        """The guesses that go with the newest tokens of these, in one frame of at most so many rows."""
        self._left_to_take_in = TOKENS_AT_ONCE
        candidates = [one for sequence in ready for one in self._candidates(sequence)]
        return self._chosen(candidates, len(ready), float(len(ready)), num_decoding, most_rows)

    def ahead(self, waiting: Iterable[Sequence], num_in_flight: int, most_rows: int) -> dict[Sequence, list[int]]:
        """The guesses of a frame that goes on from tokens which are still awaited; empty if it should not be sent."""
        alone, beside = self._pace.time(1, is_beside=False), self._pace.time(1, is_beside=True)
        if not alone or not beside or num_in_flight >= min(self._frames_at_once, round(alone.round_s / max(beside.stage_s, 1e-9))):
            return {}
        self._left_to_take_in = TOKENS_AT_ONCE
        firsts: list[_NextGuess] = []
        others: list[_NextGuess] = []
        for sequence in waiting:
            candidates = self._candidates(sequence)
            first = next(candidates, None)
            if first and pays_ahead(first.chance, alone.round_s, beside.round_s, beside.stage_s):
                firsts.append(first)
                others += candidates
        firsts = firsts[:most_rows]
        along = self._chosen(others, len(firsts), sum(first.chance for first in firsts), len(firsts), most_rows)
        return {first.sequence: [first.token_id, *along.get(first.sequence, [])] for first in firsts}

    def _chosen(
        self, candidates: list[_NextGuess], num_rows: int, num_tokens: float, num_decoding: int, most_rows: int
    ) -> dict[Sequence, list[int]]:
        is_full = num_decoding >= self._frames_at_once > 1

        def seconds(num_guesses: int) -> float:
            time = self._pace.time(num_rows + num_guesses, is_beside=is_full)
            assert time is not None, "there are no candidates before it is known"
            return time.stage_s if is_full else time.round_s

        best = sorted(candidates, key=lambda one: -one.chance)[: max(0, most_rows - num_rows)]
        chosen: dict[Sequence, list[int]] = {}
        for one in best[: best_count([one.chance for one in best], num_tokens, seconds)] if best else ():
            chosen.setdefault(one.sequence, []).append(one.token_id)
        return chosen

    def _candidates(self, sequence: Sequence) -> Iterator[_NextGuess]:
        """Those that come after what was sent."""
        guesser = self._guesser_of(sequence)
        if guesser is None:
            return
        num_sent, room = len(sequence.ahead), sequence.max_length - 1 - len(sequence.tokens)
        chance = 1.0
        for index, guess in enumerate(islice(guesser.guesses(0), min(room, num_sent + MOST_IN_A_SLICE))):
            chance *= guess.chance
            if chance < LEAST_CHANCE or guess.token_id in sequence.request.end_ids:
                return
            if index >= num_sent:
                yield _NextGuess(chance, sequence, guess.token_id)

    def _guesser_of(self, sequence: Sequence) -> Guesser | None:
        """None for one whose first token is still awaited, or whose guesses have made its frames fail, and while nothing was measured."""
        if sequence.never_guess or self._pace.time(1, is_beside=False) is None:
            return None
        if len(sequence.tokens) == sequence.prompt_length:
            return None
        if sequence.guesser is None:
            sequence.guesser = self._make_guesser(self._acceptance)
        self._left_to_take_in -= sequence.guesser.follow(sequence.tokens, self._left_to_take_in)
        return sequence.guesser
