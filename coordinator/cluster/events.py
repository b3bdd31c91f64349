"""What happens to a cluster. Events of a lease, a boot or an epoch that is past change nothing.

name and boot_id say which process of which machine; lease says which of its streams. What people want names a shard only. Every event
but JoinRequested is about an admitted shard or a plan; one about an unknown shard is ignored.
"""

from dataclasses import dataclass

from dairllm.coordinator.cluster.identities import Epoch, LeaseId
from dairllm.coordinator.cluster.shard_reports import LoadProgress, ShardCapabilities, ShardHello, ShardUsage, ShardWork
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
    """round_trip_us: 0 if unknown. work: how far it is; None if it does not say."""

    name: str
    boot_id: str
    usage: ShardUsage
    round_trip_us: int = 0
    work: ShardWork | None = None


@dataclass(frozen=True, slots=True)
class LeaseBroken:
    """The Join stream ended without a word. The shell has closed it."""

    name: str
    boot_id: str
    lease: LeaseId
    reason: str


@dataclass(frozen=True, slots=True)
class ShardLeft:
    """The shard said that it is going, and is gone: Leaving without `drain`."""

    name: str
    boot_id: str
    lease: LeaseId
    reason: str


@dataclass(frozen=True, slots=True)
class ShardLeaving:
    """The shard wants to go, and waits until it is released: Leaving with `drain`."""

    name: str
    boot_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """A person wants the shard to hand over its layers and leave. force: also if the others do not suffice."""

    name: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class CordonRequested:
    """A person wants the shard not to be used while the others suffice (force: in any case), or (cordoned=False) to be used again."""

    name: str
    cordoned: bool
    force: bool = False


@dataclass(frozen=True, slots=True)
class ConfigureRequested:
    """A person changes limits of a shard; None leaves one as it is."""

    name: str
    memory_budget_bytes: int | None = None
    num_threads: int | None = None


@dataclass(frozen=True, slots=True)
class CapabilitiesChanged:
    """The answer to ConfigureLimits. refusal: why the shard has applied nothing, empty if it has."""

    name: str
    boot_id: str
    capabilities: ShardCapabilities
    refusal: str = ""


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
class StageActivated:
    """transferred_units: those of the moves whose KV cache it has now. seconds: what it took. note: why not all, '' if all."""

    name: str
    boot_id: str
    epoch: Epoch
    transferred_units: frozenset[int]
    transferred_bytes: int
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class StageLoadFailed:
    """A stage could not be loaded, or one that was loaded does not work.

    needs_exclusive: it would fit, but not beside what the shard holds for the plan that is active.
    missing_bytes: by how much it exceeds the shard's memory; 0 if something else is wrong.
    """

    name: str
    boot_id: str
    epoch: Epoch
    message: str
    retryable: bool
    needs_exclusive: bool = False
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EdgeBroken:
    """The stream from `reporter` to `peer` broke. silent: it stood, but nothing came from the peer for as long as a lease allows."""

    epoch: Epoch
    reporter: str
    peer: str
    message: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class MemberAtFault:
    """The member sent what cannot be, or does not do what it must: whatever it says of itself, it is not to be used as it is.

    reason: as a part of a sentence whose subject is the shard: 'sent a token that is not in the vocabulary'.
    is_believed: what it sent before was right, so that the others' caches, which were computed from it, are good.
    """

    name: str
    boot_id: str
    reason: str
    is_believed: bool = False


@dataclass(frozen=True, slots=True)
class MemberAccused:
    """The shard says that the member before it in the ring of this plan, `peer`, has sent it what cannot be. reason: in its words."""

    name: str
    boot_id: str
    epoch: Epoch
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class FramesAwaited:
    """What the coordinator has sent around the ring of this epoch and waits for. Comes with every TimePassed while it waits.

    num_back: frames that have come back in this epoch, in their order. most_work: of the frames under way, in rows of a short sequence.
    """

    epoch: Epoch
    num_back: int
    most_work: float


@dataclass(frozen=True, slots=True)
class ProofGiven:
    """The answer to AskForProof. is_right: it is what this computation gives on every machine."""

    name: str
    boot_id: str
    number: int
    is_right: bool


@dataclass(frozen=True, slots=True)
class RingOpened:
    """The first frame has gone all the way round, and the engine has begun to send.

    It must be the engine's first: from now on the cache of every layer counts as being with its owner, since the engine has what was
    missing computed again, or begins anew.
    """

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class RingDrained:
    """After a graceful CloseRing: nothing is in flight any more, or it was waited for long enough."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class RingBroken:
    """The ring could not be opened, broke at the coordinator's end, or did not answer in time."""

    epoch: Epoch
    message: str


@dataclass(frozen=True, slots=True)
class AnswersRecovered:
    """All answers that ran when the last ring closed have gone on, duration_s after it.

    kept: at once; replayed: after a replay of lost layers; restarted: from their beginning. share: of the work that computing all of
    them again would have been.
    """

    num_kept: int
    num_replayed: int
    num_restarted: int
    share: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class StepMeasured:
    """A micro-batch that only decodes took step_s: computing on one shard, or the whole ring if shard is None. Comes about once a second.

    rows: one for each sequence in it, on average.
    """

    epoch: Epoch
    shard: str | None
    step_s: float
    rows: float = 1.0


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Comes several times per heartbeat interval. Leases expire only here, so that events that queued up are heard first.

    is_idle: no answer runs or waits at this moment.
    """

    is_idle: bool = False


WordOfShard = (
    HeartbeatReceived | ShardLeaving | CapabilitiesChanged | LoadProgressed | StageLoaded | StageLoadFailed | StageActivated | ProofGiven
)
"""What a shard says on its Join stream. Each is a sign of life that renews its lease, also one that comes too late for its plan."""

Event = (
    WordOfShard
    | ModelRegistered
    | JoinRequested
    | LeaseBroken
    | ShardLeft
    | DrainRequested
    | CordonRequested
    | ConfigureRequested
    | EdgeBroken
    | MemberAtFault
    | MemberAccused
    | FramesAwaited
    | RingOpened
    | RingDrained
    | RingBroken
    | AnswersRecovered
    | StepMeasured
    | TimePassed
)
