"""The state of the cluster machine: settings, phases, plans. Only the parts of the machine change it."""

import math
from dataclasses import dataclass, field
from enum import Enum

from dairllm.coordinator.cluster.admission import Expectation
from dairllm.coordinator.cluster.events import (
    EdgeBroken,
    Event,
    LoadProgressed,
    RingBroken,
    RingDrained,
    RingOpened,
    StageActivated,
    StageLoaded,
    StageLoadFailed,
    StepMeasured,
)
from dairllm.coordinator.cluster.facts import NO_EPOCH, Epoch, Holder
from dairllm.coordinator.planner import KvDemand, ModelDemand, Plan


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Settings of a cluster.

    context_length: None for the model's; never more than the model's.
    target_kv_tokens: tokens that the KV cache should hold where memory allows, for all sequences together.
    wire: name of the encoding between shards, for the snapshot.
    kv_cache: element type of the KV cache on every shard.
    settle_s: how long after a join planning waits, so that machines that start together are planned together.
    hop_s: what an edge of the ring costs a step until hop_round_trips of the shard were heard; then half of the least of them counts,
        since a machine that is busy, as while it loads, answers late.
    grace_s: how long after a broken edge membership has time to notice that a shard is lost; doubles with every failure in a
        row, up to longest_pause_s.
    load_stall_s: a stage that reports no progress for this long has failed.
    open_timeout_s: how long the coordinator dials the first shard, which has switched already.
    set_aside_s: how long a shard that failed set_aside_after times in a row is not used, if the others suffice.
    avoid_after: after so many failures of one edge in a row, while both ends live, plans go around the link, if they can: for avoid_s,
        twice as long with each further failure, up to longest_avoid_s.
    held_settle_s: after a restart of the coordinator, how long the first plan waits for shards that hold the rest of the model.
    drain_timeout_s, activate_timeout_s: how long a graceful end of a ring, and a switch with its transfers, may take.
    beside_pause_s: pause after a plan that could not be prepared beside the one that serves; doubles, up to longest_beside_pause_s.
    better_after_s, better_interval_s: another plan only because it is faster, which nobody has joined, left or asked for, is made when one
        has served for so long, and this long after the last such plan.
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
    lease_timeout_s: float = 4.5
    settle_s: float = 0.5
    hop_s: float = 0.0005
    hop_round_trips: int = 5
    grace_s: float = 0.5
    longest_pause_s: float = 10.0
    load_stall_s: float = 120.0
    open_timeout_s: float = 5.0
    set_aside_after: int = 3
    set_aside_s: float = 60.0
    avoid_after: int = 2
    avoid_s: float = 60.0
    longest_avoid_s: float = 600.0
    held_settle_s: float = 2.0
    drain_timeout_s: float = 3.0
    activate_timeout_s: float = 30.0
    beside_pause_s: float = 5.0
    longest_beside_pause_s: float = 300.0
    better_after_s: float = 10.0
    better_interval_s: float = 30.0

    @property
    def expectation(self) -> Expectation:
        return Expectation(self.cluster_hash, self.protocol_major, self.protocol_minor)

    @property
    def kv(self) -> KvDemand:
        return KvDemand(self.kv_block_tokens, self.target_kv_tokens)

    def pause_s(self, failures: int) -> float:
        """Pause after so many failures in a row (1 or more)."""
        return min(self.longest_pause_s, self.grace_s * 2.0 ** min(failures - 1, 20))

    def avoidance_s(self, failures: int) -> float:
        """How long plans go around a link after so many failures of an edge in a row (avoid_after or more)."""
        return min(self.longest_avoid_s, self.avoid_s * 2.0 ** min(failures - self.avoid_after, 20))

    def pause_beside_s(self, failures: int) -> float:
        """Pause before the next plan beside the one that serves, after so many that failed in a row (1 or more)."""
        return min(self.longest_beside_pause_s, self.beside_pause_s * 2.0 ** min(failures - 1, 20))


class Cordon(Enum):
    """Whether people want a shard not to be used."""

    NONE = "none"
    UNLESS_NEEDED = "unless needed"
    FORCED = "forced"


