"""Clients that stream answers, and what each of them has seen."""

import json
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from tests.instruments.clusters import REQUEST_TIMEOUT_S, wait_for


class Seen(NamedTuple):
    """tokens, logprobs: as the API writes them; equal text of a float means equal bits. error: the event that ended the stream.
    lost: the connection ended before the answer did."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    error: str | None = None
    lost: bool = False

    def begins(self, whole: "Seen") -> bool:
        """Whether these are the first tokens of the whole answer."""
        number = len(self.tokens)
        return whole.tokens[:number] == self.tokens and whole.logprobs[:number] == self.logprobs


class Client:
    """Streams one answer in a thread of its own, within the block."""

    def __init__(self, http: str, prompt: Sequence[int], num_tokens: int) -> None:
        self._client = httpx.Client(base_url=http, timeout=REQUEST_TIMEOUT_S, trust_env=False)
        self._body = {
            **{"prompt": list(prompt), "max_tokens": num_tokens, "temperature": 0, "logprobs": 1, "ignore_eos": True, "stream": True}
        }
        self._tokens: list[str] = []
        self._logprobs: list[float] = []
        self._error: str | None = None
        self._complete = False
        self._last_s: float | None = None
        self.longest_silence_s = 0.0
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._thread.join(REQUEST_TIMEOUT_S)
        self._client.close()

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def seen(self) -> Seen:
        """When the stream has ended."""
        self._thread.join(REQUEST_TIMEOUT_S)
        assert self.is_over, "the stream goes on for ever"
        return Seen(tuple(self._tokens), tuple(self._logprobs), self._error, lost=self._error is None and not self._complete)

    def _read(self) -> None:
        try:
            with self._client.stream("POST", "/v1/completions", json=self._body) as response:
                if response.status_code != 200:
                    response.read()
                    self._error = f"{response.status_code}: {response.text}"
                for line in response.iter_lines():
                    self._take(line)
        except httpx.TransportError:
            self._complete = False

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self._complete = True
        elif line.startswith("data: "):
            event: dict[str, Any] = json.loads(line[6:])
            if "error" in event:
                self._error = json.dumps(event["error"])
            now_s = time.monotonic()
            self.longest_silence_s = max(self.longest_silence_s, now_s - (self._last_s or now_s))
            self._last_s = now_s
            for choice in event.get("choices", ()):
                if choice["logprobs"]:
                    self._tokens += choice["logprobs"]["tokens"]
                    self._logprobs += choice["logprobs"]["token_logprobs"]


class Clients:
    """All prompts at once, within the block."""

    def __init__(self, http: str, prompts: Sequence[Sequence[int]], num_tokens: int) -> None:
        self._clients = [Client(http, prompt, num_tokens) for prompt in prompts]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for client in self._clients:
            client.__exit__(kind, error, traceback)

    def wait_tokens(self, number: int) -> None:
        """Until each has got so many, or its end."""
        wait_for(lambda: all(client.is_over or client.num_tokens >= number for client in self._clients), f"{number} tokens of all answers")

    @property
    def are_over(self) -> bool:
        return all(client.is_over for client in self._clients)

    @property
    def num_tokens(self) -> int:
        return sum(client.num_tokens for client in self._clients)

    @property
    def num_begun(self) -> int:
        """Answers of which a token has come."""
        return sum(client.num_tokens > 0 for client in self._clients)

    @property
    def longest_silence_s(self) -> float:
        """Between two tokens of one answer."""
        return max(client.longest_silence_s for client in self._clients)

    def seen(self) -> list[Seen]:
        return [client.seen() for client in self._clients]
