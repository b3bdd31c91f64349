"""What the shell does for the cluster machine, in the order of the list.

Nothing is awaited: what comes of an action returns as an event.
"""

from dataclasses import dataclass
from enum import StrEnum

from dairllm.coordinator.cluster.identities import Epoch, Holder, LeaseId
from dairllm.coordinator.planner import Plan
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.peers import Peer


class EventKind(StrEnum):
    """What is counted in metrics; the values are the `kind` of ClusterEvent in cluster.proto."""

    JOINED = "joined"
    REFUSED = "refused"
    RECONNECTED = "reconnected"
    LOST = "lost"
    LEAVING = "leaving"
    LEFT = "left"
    CORDONED = "cordoned"
    CONFIGURED = "configured"
    SPEED_CHANGED = "speed_changed"
    LEFT_OUT = "left_out"
    PLAN = "plan"
    PREPARING = "preparing"
    CANDIDATE_DROPPED = "candidate_dropped"
    LOADED = "loaded"
    LOAD_FAILED = "load_failed"
    SET_ASIDE = "set_aside"
    PROVED = "proved"
    SWITCHING = "switching"
    TRANSFER_INCOMPLETE = "transfer_incomplete"
    SERVING = "serving"
    SWITCHED = "switched"
    RECOVERED = "recovered"
    RESUMED = "resumed"
    RETRY = "retry"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """Something that happened, in plain words. shard: whom it is about, '' if all. duration_s: how long it took, 0 if it took no time.

    number: in the order of what happened, 0 if it has none yet. times: how often the same happened.
    """

    time_s: float
    kind: EventKind
    shard: str
    text: str
    duration_s: float = 0.0
    number: int = 0
    times: int = 1


@dataclass(frozen=True, slots=True)
class AdmitShard:
    """Answer `welcome` on this lease's stream; from now on it is the shard's."""

    name: str
    boot_id: str
    lease: LeaseId


@dataclass(frozen=True, slots=True)
class RefuseShard:
    """End this lease's stream with the error."""

    name: str
    boot_id: str
    lease: LeaseId
    error: DairllmError


@dataclass(frozen=True, slots=True)
class EndLease:
    """End the stream (ABORTED: join again). The shard is no member any more, and no LeaseBroken is expected for it."""

    name: str
    boot_id: str
    lease: LeaseId
    reason: str


@dataclass(frozen=True, slots=True)
class AssignUnits:
    """Send the Assignment: prepare the stage, change nothing else. next: the member that follows, None for the coordinator.

    exclusive: the shard may free units that are not among these first; only sent while the ring is closed. The same epoch may be assigned
    again, also as exclusive what was not before. streamed: units whose weights do not stay in memory. expert_places: so many
    experts do, 0: all.
    """

    name: str
    boot_id: str
    epoch: Epoch
    units: range
    next: Peer | None
    num_kv_blocks: int
    kv_block_tokens: int
    context_length: int
    max_batch_rows: int
    exclusive: bool = False
    streamed: tuple[int, ...] = ()
    expert_places: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """The KV cache of these layer units lies with another shard, which lives."""

    units: range
    source: Peer


@dataclass(frozen=True, slots=True)
class ActivateStage:
    """Send ActivateStage, with the cache blocks that are in use and the sequences that are alive. StageActivated is expected.

    Sent to all shards of a plan at once, when all have loaded and nothing is in flight.
    """

    name: str
    boot_id: str
    epoch: Epoch
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class ReleaseShard:
    """Send the Release: the plan of this epoch has no part for the shard. leave: it asked to leave, and may end now."""

    name: str
    boot_id: str
    epoch: Epoch
    reason: str
    leave: bool = False


@dataclass(frozen=True, slots=True)
class OpenRing:
    """All stages are active: dial the first shard, then report RingOpened or RingBroken.

    first: where it is. holders: the shards of the plan's stages, in ring order, with their boots.
    kept, transferred: layer units whose owner has the KV cache of everything that was computed up to the end of the last ring that
    opened. kept: it had them in that ring, too, and never gave them up; transferred: it has taken them over since. The cache of all
    other layers is empty, whoever owned them before, and must be rebuilt.
    intact_blocks: cache blocks from this one on are empty on some shard, though the plan may have more: a plan that was made in the
    meantime had fewer.
    """

    epoch: Epoch
    plan: Plan
    first: Peer
    holders: tuple[Holder, ...]
    kept: frozenset[int]
    transferred: frozenset[int]
    intact_blocks: int


@dataclass(frozen=True, slots=True)
class CloseRing:
    """Send nothing more in this epoch; unfinished sequences wait for the next.

    graceful: first wait until nothing is in flight, for a moment at most, then report RingDrained. Otherwise drop what is in flight now;
    no answer is needed. The second may follow the first for the same epoch.
    """

    epoch: Epoch
    reason: str
    graceful: bool = False


@dataclass(frozen=True, slots=True)
class AskToDrain:
    """Send Drain: the shard answers Leaving with `drain`, which is ShardLeaving, and goes on until it is released."""

    name: str
    boot_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class AskForProof:
    """Send Prove: the shard computes something small that is known, and answers Proof, which is ProofGiven."""

    name: str
    boot_id: str
    number: int


@dataclass(frozen=True, slots=True)
class ConfigureLimits:
    """Send Configure: the shard applies the limits that are not None, or none of them, and answers CapabilitiesChanged."""

    name: str
    boot_id: str
    memory_budget_bytes: int | None
    num_threads: int | None


@dataclass(frozen=True, slots=True)
class TellEvent:
    """Write it to the log. The machine keeps it for the snapshot."""

    event: ClusterEvent


Action = (
    AdmitShard
    | RefuseShard
    | EndLease
    | AssignUnits
    | ActivateStage
    | ReleaseShard
    | OpenRing
    | CloseRing
    | AskToDrain
    | AskForProof
    | ConfigureLimits
    | TellEvent
)
