"""What shards tell about themselves. Plain values: protobuf stops at the servicer."""

from dataclasses import dataclass, replace

from dairllm.coordinator.cluster.identities import NO_EPOCH, Epoch
from dairllm.model_files.memory import Reserve


@dataclass(frozen=True, slots=True)
class ShardCapabilities:
    """See ShardCapabilities in cluster.proto."""

    memory_budget_bytes: int
    reserved_bytes: int
    num_threads: int
    isa: str
    cpu_model: str
    decode_s_per_byte: float
    block_formats: frozenset[str]
    features: frozenset[str]
    process_bytes: int = 0

    @property
    def reserve(self) -> Reserve:
        return Reserve(self.reserved_bytes, self.process_bytes)

    def differs_in_speed_alone(self, other: "ShardCapabilities") -> bool:
        return self != other and replace(self, decode_s_per_byte=other.decode_s_per_byte) == other


@dataclass(frozen=True, slots=True)
class HeldUnits:
    """Weights that a shard has in memory."""

    model_digest: bytes
    units: frozenset[int]


NOTHING_HELD = HeldUnits(b"", frozenset())


@dataclass(frozen=True, slots=True)
class ShardHello:
    """The first message of a shard.

    addresses: "host:port", best first, the observed one included. held: what it still has from before.
    """

    name: str
    boot_id: str
    addresses: tuple[str, ...]
    capabilities: ShardCapabilities
    cluster_hash: str
    protocol_major: int
    protocol_minor: int
    software_version: str
    held: HeldUnits = NOTHING_HELD


@dataclass(frozen=True, slots=True)
class ShardUsage:
    """See ShardUsage in cluster.proto."""

    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    scratch_bytes: int = 0
    resident_bytes: int = 0
    frames: int = 0
    rows: int = 0
    compute_us: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    streamed_bytes: int = 0
    streaming_us: int = 0
    stalled_us: int = 0
    experts_found: int = 0
    experts_missed: int = 0


@dataclass(frozen=True, slots=True)
class ShardWork:
    """See ShardWork in cluster.proto."""

    given: int = 0
    done: int = 0
    cpu_us: int = 0
    epoch: Epoch = NO_EPOCH
    received_frames: int = 0
    computed_frames: int = 0
    sent_frames: int = 0


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a shard is with loading its units, and where the bytes came from. trouble: why nothing comes now, '' while something does."""

    loaded_bytes: int = 0
    total_bytes: int = 0
    from_memory_bytes: int = 0
    from_disk_bytes: int = 0
    from_network_bytes: int = 0
    trouble: str = ""
