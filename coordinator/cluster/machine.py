"""The cluster machine: membership, leases, plans, recovery. `handle(event, now_s)` takes what happened and returns what is to be done.

It holds no clock, no sockets and no tasks, so that a cluster of a thousand shards with faults runs in a unit test, in simulated
time; equal events at equal times give equal actions. A lost shard is an event like any other.

Here stands what counts when, and who takes care of it; the parts that do stand in the order of the package's docstring. Phases and their
successors stand in `state.Phase`; when an event of a plan counts, in `state.COUNTS_FOR_CANDIDATE` and `state.COUNTS_FOR_ACTIVE`.

A plan has an epoch, which only grows, over restarts of the coordinator too. Every change of plan has two parts. First the candidate
is prepared: shards load what they lack, beside the plan that is active and goes on answering. When all are ready, the ring empties, the
shards activate their new stages and fetch the KV cache of layers that moved, and the ring of the new epoch opens: only this is a pause
for those who wait for answers. A shard whose memory cannot hold the old and the new part together frees the old one first; it is told to
only when all others are ready and the ring is closed.

While answers come, plans change only for a gain over the planner's hysteresis, and seldom unless somebody joins, or because a shard
leaves, is cordoned or has other limits. While none come, a plan moves as little as possible: a lost shard is replaced in the same call
that reports it, and what is better can be prepared later. A broken edge is usually the first sign of a lost shard, so planning pauses
for `grace_s`; if all are alive after it, the same plan starts again with a new epoch, after pauses that double. A shard that keeps
failing is set aside for a while if the others suffice; one whose stage can never load (too little memory, weights that differ) is used
again only after a restart, or for what it has.
"""

from dairllm.coordinator.cluster.actions import Action, EventKind
from dairllm.coordinator.cluster.books import Books
from dairllm.coordinator.cluster.cache_places import CachePlaces
from dairllm.coordinator.cluster.events import (
    AnswersRecovered,
    CapabilitiesChanged,
    ConfigureRequested,
    CordonRequested,
    DrainRequested,
    EdgeBroken,
    Event,
    HeartbeatReceived,
    JoinRequested,
    LeaseBroken,
    LoadProgressed,
    ModelRegistered,
    RingBroken,
    RingDrained,
    RingOpened,
    ShardLeaving,
    ShardLeft,
    StageActivated,
    StageLoaded,
    StageLoadFailed,
    StepMeasured,
    TimePassed,
)
from dairllm.coordinator.cluster.facts import Epoch
from dairllm.coordinator.cluster.failures import Failures
from dairllm.coordinator.cluster.idle_shards import IdleShards
from dairllm.coordinator.cluster.invariants import check_state
from dairllm.coordinator.cluster.joins_and_losses import JoinsAndLosses
from dairllm.coordinator.cluster.journal import Journal
from dairllm.coordinator.cluster.links import Links
from dairllm.coordinator.cluster.measurements import Measurements
from dairllm.coordinator.cluster.plan_search import PlanSearch
from dairllm.coordinator.cluster.planning import Planning
from dairllm.coordinator.cluster.preparation import Preparation
from dairllm.coordinator.cluster.roster import Roster
from dairllm.coordinator.cluster.snapshot import NO_LOAD, ClusterSnapshot, EngineLoad, take_snapshot
from dairllm.coordinator.cluster.state import COUNTS_FOR_ACTIVE, COUNTS_FOR_CANDIDATE, ClusterConfig, ClusterState, Phase
from dairllm.coordinator.cluster.switch import Switch
from dairllm.coordinator.cluster.wishes import Wishes
from dairllm.coordinator.cluster.words import describe_recovery
from dairllm.coordinator.planner import Infeasible, Plan

MemberEvent = JoinRequested | HeartbeatReceived | LeaseBroken | ShardLeft | TimePassed
WishEvent = ShardLeaving | DrainRequested | CordonRequested | ConfigureRequested | CapabilitiesChanged
StageEvent = LoadProgressed | StageLoaded | StageLoadFailed | StageActivated
RingEvent = EdgeBroken | RingOpened | RingDrained | RingBroken | StepMeasured


