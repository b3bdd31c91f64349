"""A sequence over several plans, and the plans themselves, as a coordinator would drive them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from dairllm.mesh.encodings import parse_encoding
from dairllm.v1 import cluster_pb2, ring_pb2
from tests.shard_service.fake_coordinator import KV_BLOCK_TOKENS, WIRE, FakeCoordinator, JoinedShard, RingEdge, soon

Plan = Sequence[tuple[str, range]]
"""Members in ring order with their units."""


class Replay(NamedTuple):
    first_unit: int
    end_unit: int
    replay_at: str = ""


BY_ALL = Replay(0, 0)


class Answer(NamedTuple):
    """Equal answers have the same bits."""

    token_id: int
    logprob: float


def peer_of(shard: JoinedShard) -> cluster_pb2.Peer:
    return cluster_pb2.Peer(name=shard.hello.name, addresses=["127.0.0.1:9", shard.address])


def assignments(coordinator: FakeCoordinator, shards: Mapping[str, JoinedShard], plan: Plan, epoch: int, **changes: Any) -> dict[str, Any]:
    following = [peer_of(shards[name]) for name, _ in plan[1:]] + [None]
    return {
        name: coordinator.assignment(epoch, units, next_member=next_member, **changes)
        for (name, units), next_member in zip(plan, following, strict=True)
    }


async def prepare(coordinator: FakeCoordinator, shards: Mapping[str, JoinedShard], plan: Plan, epoch: int, **changes: Any) -> None:
    parts = assignments(coordinator, shards, plan, epoch, **changes)
    await asyncio.gather(*(shards[name].prepare(part) for name, part in parts.items()))


async def activate(
    shards: Mapping[str, JoinedShard],
    plan: Plan,
    epoch: int,
    alive: Sequence[int] = (),
    transfers: Mapping[str, list[cluster_pb2.KvTransfer]] | None = None,
) -> dict[str, cluster_pb2.StageActivated]:
    names = [name for name, _ in plan]
    activated = await asyncio.gather(*(shards[name].activate(epoch, alive, (transfers or {}).get(name, [])) for name in names))
    return dict(zip(names, activated, strict=True))


@asynccontextmanager
async def serving(
    coordinator: FakeCoordinator, shards: Mapping[str, JoinedShard], plan: Plan, epoch: int, alive: Sequence[int] = ()
) -> AsyncIterator[RingEdge]:
    await prepare(coordinator, shards, plan, epoch)
    await activate(shards, plan, epoch, alive)
    async with await RingEdge.open(shards[plan[0][0]], epoch) as edge:
        yield edge


class LivingSequence:
    """tokens: prompt and answer. completed: how many rows all units have computed."""

    _batch_ids = itertools.count(1)

    def __init__(self, sequence_id: int, prompt: Sequence[int], first_block: int = 0) -> None:
        self.sequence_id = sequence_id
        self.tokens = list(prompt)
        self.completed = 0
        self.answers: list[Answer] = []
        self._prompt_length = len(prompt)
        self._first_block = first_block
        self._epoch = 0

    async def go_on(self, edge: RingEdge, coordinator: FakeCoordinator, epoch: int, count: int) -> None:
        """`count` more tokens."""
        for _ in range(count):
            await edge.send(self.frame(epoch, range(self.completed, len(self.tokens)), sample=True))
            result = await soon(coordinator.results.get())
            (sampled,) = result.results[0].sampled
            self.completed = len(self.tokens)
            self.tokens.append(sampled.token_id)
            self.answers.append(Answer(sampled.token_id, sampled.logprob))

    async def replay(self, edge: RingEdge, coordinator: FakeCoordinator, epoch: int, replay: Replay, chunk: int = 7) -> list[Any]:
        """All completed rows, in chunks; the results."""
        results = []
        for first in range(0, self.completed, chunk):
            await edge.send(self.frame(epoch, range(first, min(first + chunk, self.completed)), replay=replay))
            results.append(await soon(coordinator.results.get()))
        return results

    def frame(self, epoch: int, positions: range, *, sample: bool = False, replay: Replay = BY_ALL) -> ring_pb2.MicroBatch:
        part = ring_pb2.SequenceSlice(
            sequence_id=self.sequence_id,
            first_position=positions.start,
            token_ids=self.tokens[positions.start : positions.stop],
            new_block_ids=[] if replay.end_unit else self._blocks(positions.start, positions.stop),
            num_samples=int(sample),
            first_unit=replay.first_unit,
            end_unit=replay.end_unit,
            replay_at=replay.replay_at,
        )
        begins = [self._begin(positions.start)] if epoch != self._epoch else []
        self._epoch = epoch
        return ring_pb2.MicroBatch(epoch=epoch, batch_id=next(self._batch_ids), encoding=parse_encoding(WIRE), begins=begins, slices=[part])

    def block_ids(self) -> list[int]:
        return self._blocks(0, self.completed)

    def _begin(self, first_position: int) -> ring_pb2.SequenceBegin:
        return ring_pb2.SequenceBegin(
            sequence_id=self.sequence_id,
            prompt_length=self._prompt_length,
            sampling=ring_pb2.SamplingParams(logprobs=True, repetition_penalty=1.3),
            block_ids=self.block_ids(),
            token_ids=self.tokens[:first_position],
        )

    def _blocks(self, start: int, stop: int) -> list[int]:
        """Ids of the blocks behind those of the rows before `start`."""
        first, end = (-(-position // KV_BLOCK_TOKENS) for position in (start, stop))
        return [self._first_block + index for index in range(first, end)]
