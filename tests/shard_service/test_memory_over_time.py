"""A shard keeps to its memory budget over many plans, and gives back what the plans before took."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from dairllm.mesh.system_memory import MIB
from dairllm.v1 import cluster_pb2
from tests.shard_service.fake_coordinator import FakeCoordinator, Frames, JoinedShard, RingEdge, soon
from tests.shard_service.shard_processes import joined, process_of
from tests.tiny_gguf import write_tiny_llama

NUM_UNITS = 10
VOCABULARY = 8192
BUDGETS_MIB = (256, 192)
KV_BLOCKS = (8, 32, 64)
CONTEXT, MAX_ROWS, PROMPT = 512, 256, 200
SEQUENCES, ANSWERS = 2, 3
ALLOWANCE = 24 * MIB
"""For what comes and goes while something is loaded or computed."""
LEFT_OVER = 12 * MIB
LOAD_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of some 30 MiB, so that what a plan leaves behind is seen."""
    shape: dict[str, Any] = {"num_layers": NUM_UNITS - 2, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 64}
    shape |= {"num_heads": 8, "num_kv_heads": 8}
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return write_tiny_llama(path, block_format="Q8_0", vocab_size=VOCABULARY, context_length=CONTEXT, **shape)


def status_bytes(shard: JoinedShard, name: str) -> int:
    lines = Path(f"/proc/{process_of(shard).pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Churn:
    """One plan after the other, each with some answers."""

    def __init__(self, coordinator: FakeCoordinator, shard: JoinedShard) -> None:
        self._coordinator, self._shard = coordinator, shard
        self._random = random.Random(1)
        self._sequences = 0
        self.epoch = 0
        self.budget_bytes = BUDGETS_MIB[0] * MIB

    async def set_budget(self) -> None:
        self.budget_bytes = self._random.choice(BUDGETS_MIB) * MIB
        self._shard.say(cluster_pb2.JoinResponse(configure=cluster_pb2.Configure(memory_budget_bytes=self.budget_bytes)))
        assert not (await self._shard.next_message("capabilities_changed")).refusal

    async def plan(self) -> None:
        end, num_blocks = self._random.randint(2, NUM_UNITS), self._random.choice(KV_BLOCKS)
        for exclusive in (self._random.random() < 0.3, True):
            self.epoch += 1
            geometry: dict[str, Any] = {"num_kv_blocks": num_blocks, "context_length": CONTEXT, "max_batch_rows": MAX_ROWS}
            self._shard.say_assignment(self._coordinator.assignment(self.epoch, range(end), exclusive=exclusive, **geometry))
            answer = await soon(self._shard.said.get(), LOAD_S)
            if answer.WhichOneof("message") == "stage_ready":
                break
            assert answer.stage_failed.needs_exclusive, answer
        await self._shard.activate(self.epoch)
        async with await RingEdge.open(self._shard, self.epoch) as edge:
            for _ in range(SEQUENCES):
                await self._answer(edge, has_head=end == NUM_UNITS)

    async def _answer(self, edge: RingEdge, *, has_head: bool) -> None:
        self._sequences += 1
        frames = Frames(self.epoch, self._sequences)
        prompt = [self._random.randrange(VOCABULARY) for _ in range(PROMPT)]
        for token_ids in (prompt, *([1] for _ in range(ANSWERS))):
            await edge.send(frames.next(token_ids, sample=has_head))
            await soon(self._coordinator.results.get())

    async def beat(self) -> cluster_pb2.ShardUsage:
        """What it says of itself after all that was."""
        self._shard.beat.clear()
        await soon(self._shard.beat.wait())
        return self._shard.heartbeats[-1].usage


async def test_the_budget_holds_while_plans_come_and_go(model: Path, request: pytest.FixtureRequest) -> None:
    async with (
        FakeCoordinator(model, lease_timeout_ms=30_000) as coordinator,
        joined(coordinator, "--memory", f"{BUDGETS_MIB[0]}MiB") as shard,
    ):
        await soon(shard.beat.wait())
        before = status_bytes(shard, "RssAnon")
        churn = Churn(coordinator, shard)
        for number in range(request.config.getoption("--plans") or 0):
            if number % 5 == 4:
                await churn.set_budget()
            await churn.plan()
            usage = await churn.beat()
            grown = status_bytes(shard, "RssAnon") - before
            sent_rows = churn.budget_bytes // 16
            assert grown <= usage.weights_bytes + usage.kv_cache_bytes + usage.scratch_bytes + sent_rows + ALLOWANCE, (number, usage)
            assert status_bytes(shard, "VmRSS") <= churn.budget_bytes, (number, usage)
        shard.say(cluster_pb2.JoinResponse(release=cluster_pb2.Release(epoch=churn.epoch, reason="the end")))
        async with asyncio.timeout(LOAD_S):
            while (await churn.beat()).weights_bytes or status_bytes(shard, "RssAnon") > before + LEFT_OVER:
                pass