class ClusterMachine:
    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._journal = Journal(config.lease_timeout_s / 2)
        self._members = Roster(config, self._journal)
        self._state = ClusterState()
        self._links = Links(config)
        books = Books(config, self._journal, self._members, self._state, CachePlaces(), self._links)
        idle = IdleShards(books)
        self._search = PlanSearch(books)
        self._switch = Switch(books, idle)
        self._preparation = Preparation(books, idle, self._switch)
        self._planning = Planning(books, idle, self._search, self._switch, self._preparation)
        self._failures = Failures(books, self._switch, self._preparation, self._planning)
        self._joins_and_losses = JoinsAndLosses(books, idle, self._switch, self._preparation, self._planning, self._failures)
        self._wishes = Wishes(books, idle, self._search, self._planning)
        self._measurements = Measurements(books)

    # -- what it is now

    @property
    def epoch(self) -> Epoch:
        """Of the plan whose stages are in use; while none are, of the newest. It only grows."""
        return self._state.epoch

    @property
    def candidate_epoch(self) -> Epoch | None:
        return self._state.candidate.epoch if self._state.candidate else None

    @property
    def plan(self) -> Plan | None:
        """The plan that is loaded while no ring is open, or else the last one that was in use; None while waiting."""
        return self._state.plan

    @property
    def phase(self) -> Phase:
        return self._state.phase

    @property
    def reason(self) -> str:
        """Why it is not serving; '' while it is."""
        return self._state.reason

    @property
    def missing_bytes(self) -> int:
        """Memory that is missing for any plan; 0 if nothing or something else is missing."""
        return self._state.missing_bytes

    def has_member(self, name: str) -> bool:
        return name in self._members

    def can_do_without(self, name: str) -> Infeasible | None:
        """None if the others can serve the model without this shard, or if the model is not served with it either; else what is missing."""
        return self._search.lack_without(name)

    def avoids(self, one: str, other: str) -> bool:
        """Whether the link between these two members has failed so often that it is not used."""
        return self._links.avoids(one, other, self._journal.now_s)

    def snapshot(self, now_s: float, load: EngineLoad = NO_LOAD) -> ClusterSnapshot:
        """Everything that people may want to know, now. load: what the engine says, which the machine does not know."""
        return take_snapshot(self._config, self._state, self._members, tuple(self._journal.records), self._journal.own_s(now_s), load)

    def check_invariants(self) -> None:
        """What holds between any two events. For tests: it costs time, and raises AssertionError."""
        check_state(self._config, self._state, self._members)

    # -- what happens

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take an event and return the actions, in order. now_s: any clock that does not run backwards."""
        self._journal.begin(now_s)
        self._note_life(event)
        if self._counts(event):
            self._dispatch(event)
        if isinstance(event, TimePassed):
            self._run_timers()
            if event.is_idle:
                self._wishes.let_needed_go()
        self._planning.plan_if_due()
        return self._journal.actions

    def _note_life(self, event: Event) -> None:
        """Every word of a shard renews its lease, also one that comes too late for its plan."""
        match event:
            case HeartbeatReceived() | LoadProgressed() | StageLoaded() | StageLoadFailed() | StageActivated():
                self._members.hear(event.name, event.boot_id)
            case ShardLeaving() | CapabilitiesChanged():
                self._members.hear(event.name, event.boot_id)

    def _run_timers(self) -> None:
        """These look at every member, so not with every heartbeat."""
        self._failures.welcome_back_set_aside()
        self._measurements.forget_old_speeds()
        self._preparation.retry_loads()
        self._failures.notice_stalls()
        self._failures.forget_failures()
        self._failures.try_links_again()

    # -- what counts

    def _counts(self, event: Event) -> bool:
        """Whether the event is about this lease, boot and epoch."""
        match event:
            case LeaseBroken() | ShardLeft():
                return self._members.has_lease(event.name, event.boot_id, event.lease)
            case HeartbeatReceived() | ShardLeaving() | CapabilitiesChanged():
                return self._members.is_current(event.name, event.boot_id)
            case DrainRequested() | ConfigureRequested():
                return event.name in self._members
            case CordonRequested():
                return event.name in self._members or event.name in self._state.cordons
            case LoadProgressed() | StageLoaded() | StageLoadFailed() | StageActivated():
                return self._members.is_current(event.name, event.boot_id) and self._is_in_time(event, event.epoch, event.name)
            case EdgeBroken() | RingOpened() | RingDrained() | RingBroken() | StepMeasured():
                return self._is_in_time(event, event.epoch)
            case ModelRegistered() | JoinRequested() | TimePassed() | AnswersRecovered():
                return True

    def _is_in_time(self, event: Event, epoch: Epoch, name: str | None = None) -> bool:
        return self._is_for_candidate(event, epoch, name) or self._is_for_active(event, epoch, name)

    def _is_for_candidate(self, event: Event, epoch: Epoch, name: str | None) -> bool:
        candidate = self._state.candidate
        if candidate is None or candidate.epoch != epoch or self._state.phase not in COUNTS_FOR_CANDIDATE.get(type(event), ()):
            return False
        return name in candidate.assigned

    def _is_for_active(self, event: Event, epoch: Epoch, name: str | None) -> bool:
        active = self._state.active
        if active is None or active.epoch != epoch or self._state.phase not in COUNTS_FOR_ACTIVE.get(type(event), ()):
            return False
        return name is None or name in active.plan.placement

    # -- who takes care of it

    def _dispatch(self, event: Event) -> None:
        match event:
            case ModelRegistered():
                self._planning.on_model(event.model)
            case JoinRequested() | HeartbeatReceived() | LeaseBroken() | ShardLeft() | TimePassed():
                self._dispatch_membership(event)
            case ShardLeaving() | DrainRequested() | CordonRequested() | ConfigureRequested() | CapabilitiesChanged():
                self._dispatch_wish(event)
            case LoadProgressed() | StageLoaded() | StageLoadFailed() | StageActivated():
                self._dispatch_stage(event)
            case EdgeBroken() | RingOpened() | RingDrained() | RingBroken() | StepMeasured():
                self._dispatch_ring(event)
            case AnswersRecovered():
                self._journal.record(EventKind.RECOVERED, "", describe_recovery(event), event.duration_s)

    def _dispatch_membership(self, event: MemberEvent) -> None:
        match event:
            case JoinRequested():
                self._joins_and_losses.on_join(event)
            case HeartbeatReceived():
                self._members.beat(event)
            case LeaseBroken():
                self._joins_and_losses.on_lease_broken(event)
            case ShardLeft():
                self._joins_and_losses.on_left(event)
            case TimePassed():
                self._joins_and_losses.expire_leases()

    def _dispatch_wish(self, event: WishEvent) -> None:
        match event:
            case ShardLeaving():
                self._wishes.on_leaving(event)
            case DrainRequested():
                self._wishes.on_drain(event)
            case CordonRequested():
                self._wishes.on_cordon(event)
            case ConfigureRequested():
                self._wishes.on_configure(event)
            case CapabilitiesChanged():
                self._wishes.on_capabilities(event)

    def _dispatch_stage(self, event: StageEvent) -> None:
        match event:
            case LoadProgressed():
                self._preparation.on_progress(event)
            case StageLoaded():
                self._preparation.on_loaded(event)
            case StageLoadFailed():
                self._failures.on_load_failed(event)
            case StageActivated():
                self._switch.on_activated(event)

    def _dispatch_ring(self, event: RingEvent) -> None:
        match event:
            case EdgeBroken():
                self._failures.on_edge_broken(event)
            case RingOpened():
                self._switch.on_opened()
            case RingDrained():
                self._preparation.go_on_with_closed_ring()
            case RingBroken():
                self._failures.on_ring_broken(event.message)
            case StepMeasured():
                self._measurements.on_step(event)
