"""Clients that stream answers, and what each of them has seen."""

from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self

from tests.instruments.clusters import wait_for
from tests.instruments.streamed_answers import StreamedAnswer


class Seen(NamedTuple):
    """tokens, logprobs: as the API writes them; equal text of a float means equal bits. error: the event that ended the stream.
    lost: the connection ended before the answer did."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    error: str | None = None
    lost: bool = False

    @classmethod
    def of(cls, stream: StreamedAnswer) -> "Seen":
        """When it has ended."""
        stream.wait_over()
        texts, logprobs = tuple(token.text for token in stream.tokens), tuple(token.logprob for token in stream.tokens)
        return cls(texts, logprobs, stream.error, lost=stream.error is None and not stream.is_complete)

    def begins(self, whole: "Seen") -> bool:
        """Whether these are the first tokens of the whole answer."""
        number = len(self.tokens)
        return whole.tokens[:number] == self.tokens and whole.logprobs[:number] == self.logprobs


class Clients:
    """All prompts at once, within the block."""

    def __init__(self, http: str, prompts: Sequence[Sequence[int]], num_tokens: int) -> None:
        self._clients = [StreamedAnswer(http, prompt, num_tokens) for prompt in prompts]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for client in self._clients:
            client.__exit__(kind, error, traceback)

    def wait_tokens(self, number: int) -> None:
        """Until each has got so many, or its end."""
        wait_for(lambda: all(client.is_over or len(client.tokens) >= number for client in self._clients), f"{number} tokens of all answers")

    @property
    def are_over(self) -> bool:
        return all(client.is_over for client in self._clients)

    @property
    def num_tokens(self) -> int:
        return sum(len(client.tokens) for client in self._clients)

    @property
    def num_begun(self) -> int:
        """Answers of which a token has come."""
        return sum(len(client.tokens) > 0 for client in self._clients)

    @property
    def longest_silence_s(self) -> float:
        """Between two tokens of one answer."""
        return max((b.arrived_s - a.arrived_s for client in self._clients for a, b in pairwise(client.tokens)), default=0.0)

    def seen(self) -> list[Seen]:
        return [Seen.of(client) for client in self._clients]
