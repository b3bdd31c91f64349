"""The state of the cluster machine: settings, phases, members. Only the machine changes it."""

import math
from dataclasses import dataclass, field
from enum import Enum

from dairllm.coordinator.cluster.admission import Expectation
from dairllm.coordinator.cluster.events import (
    EdgeBroken,
    Event,
    LoadProgressed,
    RingBroken,
    RingOpened,
    StageLoaded,
    StageLoadFailed,
    StepMeasured,
)
from dairllm.coordinator.cluster.facts import LeaseId, LoadProgress, Peer, ShardHello, ShardUsage
from dairllm.coordinator.planner import KvDemand, ShardOffer


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Settings of a cluster.

    context_length: None for the model's; never more than the model's.
    target_kv_tokens: tokens that the KV cache should hold where memory allows, for all sequences together.
    wire: name of the encoding between shards, for the snapshot.
    kv_cache: element type of the KV cache on every shard.
    settle_s: how long after a join planning waits, so that machines that start together are planned together.
    hop_s: what an edge of the ring costs a step until the shard's round trip is known.
    grace_s: how long after a broken edge membership has time to notice that a shard is lost; doubles with every failure in a
        row, up to longest_pause_s.
    load_stall_s: a stage that reports no progress for this long has failed.
    set_aside_s: how long a shard that failed set_aside_after times in a row is not used, if the others suffice.
    """

    cluster_hash: str
    protocol_major: int
    protocol_minor: int = 0
    coordinator_id: str = ""
    software_version: str = ""
    min_shards: int = 1
    context_length: int | None = None
    max_batch_rows: int = 512
    kv_block_tokens: int = 32
    target_kv_tokens: int = 0
    wire: str = "Q8_0_OUTLIERS"
    kv_cache: str = "F16"
    heartbeat_interval_s: float = 1.0
    lease_timeout_s: float = 5.0
    settle_s: float = 0.5
    hop_s: float = 0.0005
    grace_s: float = 0.5
    longest_pause_s: float = 10.0
    load_stall_s: float = 120.0
    open_timeout_s: float = 10.0
    set_aside_after: int = 3
    set_aside_s: float = 60.0

    @property
    def expectation(self) -> Expectation:
        return Expectation(self.cluster_hash, self.protocol_major, self.protocol_minor)

    @property
    def kv(self) -> KvDemand:
        return KvDemand(self.kv_block_tokens, self.target_kv_tokens)

    def pause_s(self, failures: int) -> float:
        """Pause after so many failures in a row (1 or more)."""
        return min(self.longest_pause_s, self.grace_s * 2.0 ** min(failures - 1, 20))


class Phase(Enum):
    """
    WAITING    no plan is possible, or the first one settles          plan found -> LOADING
    LOADING    the shards of a plan load their units                  all loaded -> OPENING
    OPENING    the coordinator dials the first shard                  opened -> SERVING
    SERVING    answers come
    RETRYING   the ring is closed; a pause, then a plan of a new epoch

    A lost shard of the plan leads from every phase to LOADING, or to WAITING if the rest does not suffice.
    """

    WAITING = "waiting"
    LOADING = "loading"
    OPENING = "opening"
    SERVING = "serving"
    RETRYING = "retrying"


SUCCESSORS: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.WAITING, Phase.LOADING}),
    Phase.LOADING: frozenset({Phase.WAITING, Phase.LOADING, Phase.OPENING, Phase.RETRYING}),
    Phase.OPENING: frozenset({Phase.WAITING, Phase.LOADING, Phase.SERVING, Phase.RETRYING}),
    Phase.SERVING: frozenset({Phase.WAITING, Phase.LOADING, Phase.RETRYING}),
    Phase.RETRYING: frozenset({Phase.WAITING, Phase.LOADING}),
}

COUNTS_IN: dict[type[Event], frozenset[Phase]] = {
    LoadProgressed: frozenset({Phase.LOADING}),
    StageLoaded: frozenset({Phase.LOADING}),
    StageLoadFailed: frozenset({Phase.LOADING, Phase.OPENING, Phase.SERVING}),
    EdgeBroken: frozenset({Phase.LOADING, Phase.OPENING, Phase.SERVING}),
    RingOpened: frozenset({Phase.OPENING}),
    RingBroken: frozenset({Phase.OPENING, Phase.SERVING}),
    StepMeasured: frozenset({Phase.SERVING}),
}
"""Phases in which an event of the current epoch means something. In all others it is late, and ignored."""


class ShardPhase(Enum):
    JOINED = "joined"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Member:
    """An admitted shard.

    lease_from_s: the lease runs from here; last_seen_s: its last sign of life (they differ after the coordinator itself stood still).
    retry_at_s: when its assignment is sent again, None if no retry is due.
    failures: failed attempts in a row. unused_until_s: not planned before; infinity for as long as this process lives.
    """

    hello: ShardHello
    lease: LeaseId
    lease_from_s: float
    last_seen_s: float
    phase: ShardPhase = ShardPhase.JOINED
    note: str = ""
    usage: ShardUsage = field(default_factory=ShardUsage)
    round_trip_us: int = 0
    least_round_trip_us: int = 0
    load: LoadProgress = field(default_factory=LoadProgress)
    load_moved_s: float = 0.0
    retry_at_s: float | None = None
    failures: int = 0
    unused_until_s: float = -math.inf

    @property
    def name(self) -> str:
        return self.hello.name

    @property
    def boot_id(self) -> str:
        return self.hello.boot_id

    @property
    def peer(self) -> Peer:
        return Peer(self.name, self.hello.addresses)

    def heard(self, now_s: float) -> None:
        self.lease_from_s = self.last_seen_s = now_s

    def offer(self, default_hop_s: float) -> ShardOffer:
        capabilities = self.hello.capabilities
        return ShardOffer(
            self.name,
            capabilities.memory_budget_bytes,
            capabilities.reserved_bytes,
            capabilities.decode_s_per_byte,
            self.least_round_trip_us / 2e6 or default_hop_s,
            capabilities.architectures,
            capabilities.block_formats,
        )
