"""A guesser for the scheduler's tests, which knows what comes, and is wrong as often as it is told."""

import random
from collections.abc import Iterator

from dairllm.coordinator.engine.guesses.acceptance import Acceptance
from dairllm.coordinator.engine.guesses.guesser import Guess
from tests.engine.shard_contents import NUM_TOKENS, extend_rows, token_of


class Prophet:
    """wrong: share of its guesses; the same ones whenever it is asked. chance: what it says of each."""

    def __init__(self, wrong: float = 0.0, chance: float = 0.9, seed: int = 0) -> None:
        self._wrong, self._chance, self._seed = wrong, chance, seed
        self._tokens: list[int] = []

    def __call__(self, acceptance: Acceptance) -> "Prophet":
        """Of another sequence."""
        return Prophet(self._wrong, self._chance, self._seed)

    def follow(self, tokens: list[int], most: int) -> int:
        assert tokens[: len(self._tokens)] == self._tokens, "tokens that had come are others"
        num_new = len(tokens) - len(self._tokens)
        self._tokens = list(tokens)
        return num_new

    def guesses(self, num_ahead: int) -> Iterator[Guess]:
        tokens = list(self._tokens)
        while True:
            rows: list[int] = []
            extend_rows(rows, tokens)
            chosen = random.Random(f"{self._seed} {len(tokens)}")
            tokens.append((token_of(rows[-1]) + (chosen.random() < self._wrong)) % NUM_TOKENS)
            if len(tokens) > len(self._tokens) + num_ahead:
                yield Guess(tokens[-1], self._chance)
