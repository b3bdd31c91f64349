"""Answers as OpenAI's API writes them: whole, and in chunks."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dairllm.coordinator.http.answer_types import (
    AnswerHead,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
    CompletionText,
    TopLogprob,
    Usage,
)
from dairllm.coordinator.http.calls import Call
from dairllm.coordinator.text import ServedModel, TextDelta, TextEvent, TextFinished, TextToken

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks."""

_NO_CHOICES = b'"choices":[]'
Chunk = ChatCompletionChunk | CompletionChunk


@dataclass(slots=True)
class ChoiceSoFar:
    """What was collected of one sequence. finished: None while it runs."""

    texts: list[str] = field(default_factory=list)
    tokens: list[TextToken] = field(default_factory=list)
    finished: TextFinished | None = None

    def add(self, event: TextEvent) -> None:
        if isinstance(event, TextFinished):
            self.finished = event
        else:
            self.texts.append(event.text)
            self.tokens += event.tokens

    def whole(self) -> TextDelta:
        return TextDelta("".join(self.texts), tuple(self.tokens))

    @property
    def num_written(self) -> int:
        """Log-probabilities, about."""
        return sum(1 + len(token.top) for token in self.tokens)

    @property
    def reason(self) -> str:
        assert self.finished is not None
        return self.finished.reason


class AnswerFormat(ABC):
    """Writes one answer; `whole` and the chunks have one id and one time."""

    id_prefix: str

    def __init__(self, call: Call, served: ServedModel) -> None:
        self._call = call
        self._head: AnswerHead = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    def write_whole(self, choices: list[ChoiceSoFar], encode: Callable[[object], bytes]) -> bytes:
        """The whole answer, in JSON; every choice must have finished. `choices` is empty then: of the largest answers each is let go of as
        soon as it is written, since to free them all is one long step.
        """
        usage, written = self._usage_of(choices), []
        for index in range(len(choices)):
            written.append(encode(self._whole_choice(index, choices[index])))
            choices[index] = ChoiceSoFar()
        choices.clear()
        empty = encode(self._whole(usage))
        begin, _, end = empty.partition(_NO_CHOICES)
        return begin + b'"choices":[' + b",".join(written) + b"]" + end

    @abstractmethod
    def _whole(self, usage: Usage) -> ChatCompletion | Completion:
        """Without choices."""

    @abstractmethod
    def _whole_choice(self, index: int, choice: ChoiceSoFar) -> ChatChoice | CompletionChoice: ...

    def first_chunk(self, index: int) -> Chunk | None:
        """What precedes the first delta of a choice, if anything does."""
        return None

    def delta_chunk(self, index: int, delta: TextDelta) -> Chunk | None:
        """None if the delta has nothing that the client asked for."""
        if delta.text or (delta.tokens and (self._call.wants_logprobs or self._call.wants_token_ids)):
            return self._delta_chunk(index, delta)
        return None

    @abstractmethod
    def last_chunk(self, index: int, finished: TextFinished) -> Chunk: ...

    @abstractmethod
    def usage_chunk(self, finished: Sequence[TextFinished]) -> Chunk: ...

    @abstractmethod
    def _delta_chunk(self, index: int, delta: TextDelta) -> Chunk: ...

    def _with_token_ids(self, choice: ChatChoice | ChatChunkChoice | CompletionText, tokens: Iterable[TextToken]) -> None:
        if self._call.wants_token_ids:
            choice["token_ids"] = [token.token_id for token in tokens]

    def _usage_of(self, choices: Sequence[ChoiceSoFar]) -> Usage:
        return self._usage([choice.finished for choice in choices if choice.finished is not None])

    def _usage(self, finished: Sequence[TextFinished]) -> Usage:
        """A prompt counts once, however many choices it has; what its first choice computed, the others find in the cache."""
        prompt_tokens = sum(one.prompt_tokens for one in finished) // self._call.choices_per_prompt
        cached_tokens = sum(one.cached_tokens for one in finished[:: self._call.choices_per_prompt])
        completion_tokens = sum(one.completion_tokens for one in finished)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }


