"""The state of the cluster as people see it: what ClusterState of cluster.proto holds, and recent events."""

from dataclasses import asdict, dataclass
from typing import Any

from dairllm.coordinator.cluster.actions import ClusterEventRecord
from dairllm.coordinator.cluster.facts import Epoch, LoadProgress, ShardCapabilities, ShardUsage
from dairllm.coordinator.cluster.state import Phase, ShardPhase

_PUBLIC_PHASES = {
    Phase.WAITING: "waiting",
    Phase.LOADING: "loading",
    Phase.OPENING: "loading",
    Phase.SERVING: "serving",
    Phase.RETRYING: "loading",
}


@dataclass(frozen=True, slots=True)
class EngineLoad:
    running_sequences: int = 0
    waiting_sequences: int = 0
    kv_blocks_free: int = 0


NO_LOAD = EngineLoad()


@dataclass(frozen=True, slots=True)
class ShardSnapshot:
    """See ShardState in cluster.proto. stage: position in the ring or None; units: empty if it has none."""

    name: str
    addresses: tuple[str, ...]
    phase: ShardPhase
    stage: int | None
    units: range
    capabilities: ShardCapabilities
    usage: ShardUsage
    load: LoadProgress
    round_trip_us: int
    last_seen_s: float
    predicted_step_s: float
    measured_step_s: float
    note: str
    software_version: str

    def to_json(self) -> dict[str, Any]:
        capabilities = asdict(self.capabilities)
        for name in ("architectures", "block_formats", "features"):
            capabilities[name] = sorted(capabilities[name])
        return {
            "name": self.name,
            "addresses": list(self.addresses),
            "phase": self.phase.value,
            "stage": self.stage,
            "first_unit": self.units.start,
            "end_unit": self.units.stop,
            "capabilities": capabilities,
            "usage": asdict(self.usage),
            "load": asdict(self.load),
            "round_trip_us": self.round_trip_us,
            "last_seen_s": self.last_seen_s,
            "predicted_step_s": self.predicted_step_s,
            "measured_step_s": self.measured_step_s,
            "note": self.note,
            "software_version": self.software_version,
        }


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """See ClusterState in cluster.proto. shards: those of the plan in ring order, then the others by name. events: oldest first."""

    coordinator_id: str
    software_version: str
    model: str
    model_digest: bytes
    num_layers: int
    model_size_bytes: int
    wire: str
    phase: Phase
    reason: str
    missing_bytes: int
    epoch: Epoch
    shards: tuple[ShardSnapshot, ...]
    predicted_decode_tok_s: float
    measured_decode_tok_s: float
    running_sequences: int
    waiting_sequences: int
    kv_blocks_total: int
    kv_blocks_free: int
    events: tuple[ClusterEventRecord, ...]

    @property
    def public_phase(self) -> str:
        """'waiting', 'loading' or 'serving', as in ClusterPhase of cluster.proto."""
        return _PUBLIC_PHASES[self.phase]

    def to_json(self) -> dict[str, Any]:
        """For /api/cluster: the names of cluster.proto, phases in lower case, the digest in hex."""
        return {
            "coordinator_id": self.coordinator_id,
            "software_version": self.software_version,
            "model": self.model,
            "model_digest": self.model_digest.hex(),
            "num_layers": self.num_layers,
            "model_size_bytes": self.model_size_bytes,
            "wire": self.wire,
            "phase": self.public_phase,
            "reason": self.reason,
            "missing_bytes": self.missing_bytes,
            "epoch": self.epoch,
            "shards": [shard.to_json() for shard in self.shards],
            "predicted_decode_tok_s": self.predicted_decode_tok_s,
            "measured_decode_tok_s": self.measured_decode_tok_s,
            "running_sequences": self.running_sequences,
            "waiting_sequences": self.waiting_sequences,
            "kv_blocks_total": self.kv_blocks_total,
            "kv_blocks_free": self.kv_blocks_free,
            "events": [asdict(event) for event in self.events],
        }
