"""Prompts that begin alike, by real processes: what was computed for one is not computed for the next, and no answer shows it."""

import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.answers import Answer, ask, assert_no_fault
from tests.e2e.test_lost_shards import lose_stage
from tests.instruments.clusters import Cluster, shards
from tests.instruments.golden import TINY
from tests.instruments.processes import ManagedProcess
from tests.instruments.streamed_answers import StreamedAnswer, completion_body

SYSTEM_PROMPT = [(7 * i) % 250 for i in range(330)]
IN_CACHE = 320
"""In blocks of 32."""
NUM_TOKENS = 60


def prompts(count: int) -> list[list[int]]:
    return [[*SYSTEM_PROMPT, 20 + number, 30] for number in range(count)]


def cached_tokens(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def complete(cluster: Cluster, prompt: Sequence[int], num_tokens: int) -> tuple[Answer, int]:
    answer = cluster.complete(prompt, **{key: value for key, value in completion_body(prompt, num_tokens).items() if key != "prompt"})
    return Answer.of(iter(answer["choices"])), cached_tokens(answer)


def answers_without_reuse(model: Path, asked: Sequence[Sequence[int]], num_tokens: int) -> list[Answer]:
    with Cluster(model, shards(1), arguments=("--prefix-reuse", "off")) as cluster:
        answers = [complete(cluster, prompt, num_tokens) for prompt in asked]
        assert [cached for _, cached in answers] == [0] * len(asked)
    return [answer for answer, _ in answers]


@pytest.mark.slow
def test_a_next_turn_and_many_at_once_have_the_same_bits_with_and_without_reuse(tiny_model: Path) -> None:
    asked = prompts(12)
    expected = answers_without_reuse(tiny_model, asked, 24)
    with Cluster(tiny_model, shards(2), min_shards=2) as cluster:
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda prompt: complete(cluster, prompt, 24), asked))
        assert [answer for answer, _ in answers] == expected
        assert sorted(cached for _, cached in answers) == [0] + [IN_CACHE] * 11, "the first computed it for the others"
        again = [complete(cluster, prompt, 24) for prompt in asked]
        assert again == [(answer, IN_CACHE) for answer in expected]
        metrics = cluster.client.get("/metrics").text
        assert f"dairllm_kv_reused_tokens_total {float(IN_CACHE * (11 + 12))}" in metrics
        assert_no_fault(*cluster.processes.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["llama", "deepseek-v3", "gemma4"])
def test_shards_are_lost_while_answers_share_what_they_had(model: str, tiny_model: Path) -> None:
    """Each place of three once. What no answer holds is lost with it, and computed again. Keys and values, latents, and rows that carry
    keys to other layers."""
    path = tiny_model if model == "llama" else TINY / model
    asked = [[token % 90 for token in prompt[-68:]] for prompt in prompts(4)]
    expected = answers_without_reuse(path, asked, NUM_TOKENS)
    with Cluster(path, shards(4), min_shards=3) as cluster:
        for stage in range(3):
            lost: list[ManagedProcess] = []
            with ExitStack() as stack:
                streams = [stack.enter_context(StreamedAnswer(cluster.http, prompt, NUM_TOKENS)) for prompt in asked]
                for stream in streams:
                    stream.wait_tokens(5)
                lose_stage(cluster, stage, signal.SIGKILL, lost)
                assert [Answer.of_stream(stream) for stream in streams] == expected
            assert ask(cluster, asked[0], NUM_TOKENS) == expected[0]
            lost[0].wait(10.0)
            lost[0].start()
            cluster.wait_until(lambda state: len(state["shards"]) == 4 and state["phase"] == "serving")
        assert_no_fault(*cluster.processes.values())


@pytest.mark.slow
def test_what_nobody_holds_moves_with_its_layers(tiny_model: Path) -> None:
    """A shard that is told to leave hands it over: the next turn computes only what is new."""
    prompt = prompts(1)[0]
    with Cluster(tiny_model, shards(3), min_shards=2) as cluster:
        expected, _ = complete(cluster, prompt, 24)
        leaving = next(shard["name"] for shard in cluster.state()["shards"] if shard["stage"] == 1)
        epoch = cluster.state()["epoch"]
        cluster.processes[leaving].send(signal.SIGTERM)
        cluster.wait_until(lambda state: state["epoch"] > epoch and state["phase"] == "serving")
        assert complete(cluster, prompt, 24) == (expected, IN_CACHE)
        assert_no_fault(*cluster.processes.values())


@pytest.mark.slow
def test_answers_that_outgrow_the_cache_are_set_back_and_none_shows_it(tiny_model: Path) -> None:
    """Eight that begin alike grow to thirteen blocks and more where there are eight."""
    body = {"max_tokens": 64, "n": 8, "seed": 3, "temperature": 1.0, "logprobs": 1, "ignore_eos": True}
    with Cluster(tiny_model, shards(1), arguments=("--prefix-reuse", "off")) as cluster:
        expected = cluster.complete(SYSTEM_PROMPT[:33], **body)
    with Cluster(tiny_model, shards(2), min_shards=2, arguments=("--context-length", "128", "--kv-tokens", "256")) as cluster:
        answer = cluster.complete(SYSTEM_PROMPT[:33], **body)
        assert answer["choices"] == expected["choices"]
        assert cached_tokens(answer) == cached_tokens(expected) == 0, "by the first choice, which others follow"
        state, metrics = cluster.state(), cluster.client.get("/metrics").text
        assert state["kv_blocks_free"] == state["kv_blocks_total"] == 8
        reused = next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith("dairllm_kv_reused_tokens_total "))
        assert reused > 32 * 7, "some began twice"
        assert_no_fault(*cluster.processes.values())
