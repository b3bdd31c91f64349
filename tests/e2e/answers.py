"""Answers of a cluster, in a form that can be compared bit by bit, and what its logs must not show."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tests.instruments.clusters import Cluster
from tests.instruments.processes import ManagedProcess
from tests.instruments.streamed_answers import StreamedAnswer, completion_body

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

    @classmethod
    def of_stream(cls, stream: StreamedAnswer) -> "Answer":
        """When it is complete."""
        tokens = stream.wait_complete()
        return cls(tuple(token.text for token in tokens), tuple(token.logprob for token in tokens))


def ask(cluster: Cluster, prompt: Sequence[int] = PROMPTS[0], num_tokens: int = 16) -> Answer:
    response = cluster.client.post("/v1/completions", json=completion_body(prompt, num_tokens))
    assert response.status_code == 200, response.text
    return Answer.of(iter(response.json()["choices"]))


def ask_all(cluster: Cluster, num_tokens: int) -> list[Answer]:
    """All PROMPTS at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: ask(cluster, prompt, num_tokens), PROMPTS))


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
