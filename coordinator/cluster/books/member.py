"""An admitted shard: what it is, what it can do, how it is faring."""

import math
from copy import copy
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from dairllm.coordinator.cluster.books.disks import Disk
from dairllm.coordinator.cluster.books.expert_misses import ExpertMisses
from dairllm.coordinator.cluster.books.speeds import SpeedEstimate
from dairllm.coordinator.cluster.books.watch import Watch
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.identities import Holder, LeaseId
from dairllm.coordinator.cluster.shard_reports import LoadProgress, ShardCapabilities, ShardHello, ShardUsage, ShardWork
from dairllm.coordinator.planner import ShardOffer
from dairllm.mesh.peers import Peer
from dairllm.model_files.memory import reserve_of


class Cordon(Enum):
    """Whether people want a shard not to be used."""

    NONE = "none"
    UNLESS_NEEDED = "unless needed"
    FORCED = "forced"


CORDON_NOTES = {
    Cordon.NONE: "",
    Cordon.UNLESS_NEEDED: "cordoned: it is used only while the others do not suffice",
    Cordon.FORCED: "cordoned: it is not used",
}


class Fault(NamedTuple):
    """See Member."""

    failure: str | None
    unused_until_s: float
    num_faults: int


NO_FAULT = Fault(None, -math.inf, 0)


