"""Virtual time and chance: everything that happens in a simulation happens here, in an order that the seed decides."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from random import Random
from typing import NoReturn

LOG_LINES = 4000


class Wrong(AssertionError):
    """Something happened that must never happen. Carries the number of the seed."""


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now_s = 0.0
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now_s + delay_s, next(self._numbers), happen))

    def run_until(self, end_s: float) -> None:
        while self._queue and self._queue[0][0] <= end_s:
            self.now_s, _, happen = heapq.heappop(self._queue)
            self._do(happen)
        self.now_s = end_s

    def _do(self, happen: Callable[[], None]) -> None:
        try:
            happen()
        except Wrong:
            raise
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}", error)

    def say(self, text: str) -> None:
        self.log.append(f"{self.now_s:8.3f} {text}")

    def require(self, holds: bool, text: str) -> None:
        if not holds:
            self._fail(text)

    def _fail(self, text: str, cause: Exception | None = None) -> NoReturn:
        last = "\n".join(list(self.log)[-60:])
        raise Wrong(f"seed {self.seed}, {self.now_s:.3f} s: {text}\n{last}") from cause

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability
