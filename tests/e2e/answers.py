"""Answers of a cluster, in a form that can be compared bit by bit, and what its logs must not show."""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from tests.instruments.clusters import REQUEST_TIMEOUT_S, Cluster, wait_for
from tests.instruments.processes import ManagedProcess

SIGNS_OF_A_FAULT = ("Traceback", "never retrieved", "never awaited", "Exception in callback", "Unhandled exception", "Segmentation fault")
PROMPTS = ([5, 6, 7], [40, 41, 42, 43, 44, 45], [100], [9] * 40)


class Answer(NamedTuple):
    """Tokens and their log-probabilities as the API writes them: equal text of a float means equal bits."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @classmethod
    def of(cls, choices: Iterator[dict[str, Any]]) -> "Answer":
        parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        tokens = tuple(token for part in parts for token in part["tokens"])
        return cls(tokens, tuple(value for part in parts for value in part["token_logprobs"]))


def body_of(prompt: Sequence[int], num_tokens: int) -> dict[str, Any]:
    return {"prompt": list(prompt), "max_tokens": num_tokens, "temperature": 0, "logprobs": 1, "ignore_eos": True}


def ask(cluster: Cluster, prompt: Sequence[int] = PROMPTS[0], num_tokens: int = 16) -> Answer:
    response = cluster.client.post("/v1/completions", json=body_of(prompt, num_tokens))
    assert response.status_code == 200, response.text
    return Answer.of(iter(response.json()["choices"]))


def ask_all(cluster: Cluster, num_tokens: int) -> list[Answer]:
    """All PROMPTS at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: ask(cluster, prompt, num_tokens), PROMPTS))


class StreamedAnswer:
    """A streaming client in a thread of its own. Within the block it reads as fast as tokens come."""

    def __init__(self, cluster: Cluster, prompt: Sequence[int], num_tokens: int) -> None:
        self._client = httpx.Client(base_url=cluster.http, timeout=REQUEST_TIMEOUT_S, trust_env=False)
        self._body = {**body_of(prompt, num_tokens), "stream": True}
        self._choices: list[dict[str, Any]] = []
        self._error: Any = None
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._thread.join(REQUEST_TIMEOUT_S)
        self._client.close()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait_tokens(self, number: int) -> None:
        wait_for(lambda: self.is_over or len(self._choices) >= number, f"{number} tokens of a streamed answer")
        assert self._error is None, self._error

    def result(self) -> Answer:
        self._thread.join(REQUEST_TIMEOUT_S)
        assert self.is_over, "the stream goes on for ever"
        assert self._error is None, self._error
        return Answer.of(iter(self._choices))

    def _read(self) -> None:
        try:
            with self._client.stream("POST", "/v1/completions", json=self._body) as response:
                for line in response.iter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self._error = error

    def _take(self, line: str) -> None:
        data = line.removeprefix("data: ")
        if data and data != "[DONE]":
            event = json.loads(data)
            self._error = self._error or event.get("error")
            self._choices += event.get("choices", ())


def assert_no_fault(*processes: ManagedProcess) -> None:
    """No log has a traceback or the like: whatever came from outside was expected."""
    for process in processes:
        output = process.output()
        assert not [sign for sign in SIGNS_OF_A_FAULT if sign in output], f"{process.name}:\n{output[-6000:]}"


def assert_sound(cluster: Cluster, expected: Answer, timeout_s: float = 20.0) -> None:
    """Within `timeout_s` it serves, and its answer is the expected one; every process runs and no log shows a fault."""
    cluster.wait_serving(timeout_s)
    assert ask(cluster) == expected
    assert [name for name, process in cluster.processes.items() if not process.running] == []
    assert_no_fault(*cluster.processes.values())
