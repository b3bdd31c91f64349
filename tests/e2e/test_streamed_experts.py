"""Machines with too little memory for all experts: those that are chosen are read, and no answer shows it."""

import re
import signal
from pathlib import Path

import pytest

from tests.e2e.answers import PROMPTS, Answer, ask_all, assert_no_fault
from tests.e2e.test_lost_shards import HEALED_WITHIN_S, shard_at_stage
from tests.instruments.clusters import Cluster, ShardSetup
from tests.instruments.processes import status_bytes
from tests.instruments.streamed_answers import StreamedAnswer
from tests.tiny_experts import NUM_LAYERS, NUM_USED, write_tiny_experts

pytestmark = pytest.mark.slow

NUM_TOKENS = 24
MIB = 1 << 20
ARGUMENTS = ("--kv-tokens", "512", "--context-length", "256")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_experts(tmp_path_factory.mktemp("models") / "experts.gguf")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[Answer]:
    """Of a machine that has the memory."""
    with Cluster(model, [ShardSetup("a")], arguments=ARGUMENTS) as cluster:
        answers = ask_all(cluster, NUM_TOKENS)
        assert cluster.state()["shards"][0]["expert_places"] == 0
        return answers


@pytest.mark.parametrize(("memory_mib", "is_below_cliff"), [(150, False), (128, True)])
def test_a_machine_that_is_too_small_reads_experts(model: Path, expected: list[Answer], memory_mib: int, is_below_cliff: bool) -> None:
    with Cluster(model, [ShardSetup("a", memory=f"{memory_mib}MiB")], arguments=ARGUMENTS) as cluster:
        assert ask_all(cluster, NUM_TOKENS) == expected
        (shard,) = cluster.state()["shards"]
        assert shard["experts_touched"] == NUM_USED * NUM_LAYERS
        assert (0 < shard["expert_places"] < shard["experts_touched"]) == is_below_cliff
        output = cluster.processes["coordinator"].output()
        assert "a layers 0-7 + head; streams " in output
        warns = re.search(r"a has room for \d+ of the 16 experts that a token uses", output)
        assert (warns is not None) == is_below_cliff
        assert status_bytes(cluster.processes["a"].pid, "VmHWM") < memory_mib * MIB
        cluster.wait_until(lambda state: state["shards"][0]["usage"]["experts_found"] > 0)
        assert_no_fault(*cluster.processes.values())


def test_when_a_machine_is_lost_the_other_reads_experts(model: Path, expected: list[Answer]) -> None:
    with Cluster(model, [ShardSetup(name, memory="150MiB") for name in "ab"], min_shards=1, arguments=ARGUMENTS) as cluster:
        cluster.wait_until(lambda state: len(state["shards"]) == 2 and state["phase"] == "serving" and not state["next_epoch"])
        with StreamedAnswer(cluster.http, PROMPTS[0], NUM_TOKENS) as stream:
            stream.wait_tokens(5)
            cluster.processes[shard_at_stage(cluster, 0)].send(signal.SIGKILL)
            assert Answer.of_stream(stream) == expected[0]
        cluster.wait_until(lambda state: len(state["shards"]) == 1 and state["phase"] == "serving", HEALED_WITHIN_S)
        assert ask_all(cluster, NUM_TOKENS) == expected
        (left,) = (process for name, process in cluster.processes.items() if process.running and name != "coordinator")
        assert status_bytes(left.pid, "VmHWM") < 150 * MIB
        assert_no_fault(left, cluster.processes["coordinator"])
