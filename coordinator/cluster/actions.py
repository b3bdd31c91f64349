"""What the shell does for the cluster machine, in the order of the list.

Nothing is awaited: what comes of an action returns as an event.
"""

from dataclasses import dataclass

from dairllm.coordinator.cluster.facts import Epoch, LeaseId, Peer
from dairllm.coordinator.planner import Plan
from dairllm.mesh.errors import DairllmError


@dataclass(frozen=True, slots=True)
class ClusterEventRecord:
    """Something that happened, in plain words. shard: whom it is about, '' if all."""

    time_s: float
    kind: str
    shard: str
    text: str


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
    """Send the Assignment. next: the member that follows, None for the coordinator. The same epoch may be assigned again."""

    name: str
    boot_id: str
    epoch: Epoch
    units: range
    next: Peer | None
    num_kv_blocks: int
    kv_block_tokens: int
    context_length: int
    max_batch_rows: int


@dataclass(frozen=True, slots=True)
class ReleaseShard:
    """Send the Release: the plan of this epoch has no part for the shard."""

    name: str
    boot_id: str
    epoch: Epoch
    reason: str


@dataclass(frozen=True, slots=True)
class OpenRing:
    """All stages are loaded: dial the first shard, then report RingOpened or RingBroken. first: where it is."""

    epoch: Epoch
    plan: Plan
    first: Peer


@dataclass(frozen=True, slots=True)
class CloseRing:
    """Send nothing more in this epoch; unfinished sequences wait for the next."""

    epoch: Epoch
    reason: str


@dataclass(frozen=True, slots=True)
class RecordEvent:
    """Write it to the log. The machine keeps it for the snapshot."""

    record: ClusterEventRecord


Action = AdmitShard | RefuseShard | EndLease | AssignUnits | ReleaseShard | OpenRing | CloseRing | RecordEvent