class Phase(Enum):
    """
    WAITING     no plan is possible, or the first one settles           plan found -> LOADING
    LOADING     no ring is open; a plan is prepared                     all loaded -> ACTIVATING
    SERVING     answers come                                            better plan -> PREPARING
    PREPARING   answers come; another plan is prepared beside           all loaded -> DRAINING, no use any more -> SERVING
    DRAINING    the ring of the old plan empties                        drained -> ACTIVATING, or LOADING for what did not fit beside
    ACTIVATING  shards build the stages of the new plan                 all done -> OPENING
    OPENING     the coordinator dials the first shard                   opened -> SERVING
    RETRYING    the ring is closed; a pause, then a plan of a new epoch

    A lost shard of the plan leads from every phase to LOADING, or to WAITING if the rest does not suffice. The plan that is being
    prepared is the candidate: there is one in LOADING, PREPARING and DRAINING. With ACTIVATING it becomes the active plan.
    """

    WAITING = "waiting"
    LOADING = "loading"
    SERVING = "serving"
    PREPARING = "preparing"
    DRAINING = "draining"
    ACTIVATING = "activating"
    OPENING = "opening"
    RETRYING = "retrying"


WITH_CANDIDATE = frozenset({Phase.LOADING, Phase.PREPARING, Phase.DRAINING})
ANSWERING = frozenset({Phase.SERVING, Phase.PREPARING})
RING_IN_USE = frozenset({Phase.SERVING, Phase.PREPARING, Phase.DRAINING, Phase.OPENING})
"""Phases with a ring that a CloseRing would end."""
STAGES_IN_USE = RING_IN_USE | {Phase.ACTIVATING}

SUCCESSORS: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.LOADING}),
    Phase.LOADING: frozenset({Phase.WAITING, Phase.ACTIVATING, Phase.RETRYING}),
    Phase.SERVING: frozenset({Phase.WAITING, Phase.PREPARING, Phase.RETRYING}),
    Phase.PREPARING: frozenset({Phase.WAITING, Phase.SERVING, Phase.DRAINING, Phase.RETRYING}),
    Phase.DRAINING: frozenset({Phase.WAITING, Phase.LOADING, Phase.ACTIVATING, Phase.RETRYING}),
    Phase.ACTIVATING: frozenset({Phase.WAITING, Phase.OPENING, Phase.RETRYING}),
    Phase.OPENING: frozenset({Phase.WAITING, Phase.SERVING, Phase.RETRYING}),
    Phase.RETRYING: frozenset({Phase.WAITING, Phase.LOADING}),
}
"""A phase may also be entered again."""

COUNTS_FOR_CANDIDATE: dict[type[Event], frozenset[Phase]] = {
    LoadProgressed: WITH_CANDIDATE,
    StageLoaded: WITH_CANDIDATE,
    StageLoadFailed: WITH_CANDIDATE,
}
COUNTS_FOR_ACTIVE: dict[type[Event], frozenset[Phase]] = {
    StageLoadFailed: STAGES_IN_USE,
    StageActivated: frozenset({Phase.ACTIVATING}),
    EdgeBroken: STAGES_IN_USE,
    RingOpened: frozenset({Phase.OPENING}),
    RingDrained: frozenset({Phase.DRAINING}),
    RingBroken: RING_IN_USE,
    StepMeasured: ANSWERING,
}
"""Phases in which an event of the candidate's or the active epoch means something. In all others it is late, and ignored."""


NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Deployment:
    """A plan with the shards as they were when it was made. holders: of its stages, in ring order."""

    epoch: Epoch
    plan: Plan
    holders: tuple[Holder, ...]

    @property
    def owners(self) -> dict[int, Holder]:
        """Holder by layer unit."""
        last = self.plan.stages[-1].units.stop - 1
        pairs = zip(self.plan.stages, self.holders, strict=True)
        return {unit: holder for stage, holder in pairs for unit in stage.units if 0 < unit < last}

    def holder_of(self, name: str) -> Holder:
        return next(holder for holder in self.holders if holder.name == name)