class ChatFormat(AnswerFormat):
    id_prefix = "chatcmpl"

    def _whole(self, usage: Usage) -> ChatCompletion:
        return {**self._head, "object": "chat.completion", "choices": [], "usage": usage}

    def first_chunk(self, index: int) -> ChatCompletionChunk:
        return self._chunk([self._choice(index, {"role": "assistant", "content": ""})])

    def last_chunk(self, index: int, finished: TextFinished) -> ChatCompletionChunk:
        choice = self._choice(index, {})
        choice["finish_reason"] = finished.reason
        self._with_token_ids(choice, ())
        return self._chunk([choice])

    def usage_chunk(self, finished: Sequence[TextFinished]) -> ChatCompletionChunk:
        chunk = self._chunk([])
        chunk["usage"] = self._usage(finished)
        return chunk

    def _delta_chunk(self, index: int, delta: TextDelta) -> ChatCompletionChunk:
        choice = self._choice(index, {"content": delta.text})
        choice["logprobs"] = self._logprobs(delta.tokens)
        self._with_token_ids(choice, delta.tokens)
        return self._chunk([choice])

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        chunk: ChatCompletionChunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, "usage": None}
        if not self._call.include_usage:
            del chunk["usage"]
        return chunk

    def _choice(self, index: int, delta: ChatDelta) -> ChatChunkChoice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _whole_choice(self, index: int, choice: ChoiceSoFar) -> ChatChoice:
        whole = choice.whole()
        written: ChatChoice = {
            "index": index,
            "message": {"role": "assistant", "content": whole.text, "refusal": None},
            "logprobs": self._logprobs(whole.tokens),
            "finish_reason": choice.reason,
        }
        self._with_token_ids(written, whole.tokens)
        return written

    def _logprobs(self, tokens: Iterable[TextToken]) -> ChatLogprobs | None:
        if not self._call.wants_logprobs:
            return None
        return {"content": [_chat_logprob(token) for token in tokens if not token.ends_answer], "refusal": None}


def _chat_logprob(token: TextToken) -> ChatLogprob:
    top = [_chat_token(one.text, one.data, one.logprob) for one in token.top]
    return {**_chat_token(token.text, token.data, token.logprob), "top_logprobs": top}


def _chat_token(text: str, data: bytes | None, logprob: float | None) -> TopLogprob:
    return {"token": text, "logprob": _finite(logprob), "bytes": None if data is None else list(data)}


class CompletionFormat(AnswerFormat):
    id_prefix = "cmpl"

    def _whole(self, usage: Usage) -> Completion:
        return {**self._head, "object": "text_completion", "choices": [], "usage": usage}

    def last_chunk(self, index: int, finished: TextFinished) -> CompletionChunk:
        text = self._text(index, TextDelta("", ()))
        text["logprobs"] = None
        return self._chunk([{**text, "finish_reason": finished.reason}])

    def usage_chunk(self, finished: Sequence[TextFinished]) -> CompletionChunk:
        chunk = self._chunk([])
        chunk["usage"] = self._usage(finished)
        return chunk

    def _delta_chunk(self, index: int, delta: TextDelta) -> CompletionChunk:
        return self._chunk([{**self._text(index, delta), "finish_reason": None}])

    def _chunk(self, choices: list[CompletionChunkChoice]) -> CompletionChunk:
        chunk: CompletionChunk = {**self._head, "object": "text_completion", "choices": choices, "usage": None}
        if not self._call.include_usage:
            del chunk["usage"]
        return chunk

    def _whole_choice(self, index: int, choice: ChoiceSoFar) -> CompletionChoice:
        return {**self._text(index, choice.whole()), "finish_reason": choice.reason}

    def _text(self, index: int, delta: TextDelta) -> CompletionText:
        text: CompletionText = {"index": index, "text": delta.text, "logprobs": self._logprobs(delta.tokens)}
        self._with_token_ids(text, delta.tokens)
        return text

    def _logprobs(self, tokens: Iterable[TextToken]) -> CompletionLogprobs | None:
        """Four lists of one length; the first token of an echoed prompt has null for its log-probabilities."""
        if not self._call.wants_logprobs:
            return None
        shown = [token for token in tokens if not token.ends_answer]
        return {
            "tokens": [token.text for token in shown],
            "token_logprobs": [_finite(token.logprob) for token in shown],
            "top_logprobs": [_top_by_text(token) for token in shown],
            "text_offset": [token.offset for token in shown],
        }


def _top_by_text(token: TextToken) -> dict[str, float] | None:
    """The most probable tokens, and the chosen one whether or not it is among them. Of equal texts the more probable counts."""
    logprob = _finite(token.logprob)
    if logprob is None:
        return None
    found: dict[str, float] = {}
    for one in token.top:
        found.setdefault(one.text, max(one.logprob, LOWEST_LOGPROB))
    found.setdefault(token.text, logprob)
    return found


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)
