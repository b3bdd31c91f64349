"""Machines with too little memory for the model together: layers are read anew for every step, and no answer shows it."""

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.answers import PROMPTS, Answer, ask_all, assert_no_fault
from tests.e2e.test_lost_shards import HEALED_WITHIN_S, shard_at_stage
from tests.instruments.clusters import Cluster, ShardSetup, wait_for
from tests.instruments.namespaces import unavailable_reason
from tests.instruments.processes import status_bytes
from tests.instruments.streamed_answers import StreamedAnswer, completion_body
from tests.tiny_gguf import write_tiny_llama

pytestmark = pytest.mark.slow

NUM_TOKENS = 24
MIB = 1 << 20
SMALL_MIB = 144
"""Of which 35 are for the model."""
ARGUMENTS = ("--kv-tokens", "512", "--context-length", "256")


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 layers of 4 MiB."""
    path = tmp_path_factory.mktemp("models") / "deep.gguf"
    shape: dict[str, Any] = {"num_layers": 16, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 8}
    return write_tiny_llama(path, **shape, vocab_size=512, context_length=256)


@pytest.fixture(scope="module")
def expected(deep_model: Path) -> list[Answer]:
    """Of a machine that has the memory."""
    with Cluster(deep_model, [ShardSetup("a")], arguments=ARGUMENTS) as cluster:
        assert "streams" not in cluster.processes["coordinator"].output()
        return ask_all(cluster, NUM_TOKENS)


def small(name: str, **changes: Any) -> ShardSetup:
    return ShardSetup(name, memory=f"{SMALL_MIB}MiB", **changes)


def streamed_bytes(cluster: Cluster) -> int:
    return sum(int(shard["streamed_bytes"]) for shard in cluster.state()["shards"])


def test_a_machine_that_is_too_small_streams_layers(deep_model: Path, expected: list[Answer]) -> None:
    with Cluster(deep_model, [small("a")], arguments=ARGUMENTS) as cluster:
        assert ask_all(cluster, NUM_TOKENS) == expected
        assert "a layers 0-15 + head; streams " in cluster.processes["coordinator"].output()
        assert 0 < streamed_bytes(cluster) < 64 * MIB
        shard = cluster.processes["a"]
        assert status_bytes(shard.pid, "VmHWM") < SMALL_MIB * MIB
        open_files = psutil.Process(shard.pid).open_files()
        assert [file.path for file in open_files if file.path.endswith(".gguf")], "read from the file itself"
        assert_no_fault(*cluster.processes.values())


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_has_no_room_is_streamed(tied: bool, tmp_path: Path) -> None:
    """It alone is larger than the room for the model. A score of each row of a prompt goes through it, more rows than at once."""
    shape: dict[str, Any] = {"num_layers": 4, "hidden_size": 256, "intermediate_size": 256, "num_heads": 8, "num_kv_heads": 8}
    model = write_tiny_llama(tmp_path / "wide.gguf", **shape, vocab_size=30_000, context_length=256, tied=tied)
    scored = {**completion_body([number * 400 for number in range(70)], 0), "echo": True}
    answers = []
    for setup in (ShardSetup("a"), small("a")):
        with Cluster(model, [setup], arguments=ARGUMENTS) as cluster:
            scores = cluster.client.post("/v1/completions", json=scored).raise_for_status().json()
            answers.append((ask_all(cluster, NUM_TOKENS), scores["choices"][0]["logprobs"]))
            assert_no_fault(*cluster.processes.values())
            peak = status_bytes(cluster.processes["a"].pid, "VmHWM")
            streamed = streamed_bytes(cluster)
    assert answers[0] == answers[1]
    assert streamed >= 30_000 * 256 * 4
    assert peak < SMALL_MIB * MIB


def test_when_a_machine_is_lost_the_others_stream_more(deep_model: Path, expected: list[Answer]) -> None:
    with Cluster(deep_model, [small("a"), small("b")], min_shards=1, arguments=ARGUMENTS) as cluster:
        cluster.wait_until(lambda state: len(state["shards"]) == 2 and state["phase"] == "serving" and not state["next_epoch"])
        before = streamed_bytes(cluster)
        with StreamedAnswer(cluster.http, PROMPTS[0], NUM_TOKENS) as stream:
            stream.wait_tokens(5)
            cluster.processes[shard_at_stage(cluster, 0)].send(signal.SIGKILL)
            assert Answer.of_stream(stream) == expected[0]
        cluster.wait_until(lambda state: len(state["shards"]) == 1 and state["phase"] == "serving", HEALED_WITHIN_S)
        assert streamed_bytes(cluster) > before
        assert ask_all(cluster, NUM_TOKENS) == expected
        (left,) = (process for name, process in cluster.processes.items() if process.running and name != "coordinator")
        assert status_bytes(left.pid, "VmHWM") < SMALL_MIB * MIB
        assert_no_fault(left, cluster.processes["coordinator"])


def test_a_file_that_changes_is_not_computed_with(deep_model: Path, expected: list[Answer], tmp_path: Path) -> None:
    """The answer waits until the weights are right again, and goes on."""
    model = tmp_path / "model.gguf"
    model.write_bytes(deep_model.read_bytes())
    with Cluster(model, [small("a")], arguments=ARGUMENTS) as cluster, StreamedAnswer(cluster.http, PROMPTS[0], NUM_TOKENS) as stream:
        stream.wait_tokens(2)
        with model.open("r+b") as file:
            right = file.seek(-MIB, 2), file.read()
            file.seek(-MIB, 2)
            file.write(bytes(MIB))
        wait_for(lambda: "has changed since it was verified" in cluster.processes["coordinator"].output(), "the shard says so")
        cluster.wait_until(lambda state: "was replaced or changed while the coordinator serves it" in state["reason"])
        with model.open("r+b") as file:
            file.seek(right[0])
            file.write(right[1])
        assert Answer.of_stream(stream) == expected[0]


@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
def test_what_came_over_the_network_is_streamed_from_the_cache(deep_model: Path, expected: list[Answer], tmp_path: Path) -> None:
    arguments = ("--weights-cache", "1GiB")
    with Cluster(deep_model, [small("a", cache=tmp_path, arguments=arguments)], arguments=ARGUMENTS) as cluster:
        assert ask_all(cluster, NUM_TOKENS) == expected
        assert_no_fault(*cluster.processes.values())


@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
def test_without_a_file_nothing_can_be_streamed_and_the_reason_is_said(deep_model: Path, tmp_path: Path) -> None:
    with Cluster(deep_model, [small("a", cache=tmp_path)], arguments=ARGUMENTS, wait=False) as cluster:
        words = "is to be streamed, but came over the network, and no weights cache has kept it"
        cluster.wait_until(lambda state: words in str(state))
        assert cluster.client.get("/readyz").status_code == 503
