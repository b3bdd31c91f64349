"""The text of an answer, decoded and given out token by token."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from dairllm.coordinator.text.stop_filter import StopFilter
from dairllm.coordinator.text.text_events import TextDelta, TextToken
from dairllm.coordinator.text.token_texts import TokenTexts
from dairllm.mesh.ring.frames import TokenScore
from dairllm.model_files.tokenizer import StreamDecoder, Tokenizer


class _Held(NamedTuple):
    token: TextToken
    end: int


class AnswerText:
    """`offset`: where the answer begins, in characters of what is given out; `stopped` once a stop string was found."""

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str], end_ids: frozenset[int], offset: int) -> None:
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer, skip_special=True)
        self._filter = StopFilter(stops)
        self._texts = TokenTexts(tokenizer)
        self._end_ids = end_ids
        self._decoded = self._released = offset
        self._held: deque[_Held] = deque()

    @property
    def stopped(self) -> bool:
        return self._filter.found

    def push(self, score: TokenScore) -> TextDelta:
        ends_answer = score.token_id in self._end_ids
        begin = self._decoded
        text = "" if ends_answer or self._decoder is None else self._decoder.push(score.token_id)
        self._decoded += len(text)
        self._held.append(_Held(self._texts.describe(score, begin, ends_answer), self._decoded))
        return self._release(self._filter.push(text))

    def finish(self) -> TextDelta:
        """What was held back. A stop string may still be found in it."""
        text = "" if self._decoder is None else self._decoder.flush()
        self._decoded += len(text)
        return self._release(self._filter.push(text) + self._filter.flush())

    def _release(self, text: str) -> TextDelta:
        self._released += len(text)
        tokens = []
        while self._held and self._is_out(self._held[0]):
            tokens.append(self._held.popleft().token)
        return TextDelta(text, tuple(tokens))

    def _is_out(self, held: _Held) -> bool:
        if self.stopped:
            return held.token.offset < self._released
        return held.end <= self._released
