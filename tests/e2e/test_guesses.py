"""Tokens that are computed before it is known that they come, by real processes: no answer shows it, whatever happens meanwhile."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.answers import Answer, assert_no_fault
from tests.e2e.test_golden import GOLDEN
from tests.e2e.test_lost_shards import lose_stage
from tests.instruments.clusters import Cluster, shards
from tests.instruments.golden import TINY
from tests.instruments.processes import ManagedProcess
from tests.instruments.streamed_answers import StreamedAnswer, completion_body

REPEATING = [5, 6, 7, 8, 9, 10, 5, 6, 7, 8, 9, 10, 5, 6, 7, 8]
"""So that something is guessed whatever the model makes of it."""


def metric(cluster: Cluster, name: str) -> float:
    lines = cluster.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.split()[0] == name)


@contextmanager
def with_and_without(model: Path, count: int) -> Iterator[tuple[Cluster, Cluster]]:
    with (
        Cluster(model, shards(count), min_shards=count) as guessing,
        Cluster(model, shards(1), arguments=("--no-guesses",)) as plain,
    ):
        yield guessing, plain


def bodies(prompt: list[int], num_tokens: int) -> Iterator[dict[str, Any]]:
    """Greedy and sampled, with what is counted over the answer, and with probabilities."""
    for changes in (
        {"temperature": 0},
        {"temperature": 0.9, "seed": 11},
        {"temperature": 0.7, "seed": 5, "frequency_penalty": 0.3, "presence_penalty": 0.2, "logprobs": 3},
    ):
        yield {**completion_body(prompt, num_tokens), "stream": False, **changes}


def answers(cluster: Cluster, asked: list[dict[str, Any]]) -> list[Any]:
    return [cluster.client.post("/v1/completions", json=body).json()["choices"] for body in asked]


@pytest.mark.slow
def test_every_golden_prompt_has_the_answer_that_it_has_without_guesses(smollm2_path: Path) -> None:
    asked = [body for case in GOLDEN["cases"] for body in bodies(case["prompt_ids"] + case["generated_ids_64"], 48)]
    with with_and_without(smollm2_path, 3) as (guessing, plain):
        assert answers(guessing, asked) == answers(plain, asked)
        assert metric(guessing, "dairllm_guessed_tokens_right_total") > 50
        assert metric(plain, "dairllm_guessed_tokens_total") == 0
        assert_no_fault(*guessing.processes.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma4", "deepseek-v3", "mistral-window", "gpt-oss", "qwen3_5"])
def test_families_have_the_answers_that_they_have_without_guesses(family: str) -> None:
    """Windows, latents, experts, rows that carry keys along; where layers carry a state along, nothing is guessed."""
    asked = list(bodies(REPEATING, 44))
    with with_and_without(TINY / family, 2) as (guessing, plain):
        assert answers(guessing, asked) == answers(plain, asked)
        assert_no_fault(*guessing.processes.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_shards_are_lost_in_the_middle_of_guesses(smollm2_path: Path) -> None:
    """Each place of three once, greedy and sampled, while guesses are under way."""
    prompt = GOLDEN["cases"][0]["prompt_ids"] * 2
    with Cluster(smollm2_path, shards(1), arguments=("--no-guesses",)) as plain:
        expected = Answer.of(iter(plain.complete(prompt, **_rest(prompt))["choices"]))
    with Cluster(smollm2_path, shards(4), min_shards=3) as cluster:
        for stage in range(3):
            lost: list[ManagedProcess] = []
            with ExitStack() as stack:
                streams = [stack.enter_context(StreamedAnswer(cluster.http, prompt, NUM_TOKENS)) for _ in range(2)]
                for stream in streams:
                    stream.wait_tokens(20)
                lose_stage(cluster, stage, signal.SIGKILL, lost)
                assert [Answer.of_stream(stream) for stream in streams] == [expected] * 2
            lost[0].wait(10.0)
            lost[0].start()
            cluster.wait_until(lambda state: len(state["shards"]) == 4 and state["phase"] == "serving")
        assert metric(cluster, "dairllm_guessed_tokens_total") > 0
        assert_no_fault(*cluster.processes.values())


NUM_TOKENS = 150


def _rest(prompt: list[int]) -> dict[str, Any]:
    body = completion_body(prompt, NUM_TOKENS)
    return {key: value for key, value in body.items() if key != "prompt"}
