"""What the planner is asked: what a model needs, and what shards offer."""

from dataclasses import dataclass
from typing import NamedTuple


class UnitDemand(NamedTuple):
    """What one unit needs: bytes of its weights, bytes of them that a step of one row reads, bytes that it keeps for each token."""

    size_bytes: int
    step_bytes: int
    state_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What a model needs of the shards.

    units: embedding, layers, head. tied_bytes: bytes that the embedding and the head have in common, 0 if none; both sizes contain them.
    features, block_formats: what a shard must be able to do, and to compute with.
    context_length: longest sequence in tokens, for which one shard's cache must have room.
    """

    name: str
    digest: bytes
    units: tuple[UnitDemand, ...]
    tied_bytes: int
    features: frozenset[str]
    block_formats: frozenset[str]
    context_length: int

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

    def weights_bytes_of_both(self, one: range, other: range) -> int:
        """Bytes of the weights of two runs in one memory."""
        shared = self.tied_bytes if self.num_units in (len(one), len(other)) else 0
        return sum(self.units[unit].size_bytes for unit in set(one) | set(other)) - shared

    def bytes_read_per_step(self, units: range) -> int:
        """Bytes of weights that a step of one row reads."""
        return sum(unit.step_bytes for unit in self.units[units.start : units.stop])

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

    memory_budget_bytes: for everything; reserved_bytes of it are neither for weights nor for the KV cache.
    decode_s_per_byte: seconds per byte of weights for one row; 0 if unknown.
    hop_s: what one more edge of the ring, to this shard, adds to a step.
    """

    name: str
    memory_budget_bytes: int
    reserved_bytes: int
    decode_s_per_byte: float
    hop_s: float
    features: frozenset[str]
    block_formats: frozenset[str]

    @property
    def room_bytes(self) -> int:
        return max(0, self.memory_budget_bytes - self.reserved_bytes)
