"""A client that streams an answer, and what it has got of it."""

import json
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from dairllm.mesh.errors import DairllmError
from tests.instruments.clusters import REQUEST_TIMEOUT_S, wait_for


class Token(NamedTuple):
    """text, logprob: as the API writes them; equal text of a float means equal bits."""

    arrived_s: float
    text: str
    logprob: float


def completion_body(prompt: Sequence[int] | str, num_tokens: int) -> dict[str, Any]:
    """Exactly so many tokens, the most probable ones, with their log-probabilities."""
    return {
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": num_tokens,
        "temperature": 0,
        "logprobs": 1,
        "ignore_eos": True,
    }


class StreamedAnswer:
    """A streaming client in a thread of its own. Within the block it reads as fast as tokens come; leaving the block ends the answer.

    http: the API's base URL. changes: of the body. error: with what the server ended the answer. is_complete: it came whole; if it is over
    with neither, the connection was lost. response: once its headers have come. num_comments: that kept it alive. ended_s: on the
    monotonic clock, as Token.arrived_s.
    """

    def __init__(
        self, http: str, prompt: Sequence[int] | str, num_tokens: int, timeout_s: float = REQUEST_TIMEOUT_S, **changes: Any
    ) -> None:
        self.tokens: list[Token] = []
        self.error: str | None = None
        self.is_complete = False
        self.response: httpx.Response | None = None
        self.num_comments = 0
        self.ended_s = 0.0
        self._connection_error: httpx.TransportError | None = None
        self._client = httpx.Client(base_url=http, timeout=timeout_s, trust_env=False)
        self._timeout_s = timeout_s
        self._body = {**completion_body(prompt, num_tokens), "stream": True, **changes}
        self._is_left = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_left.set()
        self._thread.join(self._timeout_s)
        self._client.close()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait_tokens(self, number: int, timeout_s: float = 30.0) -> None:
        """Raises DairllmError if it ends with fewer."""
        wait_for(lambda: self.is_over or len(self.tokens) >= number, f"{number} tokens of a streamed answer", timeout_s)
        if len(self.tokens) < number:
            raise self._failure()

    def wait_over(self) -> None:
        """Until it has ended, however."""
        self._thread.join(self._timeout_s)
        assert self.is_over, "the stream goes on for ever"

    def wait_complete(self) -> list[Token]:
        """Raises DairllmError if it ends otherwise."""
        self.wait_over()
        if not self.is_complete or self.error is not None:
            raise self._failure()
        return self.tokens

    def _failure(self) -> DairllmError:
        reason = self.error or self._connection_error or ("it is complete" if self.is_complete else "the stream ended")
        return DairllmError(f"the answer ended after {len(self.tokens)} tokens: {reason}")

    def _read(self) -> None:
        try:
            with self._client.stream("POST", "/v1/completions", json=self._body) as response:
                self.response = response
                if response.status_code != 200:
                    response.read()
                    self.error = f"{response.status_code}: {response.text}"
                for line in response.iter_lines():
                    if self._is_left.is_set():
                        return
                    self._take(line)
        except httpx.TransportError as error:
            self._connection_error = error
        self.ended_s = time.monotonic()

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.is_complete = True
        elif line.startswith(":"):
            self.num_comments += 1
        elif line.startswith("data: "):
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in event:
                self.error = json.dumps(event["error"])
            for choice in event.get("choices", ()):
                self._take_tokens(choice["logprobs"] or {"tokens": (), "token_logprobs": ()})

    def _take_tokens(self, logprobs: dict[str, Any]) -> None:
        arrived_s = time.monotonic()
        self.tokens += [Token(arrived_s, *pair) for pair in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)]