@dataclass(slots=True)
class Candidate:
    """A plan that is being prepared.

    exclusive: shards that must free units before they can load theirs. assigned: shards that were told, and whether to free first.
    retry_at_s: when an assignment is sent again.
    """

    deployment: Deployment
    from_s: float
    exclusive: set[str]
    assigned: dict[str, bool] = field(default_factory=dict)
    ready: set[str] = field(default_factory=set)
    retry_at_s: dict[str, float] = field(default_factory=dict)

    @property
    def epoch(self) -> Epoch:
        return self.deployment.epoch

    @property
    def plan(self) -> Plan:
        return self.deployment.plan

    @property
    def is_waiting(self) -> bool:
        """Whether some shard that was told has not loaded its part yet."""
        return any(name not in self.ready for name in self.assigned)

    @property
    def unassigned(self) -> list[str]:
        return [name for name in self.plan.placement if name not in self.assigned]


@dataclass(slots=True)
class ClusterState:
    """Everything but members, cache and journal.

    active: the plan whose stages are in use, or were last. before: the plan whose ring opened last.
    unactivated: shards that have yet to switch.
    plan_due_s, is_plan_urgent: when to plan again; urgent: a new epoch is needed.
    closed_at_s, closed_why, is_switch: of the ring, while answers wait.
    failures_beside, beside_not_before_s: of plans that were prepared while answers came; in a row, until one of them serves.
    may_be_better, better_not_before_s: whether a faster plan than the one that serves may be possible, and when it may be looked for.
    served_from_s: when the ring opened.
    least_kv_blocks: of the plan whose ring opened last, and of all that shards may have shrunk their caches for since.
    held_from_s: when the first shard joined that held a part of the model. cordons: by name, also of shards that are away.
    steps_s: measured, by shard, None for the whole ring.
    """

    model: ModelDemand | None = None
    phase: Phase = Phase.WAITING
    reason: str = "no model is registered yet"
    missing_bytes: int = 0
    phase_from_s: float = 0.0
    newest_epoch: Epoch = NO_EPOCH
    active: Deployment | None = None
    before: Deployment | None = None
    candidate: Candidate | None = None
    unactivated: set[str] = field(default_factory=set)
    plan_due_s: float | None = None
    is_plan_urgent: bool = False
    held_from_s: float | None = None
    least_kv_blocks: int = NO_LIMIT
    closed_at_s: float | None = None
    closed_why: str = ""
    is_switch: bool = False
    cordons: dict[str, Cordon] = field(default_factory=dict)
    failures: int = 0
    failures_beside: int = 0
    beside_not_before_s: float = -math.inf
    may_be_better: bool = False
    served_from_s: float = 0.0
    better_not_before_s: float = -math.inf
    steps_s: dict[str | None, float] = field(default_factory=dict)

    @property
    def deployment(self) -> Deployment | None:
        """What people should look at: what is active, or else what is loaded."""
        if self.phase is Phase.WAITING:
            return None
        return self.candidate.deployment if self.candidate and self.phase is Phase.LOADING else self.active

    @property
    def epoch(self) -> Epoch:
        return self.active.epoch if self.active and self.phase in STAGES_IN_USE else self.newest_epoch

    @property
    def plan(self) -> Plan | None:
        return self.deployment.plan if self.deployment else None

    def cares_for(self, name: str) -> bool:
        """Whether the shard has a part in what is active or prepared."""
        in_candidate = self.candidate is not None and name in self.candidate.plan.placement
        return in_candidate or (self.active is not None and self.phase is not Phase.WAITING and name in self.active.plan.placement)

    def is_in_use(self, name: str) -> bool:
        """Whether the shard has a part in what is active, and its stage is not stopped."""
        return self.active is not None and self.phase in STAGES_IN_USE and name in self.active.plan.placement

    def enter(self, phase: Phase, reason: str, now_s: float, missing_bytes: int = 0) -> None:
        assert phase in SUCCESSORS[self.phase] or phase is self.phase, (self.phase, phase)
        self.phase, self.reason, self.missing_bytes, self.phase_from_s = phase, reason, missing_bytes, now_s
        if phase is not Phase.ACTIVATING:
            self.unactivated.clear()
        if phase not in {Phase.DRAINING, *ANSWERING}:
            self.steps_s.clear()
