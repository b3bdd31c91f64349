"""What clients ask, and what each of them has got."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.instruments.streamed_answers import completion_body

WORDS = (
    "the",
    "river",
    "runs",
    "along",
    "a",
    "quiet",
    "valley",
    "where",
    "old",
    "mills",
    "stand",
    "between",
    "apple",
    "trees",
    "and",
    "walls",
)
_CUT_SHORT = "the stream ended before the answer did"


@dataclass(frozen=True, slots=True)
class Question:
    """A request of the HTTP API. kind: what is said of it in tables."""

    kind: str
    path: str
    body: Mapping[str, Any]

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(slots=True)
class Receipt:
    """What came of a question.

    answer: by choice all that it said, as the API writes it, so that equal text of a float means equal bits; how tokens are parted into
    events may differ. failure: why there is no whole answer, '' if there is one. first_s: from the question to the first event; gaps_s:
    between two of them.
    """

    answer: dict[int, list[str]] = field(default_factory=dict)
    failure: str = _CUT_SHORT
    first_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    _last_s: float = 0.0

    @property
    def num_events(self) -> int:
        return len(self.gaps_s) + (self._last_s > 0)

    def begins(self, whole: "Receipt") -> bool:
        """Whether this is a first part of the whole answer, or all of it."""
        parts = ((said, whole.answer.get(index, [])) for index, said in self.answer.items())
        return all(whole_said[: len(said)] == said for said, whole_said in parts)

    def refuse(self, response: httpx.Response) -> None:
        """The status is not 200; the body has been read."""
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text
        self.failure = f"{response.status_code}: {message}"

    def take_body(self, response: httpx.Response, now_s: float) -> None:
        self.first_s = now_s
        self.failure = ""
        self._take(response.json())

    def take_line(self, line: str, now_s: float) -> None:
        """A line of an event stream. now_s: since the question."""
        if line == "data: [DONE]":
            self.failure = self.failure.removeprefix(_CUT_SHORT)
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                self.failure = f"error event: {event['error']['message']}"
                return
            if self._last_s:
                self.gaps_s.append(now_s - self._last_s)
            else:
                self.first_s = now_s
            self._last_s = now_s
            self._take(event)

    def _take(self, answer: Mapping[str, Any]) -> None:
        for choice in answer["choices"]:
            self.answer.setdefault(choice["index"], []).extend(_parts(choice))


def _parts(choice: Mapping[str, Any]) -> Iterator[str]:
    logprobs = choice.get("logprobs")
    if logprobs and "tokens" in logprobs:
        yield from map(json.dumps, zip(*(logprobs[key] for key in ("tokens", "token_logprobs", "top_logprobs")), strict=True))
    elif logprobs:
        yield from map(json.dumps, logprobs["content"])
    else:
        yield from choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
    if choice["finish_reason"]:
        yield f"finish_reason {choice['finish_reason']}"


def ask(client: httpx.Client, question: Question) -> Receipt:
    receipt, body = Receipt(), dict(question.body)
    began_s = time.monotonic()
    try:
        with client.stream("POST", question.path, json=body) as response:
            if response.status_code != 200 or not question.is_streamed:
                response.read()
            if response.status_code != 200:
                receipt.refuse(response)
            elif not question.is_streamed:
                receipt.take_body(response, time.monotonic() - began_s)
            else:
                for line in response.iter_lines():
                    receipt.take_line(line, time.monotonic() - began_s)
    except httpx.TransportError as error:
        receipt.failure = f"{type(error).__name__}: {error}"
    return receipt


def questions() -> Sequence[Question]:
    """Of every kind some: long prompts, several answers to one prompt, log-probabilities, scoring, chats; greedy and drawn."""
    return [
        *(_completion("long prompt", _ids(1500 + 100 * i, 3 + i), 24) for i in range(2)),
        *(_completion("short prompt", _ids(5 + 20 * i, 11 + i), 96) for i in range(4)),
        *(_drawn("n=2", i, {"prompt": text(40 + 30 * i), "max_tokens": 48, "n": 2, "stream": True}) for i in range(2)),
        *(_drawn("log-probabilities", i, {"prompt": text(60 + 9 * i), "max_tokens": 40, "logprobs": 5}) for i in range(2)),
        *(_drawn("scoring", i, {"prompt": text(200 + 150 * i), "max_tokens": 0, "echo": True, "logprobs": 1}) for i in range(2)),
        *(chat(text(20 + 60 * i), i, 64) for i in range(2)),
    ]


def _completion(kind: str, prompt: Sequence[int], num_tokens: int) -> Question:
    return Question(kind, "/v1/completions", {**completion_body(prompt, num_tokens), "stream": True})


def _drawn(kind: str, seed: int, body: Mapping[str, Any], path: str = "/v1/completions") -> Question:
    return Question(kind, path, {**body, "temperature": 0.8, "top_p": 0.95, "seed": seed})


def chat(content: str, seed: int, num_tokens: int, **more: Any) -> Question:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": num_tokens, "stream": True, **more}
    return _drawn("chat", seed, body, "/v1/chat/completions")


def text(number: int) -> str:
    """So many words."""
    return " ".join(WORDS[(5 * i + i // 7) % len(WORDS)] for i in range(number))


def _ids(number: int, step: int) -> list[int]:
    return [(step * position + 7) % 256 for position in range(number)]
