"""Answers as OpenAI's API writes them: whole, and in chunks."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dairllm.coordinator.http.calls import Call
from dairllm.coordinator.text import TextDelta, TextEvent, TextFinished, TextToken

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks."""

JsonObject = dict[str, object]


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


class AnswerFormat(ABC):
    """Writes one answer; `whole` and the chunks have one id and one time."""

    object_name: str
    chunk_name: str
    id_prefix: str

    def __init__(self, call: Call, model: str) -> None:
        self._call = call
        self._model = model
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created_s = int(time.time())

    def whole(self, choices: Sequence[ChoiceSoFar]) -> JsonObject:
        """Every choice must have finished."""
        written = [self._whole_choice(index, choice) for index, choice in enumerate(choices)]
        finished = [choice.finished for choice in choices if choice.finished is not None]
        return {**self._head(self.object_name), "choices": written, "usage": self._usage(finished)}

    def first_chunk(self, index: int) -> JsonObject | None:
        """What precedes the first delta of a choice, if anything does."""
        return None

    def delta_chunk(self, index: int, delta: TextDelta) -> JsonObject | None:
        """None if the delta has nothing that the client asked for."""
        if delta.text or (delta.tokens and (self._call.wants_logprobs or self._call.wants_token_ids)):
            return self._chunk([self._delta_choice(index, delta)])
        return None

    def last_chunk(self, index: int, finished: TextFinished) -> JsonObject:
        return self._chunk([{**self._delta_choice(index, TextDelta("", ())), "logprobs": None, "finish_reason": finished.reason}])

    def usage_chunk(self, finished: Sequence[TextFinished]) -> JsonObject:
        return {**self._chunk([]), "usage": self._usage(finished)}

    @abstractmethod
    def _whole_choice(self, index: int, choice: ChoiceSoFar) -> JsonObject: ...

    @abstractmethod
    def _delta_choice(self, index: int, delta: TextDelta) -> JsonObject: ...

    def _head(self, object_name: str) -> JsonObject:
        return {"id": self._id, "object": object_name, "created": self._created_s, "model": self._model}

    def _chunk(self, choices: list[JsonObject]) -> JsonObject:
        chunk = {**self._head(self.chunk_name), "choices": choices}
        return {**chunk, "usage": None} if self._call.include_usage else chunk

    def _token_ids(self, tokens: Iterable[TextToken]) -> JsonObject:
        return {"token_ids": [token.token_id for token in tokens]} if self._call.wants_token_ids else {}

    def _usage(self, finished: Sequence[TextFinished]) -> JsonObject:
        """A prompt counts once, however many choices it has."""
        prompt_tokens = sum(one.prompt_tokens for one in finished) // self._call.choices_per_prompt
        completion_tokens = sum(one.completion_tokens for one in finished)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


class ChatFormat(AnswerFormat):
    object_name, chunk_name, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def first_chunk(self, index: int) -> JsonObject | None:
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _whole_choice(self, index: int, choice: ChoiceSoFar) -> JsonObject:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": choice.finished.reason if choice.finished else None,
            **self._token_ids(choice.tokens),
        }

    def _delta_choice(self, index: int, delta: TextDelta) -> JsonObject:
        content = {"content": delta.text} if delta else {}
        logprobs = self._logprobs(delta.tokens)
        return {"index": index, "delta": content, "logprobs": logprobs, "finish_reason": None, **self._token_ids(delta.tokens)}

    def _logprobs(self, tokens: Iterable[TextToken]) -> JsonObject | None:
        if not self._call.wants_logprobs:
            return None
        return {"content": [self._token(token) for token in tokens if not token.ends_answer], "refusal": None}

    def _token(self, token: TextToken) -> JsonObject:
        top = [_chat_token(one.text, one.data, one.logprob) for one in token.top]
        return {**_chat_token(token.text, token.data, token.logprob), "top_logprobs": top}


def _chat_token(text: str, data: bytes | None, logprob: float | None) -> JsonObject:
    return {"token": text, "logprob": _finite(logprob), "bytes": None if data is None else list(data)}


class CompletionFormat(AnswerFormat):
    object_name, chunk_name, id_prefix = "text_completion", "text_completion", "cmpl"

    def _whole_choice(self, index: int, choice: ChoiceSoFar) -> JsonObject:
        whole = TextDelta("".join(choice.texts), tuple(choice.tokens))
        return {**self._delta_choice(index, whole), "finish_reason": choice.finished.reason if choice.finished else None}

    def _delta_choice(self, index: int, delta: TextDelta) -> JsonObject:
        logprobs = self._logprobs(delta.tokens)
        return {"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": None, **self._token_ids(delta.tokens)}

    def _logprobs(self, tokens: Iterable[TextToken]) -> JsonObject | None:
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