class ShardPhase(Enum):
    JOINED = "joined"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Member:
    """An admitted shard.

    last_seen_s: its last sign of life, from which its lease runs.
    failures: failed attempts in a row. num_faults: how often it was at fault, last_fault_s: when last.
    unused_until_s: not planned before; infinity for as long as this process lives. Who is at fault is asked then for a proof.
    proof_number, asked_at_s, num_asked: the last proof that it was asked for, and how many since the fault.
    accused: whom it has accused of late.
    num_disputes: how often another said that it sent a frame which this did not get, or the other way round.
    work: how far it is, by its last heartbeat; None if that does not say. computing: its thread, while there is work for it.
    limit_bytes, limit_until_s: it could not load more than this beside what it has, and is not asked to before then.
    unplanned_bytes: what it needs besides, as it says, more than the planner would know.
    failure: why it cannot be used as it is, None if it can. leaving: in words, that it wants to go; '' if it does not.
    is_leave_forced: it goes also if the others do not suffice: people want it, or no answer needs it.
    plan_note: what there is to say about its part in the plan, or why it has none.
    held: units of the present model in its memory. told_note: why it has no part, as it was told.
    """

    hello: ShardHello
    lease: LeaseId
    last_seen_s: float
    speed: SpeedEstimate
    failure: str | None = None
    leaving: str = ""
    is_leave_forced: bool = False
    cordon: Cordon = Cordon.NONE
    plan_note: str = ""
    usage: ShardUsage = field(default_factory=ShardUsage)
    round_trip_us: int = 0
    least_round_trip_us: int = 0
    num_round_trips: int = 0
    num_beats: int = 0
    work: ShardWork | None = None
    computing: Watch = field(default_factory=Watch)
    load: LoadProgress = field(default_factory=LoadProgress)
    load_moved_s: float = 0.0
    failures: int = 0
    num_faults: int = 0
    last_fault_s: float = -math.inf
    proof_number: int = 0
    asked_at_s: float = -math.inf
    num_asked: int = 0
    num_disputes: int = 0
    accused: str = ""
    unused_until_s: float = -math.inf
    limit_bytes: int = 0
    limit_until_s: float = -math.inf
    unplanned_bytes: int = 0
    held: frozenset[int] = frozenset()
    told_note: str = ""
    disk: Disk = field(default_factory=Disk)
    misses: ExpertMisses = field(default_factory=ExpertMisses)

    @property
    def name(self) -> str:
        return self.hello.name

    @property
    def boot_id(self) -> str:
        return self.hello.boot_id

    @property
    def holder(self) -> Holder:
        return Holder(self.name, self.boot_id)

    @property
    def has_failed(self) -> bool:
        return self.failure is not None

    @property
    def is_leaving(self) -> bool:
        return bool(self.leaving)

    @property
    def is_cordoned(self) -> bool:
        return self.cordon is not Cordon.NONE

    @property
    def is_forced(self) -> bool:
        """It is not used also if the others do not suffice."""
        return self.is_leave_forced or self.cordon is Cordon.FORCED

    @property
    def is_willing(self) -> bool:
        return not (self.is_leaving or self.is_cordoned)

    @property
    def peer(self) -> Peer:
        return Peer(self.name, self.hello.addresses)

    @property
    def room_bytes(self) -> int:
        return max(0, self.memory_beside(0))

    def memory_beside(self, scratch_bytes: int) -> int:
        """Bytes for weights and KV cache of a part with this scratch."""
        capabilities = self.hello.capabilities
        return capabilities.memory_budget_bytes - self.unplanned_bytes - capabilities.reserve.with_scratch(scratch_bytes)

    @property
    def is_computing(self) -> bool:
        """By its last heartbeat. Whether it gets anywhere with it is another question."""
        return self.work is not None and self.work.given > self.work.done

    @property
    def note(self) -> str:
        """For people. A failure comes first, then what is wanted of it, then the plan."""
        if self.failure is not None:
            return self.failure
        return self.leaving or CORDON_NOTES[self.cordon] or self.plan_note

    def take_note(self, note: str) -> None:
        """About its part in the plan; nothing more is to be said of that while it has failed or is not to be used."""
        if not self.has_failed and self.is_willing:
            self.plan_note = note

    @property
    def fault(self) -> Fault:
        lasts = self.has_failed and self.unused_until_s < math.inf
        return Fault(self.failure, self.unused_until_s, self.num_faults) if lasts else NO_FAULT._replace(num_faults=self.num_faults)

    def take_fault(self, fault: Fault) -> None:
        """Of the same life, from before its lease ended."""
        self.failure, self.unused_until_s, self.num_faults = fault

    def fail(self, failure: str, until_s: float) -> None:
        """It is not used before then, whether the others suffice or not."""
        self.failure, self.unused_until_s = failure, until_s

    def try_again(self) -> None:
        self.failure, self.unused_until_s = None, -math.inf

    def configure(self, capabilities: ShardCapabilities) -> None:
        """With other limits it may be able to do what it could not."""
        if capabilities == self.hello.capabilities:
            return
        self.hello = replace(self.hello, capabilities=capabilities)
        self.speed.probed_s = capabilities.decode_s_per_byte
        self.limit_until_s = -math.inf
        self.unplanned_bytes = 0
        if self.has_failed and self.unused_until_s == math.inf:
            self.try_again()

    def with_memory(self, memory_budget_bytes: int) -> "Member":
        """As it would be with this budget. A shard that has another reserve than is usual now keeps that."""
        now = self.hello.capabilities
        reserve = reserve_of(memory_budget_bytes) if now.reserve == reserve_of(now.memory_budget_bytes) else now.reserve
        then = replace(now, memory_budget_bytes=memory_budget_bytes, reserved_bytes=reserve.size_bytes, process_bytes=reserve.process_bytes)
        other = copy(self)
        other.speed = copy(self.speed)
        other.configure(then)
        return other

    def hop_s(self, config: ClusterConfig) -> float:
        """What the edge to it costs a step."""
        return config.hop_s if self.num_round_trips < config.hop_round_trips else self.least_round_trip_us / 2e6

    def offer(self, config: ClusterConfig, calibration: float, now_s: float) -> ShardOffer:
        capabilities = self.hello.capabilities
        return ShardOffer(
            self.name,
            capabilities.memory_budget_bytes - self.unplanned_bytes,
            capabilities.reserve,
            self.speed.planned_s(calibration),
            self.hop_s(config),
            capabilities.features,
            capabilities.block_formats,
            max(1, capabilities.num_threads),
            self.limit_bytes if now_s < self.limit_until_s else None,
            self.disk.s_per_byte,
            self.misses.ratio,
        )
