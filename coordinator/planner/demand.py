"""What the planner is asked: what a model needs, and what shards offer."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from dairllm.model_files.memory import NO_SCRATCH, ExpertsSize, Reserve, Scratch, StreamedSize, streamed_bytes

NO_ROOM = -(1 << 52)
"""Less than this is the same."""


class UnitDemand(NamedTuple):
    """What one unit needs: bytes of its weights in memory, of them that a step of one row reads, and that it keeps for each token.

    expert_bytes: of all its experts, of which a row reads `expert_share`, as part of step_bytes. streamed: what it takes in memory if it
    is read anew for every step; experts: the same if its experts are that are chosen; None if it can't be.
    """

    size_bytes: int
    step_bytes: int
    state_bytes_per_token: int
    expert_bytes: int = 0
    expert_share: float = 0.0
    streamed: StreamedSize | None = None
    experts: ExpertsSize | None = None

    def bytes_read_per_step(self, rows: float) -> float:
        """Rows choose their experts by themselves: those that several of them have chosen are read once."""
        none_chooses: float = (1 - self.expert_share) ** rows
        return self.step_bytes + self.expert_bytes * (1 - none_chooses - self.expert_share)


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What a model needs of the shards.

    units: embedding, layers, head. tied_bytes: bytes that the embedding and the head have in common, 0 if none; both sizes contain them.
    features, block_formats: what a shard must be able to do, and to compute with.
    context_length: longest sequence in tokens, for which one shard's cache must have room.
    scratch: of any run of units. file_bytes: of the weights as the files have them, for people; 0: as in memory.
    kv_cache: what keys and values are kept in, for people.
    """

    name: str
    digest: bytes
    units: tuple[UnitDemand, ...]
    tied_bytes: int
    features: frozenset[str]
    block_formats: frozenset[str]
    context_length: int
    scratch: Scratch = NO_SCRATCH
    file_bytes: int = 0
    kv_cache: str = ""

    def __post_init__(self) -> None:
        assert len(self.units) >= 2, "embedding, layers, head"
        assert 0 <= self.tied_bytes <= min(self.units[0].size_bytes, self.units[-1].size_bytes)

    @property
    def num_layers(self) -> int:
        return len(self.units) - 2

    @property
    def num_units(self) -> int:
        return len(self.units)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on one machine."""
        return sum(unit.size_bytes for unit in self.units) - self.tied_bytes

    def weights_bytes(self, units: range) -> int:
        """Bytes of the weights of a run of units."""
        shared = self.tied_bytes if len(units) == self.num_units else 0
        return sum(unit.size_bytes for unit in self.units[units.start : units.stop]) - shared

    def resident_bytes(self, units: range, streamed: Collection[int]) -> int:
        """Bytes of the weights of a run of units, some of which are streamed."""
        sizes = [size for unit in streamed if (size := self.units[unit].streamed) is not None]
        return self.weights_bytes_of([unit for unit in units if unit not in streamed]) + streamed_bytes(sizes)

    def weights_bytes_of(self, units: Collection[int]) -> int:
        """Bytes of the weights of any units in one memory."""
        shared = self.tied_bytes if 0 in units and self.num_units - 1 in units else 0
        return sum(self.units[unit].size_bytes for unit in units) - shared

    @property
    def stream_buffers_bytes(self) -> int:
        """At most, of a machine that streams any of the layers, or the head: where they are read to."""
        others = [unit.streamed for unit in self.units[1:] if unit.streamed is not None]
        return streamed_bytes([other._replace(numbers_bytes=0) for other in others])

    @property
    def streamed_sizes(self) -> list[int]:
        """Bytes of each unit that do not stay in memory if it is streamed."""
        sizes = (0 if unit.streamed is None else unit.size_bytes - unit.streamed.numbers_bytes for unit in self.units)
        return [max(0, size) for size in sizes]

    def weights_bytes_of_both(self, one: range, other: range) -> int:
        """Bytes of the weights of two runs in one memory."""
        shared = self.tied_bytes if self.num_units in (len(one), len(other)) else 0
        return sum(self.units[unit].size_bytes for unit in set(one) | set(other)) - shared

    def scratch_bytes(self, units: range, num_threads: int) -> int:
        """Bytes that a run of units takes while it computes."""
        has_head, has_body = units.stop == self.num_units, units.start < self.num_units - 1
        return self.scratch.size_bytes(has_body=has_body, has_head=has_head, num_threads=num_threads)

    def bytes_read_per_step(self, units: range, rows: float = 1.0) -> int:
        """Bytes of weights that a step of so many rows reads."""
        return round(sum(unit.bytes_read_per_step(rows) for unit in self.units[units.start : units.stop]))

    def state_bytes_per_token(self, units: range) -> int:
        """Bytes that a run of units keeps for each token of a sequence."""
        return sum(unit.state_bytes_per_token for unit in self.units[units.start : units.stop])


@dataclass(frozen=True, slots=True)
class KvDemand:
    """Geometry of the KV cache. The cache has room for at least one context and for at most target_tokens, if that is more."""

    block_tokens: int = 32
    target_tokens: int = 0

    def least_blocks(self, context_length: int) -> int:
        return -(-context_length // self.block_tokens)

    def most_blocks(self, context_length: int) -> int:
        return max(self.least_blocks(context_length), self.target_tokens // self.block_tokens)


@dataclass(frozen=True, slots=True)
class ShardOffer:
    """What a shard offers.

    memory_budget_bytes: for everything; the reserve of it is neither for weights nor for the KV cache.
    decode_s_per_byte: seconds per byte of weights for one row; 0 if unknown.
    hop_s: what one more edge of the ring, to this shard, adds to a step.
    most_bytes: of weights and KV cache, if it is not to be asked for more than that whatever its budget is.
    stream_s_per_byte: what reading a byte of weights takes that have no room; 0 if unknown.
    expert_misses: of the experts that would have to be read if all were equally likely, how many have to be.
    """

    name: str
    memory_budget_bytes: int
    reserve: Reserve
    decode_s_per_byte: float
    hop_s: float
    features: frozenset[str]
    block_formats: frozenset[str]
    num_threads: int = 1
    most_bytes: int | None = None
    stream_s_per_byte: float = 0.0
    expert_misses: float = 1.0

    def room_for(self, demand: ModelDemand, units: range) -> int:
        """Bytes for the weights and the KV cache of these units; below zero if it needs more than it has without them."""
        reserved_bytes = self.reserve.with_scratch(demand.scratch_bytes(units, self.num_threads))
        room_bytes = max(NO_ROOM, self.memory_budget_bytes - reserved_bytes)
        return room_bytes if self.most_bytes is None else min(room_bytes, self.most_bytes)
