"""What the planner is asked: what a model needs, and what shards offer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What a model needs of the shards.

    unit_sizes_bytes: embedding, layers 0 to num_layers - 1, head: num_layers + 2 entries.
    tied_bytes: bytes that the embedding and the head have in common, 0 if none; both sizes contain them.
    kv_bytes_per_token_per_layer: keys and values together.
    block_formats: element types that a shard must be able to compute with.
    context_length: longest sequence in tokens, for which one shard's cache must have room.
    """

    name: str
    digest: bytes
    unit_sizes_bytes: tuple[int, ...]
    tied_bytes: int
    kv_bytes_per_token_per_layer: int
    num_layers: int
    architecture: str
    block_formats: frozenset[str]
    context_length: int

    def __post_init__(self) -> None:
        assert len(self.unit_sizes_bytes) == self.num_layers + 2, "embedding, layers, head"
        assert 0 <= self.tied_bytes <= min(self.unit_sizes_bytes[0], self.unit_sizes_bytes[-1])

    @property
    def num_units(self) -> int:
        return self.num_layers + 2

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on one machine."""
        return sum(self.unit_sizes_bytes) - self.tied_bytes

    def weights_bytes(self, units: range) -> int:
        """Bytes of the weights of a run of units."""
        shared = self.tied_bytes if len(units) == self.num_units else 0
        return sum(self.unit_sizes_bytes[units.start : units.stop]) - shared

    def weights_bytes_of_both(self, one: range, other: range) -> int:
        """Bytes of the weights of two runs in one memory."""
        shared = self.tied_bytes if self.num_units in (len(one), len(other)) else 0
        return sum(self.unit_sizes_bytes[unit] for unit in set(one) | set(other)) - shared

    def bytes_read_per_step(self, units: range) -> int:
        """Bytes of weights that a step of one row reads: of the embedding it is next to nothing."""
        return sum(self.unit_sizes_bytes[unit] for unit in units if unit > 0)

    def layers_in(self, units: range) -> int:
        return min(units.stop, self.num_layers + 1) - max(units.start, 1) if units else 0


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
    architectures: frozenset[str]
    block_formats: frozenset[str]

    @property
    def room_bytes(self) -> int:
        return max(0, self.memory_budget_bytes - self.reserved_bytes)
