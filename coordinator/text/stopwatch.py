"""How long tokens take."""

import time
from typing import Protocol

from dairllm.coordinator.text.text_events import TextFinished


class LatencyObserver(Protocol):
    def observe_first_token(self, seconds: float) -> None: ...

    def observe_next_token(self, seconds: float) -> None: ...


class Stopwatch:
    """Runs from the call. latency: is told about every token."""

    def __init__(self, latency: LatencyObserver | None) -> None:
        self._latency = latency
        self._begin = self._first = self._last = time.monotonic()
        self.num_tokens = 0

    def count_token(self) -> None:
        now = time.monotonic()
        self.num_tokens += 1
        if self.num_tokens == 1:
            self._first = now
            if self._latency is not None:
                self._latency.observe_first_token(now - self._begin)
        elif self._latency is not None:
            self._latency.observe_next_token(now - self._last)
        self._last = now

    def finished(self, reason: str, prompt_tokens: int, cached_tokens: int) -> TextFinished:
        first_token_s, decode_s = (self._first - self._begin, self._last - self._first) if self.num_tokens else (0.0, 0.0)
        return TextFinished(reason, prompt_tokens, cached_tokens, self.num_tokens, first_token_s, decode_s)
