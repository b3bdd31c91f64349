"""What happens to a cluster. Events of a lease, a boot or an epoch that is past change nothing.

name and boot_id say which process of which machine; lease says which of its streams. Every event but JoinRequested is about an
admitted shard or a plan; one about an unknown shard is ignored.
"""

from dataclasses import dataclass

from dairllm.coordinator.cluster.facts import Epoch, LeaseId, LoadProgress, ShardHello, ShardUsage
from dairllm.coordinator.planner import ModelDemand


@dataclass(frozen=True, slots=True)
class ModelRegistered:
    """There is a model to serve. Comes once, or again to replace it."""

    model: ModelDemand


@dataclass(frozen=True, slots=True)
class JoinRequested:
    lease: LeaseId
    hello: ShardHello


@dataclass(frozen=True, slots=True)
class HeartbeatReceived:
    """round_trip_us: 0 if unknown."""

    name: str
    boot_id: str
    usage: ShardUsage
    round_trip_us: int = 0


@dataclass(frozen=True, slots=True)
class LeaseBroken:
    """The Join stream ended without a word. The shell has closed it."""

    name: str
    boot_id: str
    lease: LeaseId
    reason: str


@dataclass(frozen=True, slots=True)
class ShardLeft:
    """The shard said that it is going."""

    name: str
    boot_id: str
    lease: LeaseId
    reason: str


@dataclass(frozen=True, slots=True)
class LoadProgressed:
    name: str
    boot_id: str
    epoch: Epoch
    progress: LoadProgress


@dataclass(frozen=True, slots=True)
class StageLoaded:
    name: str
    boot_id: str
    epoch: Epoch
    weights_bytes: int
    kv_cache_bytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class StageLoadFailed:
    name: str
    boot_id: str
    epoch: Epoch
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class EdgeBroken:
    """The stream from `reporter` to `peer` broke."""

    epoch: Epoch
    reporter: str
    peer: str
    message: str


@dataclass(frozen=True, slots=True)
class RingOpened:
    """The coordinator's stream to the first shard stands: frames may be sent."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class RingBroken:
    """The ring could not be opened, broke at the coordinator's end, or did not answer in time."""

    epoch: Epoch
    message: str


@dataclass(frozen=True, slots=True)
class StepMeasured:
    """A micro-batch of one row took step_s: on one shard, or on the whole ring if shard is None."""

    epoch: Epoch
    shard: str | None
    step_s: float


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Comes several times per heartbeat interval. Leases expire only here, so that events that queued up are heard first."""


Event = (
    ModelRegistered
    | JoinRequested
    | HeartbeatReceived
    | LeaseBroken
    | ShardLeft
    | LoadProgressed
    | StageLoaded
    | StageLoadFailed
    | EdgeBroken
    | RingOpened
    | RingBroken
    | StepMeasured
    | TimePassed
)
