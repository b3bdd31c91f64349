"""The cluster machine: membership, leases, plans, recovery. `handle(event, now_s)` takes what happened and returns what is to be done.

It holds no clock, no sockets and no tasks, so that a cluster of a thousand shards with faults runs in a unit test, in simulated
time; equal events at equal times give equal actions. A lost shard is an event like any other.

A plan has an epoch, which only grows, over restarts of the coordinator too. Every change of plan has two parts. First the candidate
is prepared: shards load what they lack, beside the plan that is active and goes on answering. When all are ready, the ring empties, the
shards activate their new stages and fetch the KV cache of layers that moved, and the ring of the new epoch opens: only this is a pause
for those who wait for answers. A shard whose memory cannot hold the old and the new part together frees the old one first; it is told to
only when all others are ready and the ring is closed. Phases and their successors stand in `state.Phase`; when an event of a plan counts,
in `state.COUNTS_FOR_CANDIDATE` and `state.COUNTS_FOR_ACTIVE`.

While answers come, plans change only for a gain over the planner's hysteresis, and seldom unless somebody joins, or because a shard
leaves, is cordoned or has other limits. While none come, a plan moves as little as possible: a lost shard is replaced in the same call
that reports it, and what is better can be prepared later. A broken edge is usually the first sign of a lost shard, so planning pauses
for `grace_s`; if all are alive after it, the same plan starts again with a new epoch, after pauses that double. A shard that keeps
failing is set aside for a while if the others suffice; one whose stage can never load (too little memory, weights that differ) is used
again only after a restart, or for what it has.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from dairllm.coordinator.cluster.actions import (
    Action,
    ActivateStage,
    AskToDrain,
    AssignUnits,
    CloseRing,
    ConfigureLimits,
    EventKind,
    Move,
    OpenRing,
    ReleaseShard,
)
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
from dairllm.coordinator.cluster.facts import Epoch, Holder, LeaseId, LoadProgress, ShardCapabilities, ShardHello
from dairllm.coordinator.cluster.invariants import check_state
from dairllm.coordinator.cluster.journal import Journal
from dairllm.coordinator.cluster.placement import needs_exclusive, placement_of_held
from dairllm.coordinator.cluster.roster import Joining, Roster
from dairllm.coordinator.cluster.snapshot import NO_LOAD, ClusterSnapshot, EngineLoad, take_snapshot
from dairllm.coordinator.cluster.speeds import calibration_of
from dairllm.coordinator.cluster.state import (
    ANSWERING,
    COUNTS_FOR_ACTIVE,
    COUNTS_FOR_CANDIDATE,
    RING_IN_USE,
    STAGES_IN_USE,
    SUCCESSORS,
    Candidate,
    ClusterConfig,
    ClusterState,
    Deployment,
    Member,
    Phase,
)
from dairllm.coordinator.cluster.words import describe_moves, describe_plan, describe_recovery, describe_units
from dairllm.coordinator.planner import Infeasible, ModelDemand, Plan, Stage, format_bytes, make_plan

MEASURED_WEIGHT = 0.1
"""Weight of the newest step in the moving average that people see."""
CORDONED = "cordoned: it is not used"


class ClusterMachine:
    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._journal = Journal()
        self._members = Roster(config, self._journal)
        self._state = ClusterState()
        self._cache = CachePlaces()

    # -- what it is now

    @property
    def epoch(self) -> Epoch:
        """Of the plan that is active; while no ring is open, of the one that is being prepared."""
        return self._state.epoch

    @property
    def candidate_epoch(self) -> Epoch | None:
        return self._state.candidate.epoch if self._state.candidate else None

    @property
    def plan(self) -> Plan | None:
        """The plan of this epoch, serving or not yet; None while waiting."""
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
        state = self._state
        if state.model is None or name not in self._members or state.phase is Phase.WAITING:
            return None
        outcome = self._find_plan(state.model, state.active.plan if state.active else None, without=frozenset({name}))
        return outcome if isinstance(outcome, Infeasible) else None

    def snapshot(self, now_s: float, load: EngineLoad = NO_LOAD) -> ClusterSnapshot:
        """Everything that people may want to know, now. load: what the engine says, which the machine does not know."""
        return take_snapshot(self._config, self._state, self._members, tuple(self._journal.records), now_s, load)

    def check_invariants(self) -> None:
        """What holds between any two events. For tests: it costs time, and raises AssertionError."""
        check_state(self._config, self._state, self._members)

    # -- time and routing

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take an event and return the actions, in order. now_s: any clock that does not run backwards."""
        self._members.stand_still(self._journal.begin(now_s))
        self._note_life(event)
        if self._counts(event):
            self._dispatch(event)
        if isinstance(event, TimePassed):
            self._run_timers()
        self._plan_if_due()
        return self._journal.actions

    @property
    def _now(self) -> float:
        return self._journal.now_s

    def _note_life(self, event: Event) -> None:
        """Every word of a shard renews its lease, also one that comes too late for its plan."""
        match event:
            case HeartbeatReceived() | LoadProgressed() | StageLoaded() | StageLoadFailed() | StageActivated():
                self._members.hear(event.name, event.boot_id)
            case ShardLeaving() | CapabilitiesChanged():
                self._members.hear(event.name, event.boot_id)

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
                return event.name in self._members or event.name in self._state.cordoned
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

    def _dispatch(self, event: Event) -> None:
        match event:
            case ModelRegistered():
                self._on_model(event.model)
            case JoinRequested() | HeartbeatReceived() | LeaseBroken() | ShardLeft() | TimePassed():
                self._on_membership(event)
            case ShardLeaving() | DrainRequested() | CordonRequested() | ConfigureRequested() | CapabilitiesChanged():
                self._on_wish(event)
            case LoadProgressed():
                self._on_progress(self._members[event.name], event.progress)
            case StageLoaded():
                self._on_loaded(event)
            case StageLoadFailed():
                self._on_load_failed(event)
            case StageActivated():
                self._on_activated(event)
            case EdgeBroken():
                self._blame(event.peer if event.peer in self._members else event.reporter)
                self._pause(f"the connection from {event.reporter} to {event.peer} broke: {event.message}")
            case RingOpened():
                self._on_opened()
            case RingDrained():
                self._go_on_with_closed_ring()
            case RingBroken():
                self._on_ring_broken(event.message)
            case StepMeasured():
                self._on_step(event.shard, event.step_s)
            case AnswersRecovered():
                self._journal.record(EventKind.RECOVERED, "", describe_recovery(event), event.duration_s)

    def _on_membership(self, event: JoinRequested | HeartbeatReceived | LeaseBroken | ShardLeft | TimePassed) -> None:
        match event:
            case JoinRequested():
                self._on_join(event.lease, event.hello)
            case HeartbeatReceived():
                self._members.beat(event)
            case LeaseBroken():
                self._lose({event.name: f"is lost: its connection broke: {event.reason}"})
            case ShardLeft():
                self._members.end_lease(self._members[event.name], event.reason)
                self._lose({event.name: f"left: {event.reason}"})
            case TimePassed():
                self._lose({name: f"is lost: {reason}" for name, reason in self._members.expire().items()})

    def _on_wish(self, event: ShardLeaving | DrainRequested | CordonRequested | ConfigureRequested | CapabilitiesChanged) -> None:
        member = self._members.get(event.name)
        if member is None:
            # Cordoned, and away: its name is remembered.
            if isinstance(event, CordonRequested) and not event.cordoned:
                self._state.cordoned.discard(event.name)
            return
        match event:
            case ShardLeaving():
                self._on_leaving(member, event.reason)
            case DrainRequested():
                member.is_forced = member.is_forced or event.force
                self._journal.do(AskToDrain(member.name, member.boot_id, "it was asked to hand over its layers and leave"))
                self._on_leaving(member, "it was asked to")
            case CordonRequested():
                self._on_cordon(member, event.cordoned, event.force)
            case ConfigureRequested():
                limits = event.memory_budget_bytes, event.num_threads
                self._journal.do(ConfigureLimits(member.name, member.boot_id, *limits))
            case CapabilitiesChanged():
                self._on_capabilities(member, event.capabilities)

    def _run_timers(self) -> None:
        """These look at every member, so not with every heartbeat."""
        self._welcome_back_set_aside()
        self._forget_old_speeds()
        self._retry_loads()
        self._notice_stalls()
        self._forget_failures()

    def _plan_if_due(self) -> None:
        due = self._state.plan_due_s is not None and self._now >= self._state.plan_due_s
        if due and (self._state.is_plan_urgent or self._state.phase in {Phase.WAITING, *ANSWERING}):
            self._replan()
        elif self._state.may_be_better and self._state.phase is Phase.SERVING:
            self._look_for_better()

    # -- members come and go

    def _on_join(self, lease: LeaseId, hello: ShardHello) -> None:
        before = self._members.get(hello.name)
        capabilities = before.hello.capabilities if before else None
        outcome = self._members.join(lease, hello)
        if outcome is Joining.REFUSED:
            return
        member = self._members[hello.name]
        if hello.name in self._state.cordoned:
            member.is_cordoned, member.note = True, CORDONED
        if self._state.model and hello.held.model_digest == self._state.model.digest:
            member.held = member.held | hello.held.units
        if outcome is Joining.RECONNECTED:
            self._repeat_orders(member)
            if capabilities != hello.capabilities:
                self._schedule_plan(self._now)
        elif outcome is Joining.RESTARTED and before is not None and self._cares_for(hello.name):
            self._go_on_without({hello.name: before.holder}, "has restarted")
        elif self._is_whole_again():
            self._schedule_plan(self._now, urgent=True)
        else:
            self._settle(member)

    def _repeat_orders(self, member: Member) -> None:
        """What was sent on the stream that broke may be lost, and is understood twice."""
        state = self._state
        if state.candidate and member.name in state.candidate.assigned and member.name not in state.candidate.ready:
            self._assign(member)
        if state.phase is Phase.ACTIVATING and member.name in state.unactivated:
            assert state.active is not None
            self._journal.do(ActivateStage(member.name, member.boot_id, state.active.epoch, self._moves_to(member)))
        self._release_idle_leaver(member)

    def _is_whole_again(self) -> bool:
        """Whether a plan is loaded because of a loss that has turned out to be none: all shards of the last one are back as they were."""
        active = self._state.active
        return self._state.phase is Phase.LOADING and active is not None and all(self._has(active, holder) for holder in active.holders)

    def _has(self, deployment: Deployment, holder: Holder) -> bool:
        units = deployment.plan.placement[holder.name]
        return self._members.lives(holder) and self._members[holder.name].held.issuperset(units)

    def _settle(self, member: Member) -> None:
        """Wait a little for shards that start together; for those with parts of the model, a little more."""
        state = self._state
        if state.phase is Phase.WAITING and state.model:
            self._enter(Phase.WAITING, "shards are joining")
        settled_s = self._now + self._config.settle_s
        if state.active is None and state.model and any(m.held for m in self._members):
            state.held_from_s = self._now if state.held_from_s is None else state.held_from_s
            is_covered = len(frozenset[int]().union(*(m.held for m in self._members))) == state.model.num_units
            latest_s = state.held_from_s + self._config.held_settle_s
            state.plan_due_s = settled_s if is_covered else max(settled_s, latest_s)
        else:
            self._schedule_plan(settled_s)

    def _lose(self, reasons: dict[str, str]) -> None:
        """reasons: by name, what happened: 'left: …', 'is lost: …'."""
        lost: dict[str, Holder] = {}
        for name, reason in reasons.items():
            member = self._members.remove(name)
            lost[name] = member.holder
            kind = EventKind.LEFT if member.is_leaving or reason.startswith("left") else EventKind.LOST
            self._journal.record(kind, name, f"shard {name} {reason}")
        if lost:
            self._go_on_without(lost, "was lost")

    def _go_on_without(self, lost: Mapping[str, Holder], what: str) -> None:
        """A new plan at once if one that is in use or in the making needs them.

        What the cache's places say of them stays: a process that lost only its connection may come back with it.
        """
        state = self._state
        reason = " and ".join(f"shard {name} {what}" for name in lost if self._cares_for(name))
        in_active = state.active is not None and any(name in state.active.plan.placement for name in lost)
        if (in_active and state.phase in STAGES_IN_USE) or (reason and state.phase in (Phase.LOADING, Phase.DRAINING, Phase.RETRYING)):
            self._interrupt(reason)
            self._schedule_plan(self._now, urgent=True)
        elif reason and state.phase is Phase.PREPARING:
            self._stop_preparing(reason)
            self._schedule_plan(self._now)
        elif state.phase is Phase.WAITING:
            self._schedule_plan(self._now)

    def _cares_for(self, name: str) -> bool:
        """Whether the shard has a part in what is active or prepared."""
        state = self._state
        in_candidate = state.candidate is not None and name in state.candidate.plan.placement
        return in_candidate or (state.active is not None and state.phase is not Phase.WAITING and name in state.active.plan.placement)

    # -- what shards and people want

    def _on_leaving(self, member: Member, reason: str) -> None:
        if not member.is_leaving:
            lack = None if member.is_forced else self.can_do_without(member.name)
            member.is_leaving = True
            until = f"; it goes on for now, since without it {lack.reason}" if lack else ""
            member.note = f"wants to leave: {reason}{until}"
            self._journal.record(EventKind.LEAVING, member.name, f"shard {member.name} {member.note}")
        self._schedule_plan(self._now)
        self._release_idle_leaver(member)

    def _release_idle_leaver(self, member: Member) -> None:
        if member.is_leaving and not self._cares_for(member.name):
            self._release(member, "it has asked to leave")

    def _on_cordon(self, member: Member, cordoned: bool, force: bool) -> None:
        if member.is_cordoned != cordoned:
            member.is_cordoned, member.note = cordoned, CORDONED if cordoned else ""
            self._state.cordoned ^= {member.name}
            self._journal.record(
                EventKind.CORDONED, member.name, f"shard {member.name} is {'cordoned' if cordoned else 'admitted to plans again'}"
            )
        member.is_forced = cordoned and force
        self._schedule_plan(self._now)

    def _on_capabilities(self, member: Member, capabilities: ShardCapabilities) -> None:
        room_bytes = member.room_bytes
        member.configure(capabilities)
        text = f"shard {member.name} has {format_bytes(member.room_bytes)} for the model (before: {format_bytes(room_bytes)})"
        self._journal.record(EventKind.CONFIGURED, member.name, f"{text} and {capabilities.num_threads} threads")
        if member.has_failed:
            member.has_failed, member.unused_until_s, member.note = False, -math.inf, ""
        self._schedule_plan(self._now)

    # -- planning

    def _on_model(self, model: ModelDemand) -> None:
        state = self._state
        limit = self._config.context_length or model.context_length
        reason = f"the model {model.name} is served from now on"
        self._close_ring(reason)
        self._drop_candidate(reason)
        state.model = replace(model, context_length=min(limit, model.context_length))
        state.active, state.held_from_s, self._cache = None, None, CachePlaces()
        for member in self._members:
            member.held = member.hello.held.units if member.hello.held.model_digest == model.digest else frozenset()
        self._wait(Infeasible("shards are joining" if len(self._members) else "no shard has joined yet"))
        for member in self._members:
            self._settle(member)

    def _schedule_plan(self, at_s: float, urgent: bool = False) -> None:
        """urgent: no ring is open, and one is needed with a new epoch, whatever the planner says. Nothing else cuts a pause short."""
        state = self._state
        if urgent:
            state.plan_due_s, state.is_plan_urgent = at_s, True
        elif not state.is_plan_urgent:
            state.plan_due_s = at_s if state.plan_due_s is None else min(at_s, state.plan_due_s)

    def _look_for_better(self) -> None:
        """Nobody has joined, left or asked for anything: plans made for that follow each other slowly."""
        state = self._state
        if self._now < max(state.better_not_before_s, state.served_from_s + self._config.better_after_s):
            return
        self._replan()
        if state.phase is Phase.PREPARING:
            state.better_not_before_s = self._now + self._config.better_interval_s

    def _replan(self) -> None:
        state = self._state
        state.plan_due_s, state.is_plan_urgent, state.may_be_better = None, False, False
        if state.model is None:
            return
        if state.phase in ANSWERING:
            self._replan_beside(state.model)
        else:
            self._replan_closed(state.model)

    def _replan_closed(self, model: ModelDemand) -> None:
        self._drop_candidate("another plan is made")
        previous = self._what_is_left(self._state.active) if self._state.active else self._held_before(model)
        outcome = self._find_plan(model, previous, urgent=previous is not None)
        if isinstance(outcome, Infeasible):
            self._wait(outcome)
        else:
            self._start(outcome, Phase.LOADING, "the shards load their layers")

    def _what_is_left(self, active: Deployment) -> Plan:
        living = {holder.name for holder in active.holders if self._members.lives(holder)}
        if len(living) == len(active.holders):
            return active.plan
        return Plan.of_placement({name: units for name, units in active.plan.placement.items() if name in living})

    def _held_before(self, model: ModelDemand) -> Plan | None:
        """What a coordinator that was started again finds."""
        placement = placement_of_held({member.name: member.held for member in self._members}, model.num_units)
        return Plan.of_placement(placement) if placement else None

    def _replan_beside(self, model: ModelDemand) -> None:
        """Answers come. Prepare another plan if it is worth it, or if the active one is not wanted any more."""
        state = self._state
        assert state.active is not None
        outcome = self._find_plan(model, state.active.plan)
        if isinstance(outcome, Infeasible):
            self._close_ring(outcome.reason)
            self._drop_candidate(outcome.reason)
            self._wait(outcome)
        elif outcome.same_work_as(state.active.plan):
            self._stop_preparing("the plan that serves is good enough")
            self._leave_out(outcome)
        elif self._now < state.beside_not_before_s:
            self._schedule_plan(state.beside_not_before_s)
        elif not self._is_candidate_still_good(model):
            self._drop_candidate("another plan is better")
            self._start(outcome, Phase.PREPARING, "")

    def _is_candidate_still_good(self, model: ModelDemand) -> bool:
        candidate = self._state.candidate
        if candidate is None:
            return False
        outcome = self._find_plan(model, candidate.plan)
        return isinstance(outcome, Plan) and outcome.same_work_as(candidate.plan)

    def _find_plan(
        self, model: ModelDemand, previous: Plan | None, urgent: bool = False, without: Collection[str] = frozenset()
    ) -> Plan | Infeasible:
        outcome: Plan | Infeasible = Infeasible("no shard has joined yet")
        calibration = calibration_of([member.speed for member in self._members])
        for members in self._choices(without):
            outcome = make_plan(
                model,
                [member.offer(self._config, calibration, self._now_or_start) for member in members],
                min_shards=self._config.min_shards,
                previous=previous,
                kv=self._config.kv,
                held={member.name: member.held for member in members if member.held},
                urgent=urgent,
            )
            if isinstance(outcome, Plan):
                break
        return outcome

    @property
    def _now_or_start(self) -> float:
        return self._journal.now_s if len(self._members) else 0.0

    def _choices(self, without: Collection[str]) -> Iterator[list[Member]]:
        """Who may be planned for. If they do not suffice, also shards that are set aside, and those that want to leave but have a part."""
        usable = [m for m in self._members if m.unused_until_s < math.inf and m.name not in without]
        willing = [m for m in usable if m.is_willing]
        yield [m for m in willing if m.unused_until_s <= self._now]
        if any(m.unused_until_s > self._now for m in willing):
            yield willing
        if any(not m.is_willing and not m.is_forced and self._cares_for(m.name) for m in usable):
            yield [m for m in usable if m.is_willing or (not m.is_forced and self._cares_for(m.name))]

    def _wait(self, lack: Infeasible) -> None:
        state = self._state
        failed = [f"{m.name} failed: {m.note}" for m in self._members if m.has_failed]
        reason = "; ".join([lack.reason, *failed])
        if state.phase is not Phase.WAITING or reason != state.reason:
            self._journal.record(EventKind.WAITING, "", f"waiting: {reason}")
        self._enter(Phase.WAITING, reason, lack.missing_bytes)
        reasons = dict(lack.left_out)
        for member in self._members:
            self._note(member, reasons.get(member.name, ""))
            self._release_idle_leaver(member)

    def _leave_out(self, plan: Plan) -> None:
        """Tell why shards have no part, those for whom it has changed."""
        reasons = dict(plan.left_out)
        for member in self._members:
            if member.name in plan.placement:
                self._note(member, "")
                continue
            if self._is_in_use(member.name):
                continue
            before, reason = member.note, reasons.get(member.name) or member.note
            self._note(member, reason)
            if member.note != before:
                self._journal.record(EventKind.LEFT_OUT, member.name, f"shard {member.name} {reason}")

    @staticmethod
    def _note(member: Member, note: str) -> None:
        """Failures, and what people wanted, are not forgotten for a plan."""
        if not member.has_failed and member.is_willing:
            member.note = note

    # -- preparing

    def _start(self, plan: Plan, phase: Phase, reason: str) -> None:
        state, model = self._state, self._state.model
        assert model is not None
        state.newest_epoch = Epoch(max(state.newest_epoch, self._members.last_epoch) + 1)
        deployment = Deployment(state.newest_epoch, plan, tuple(self._members[stage.shard].holder for stage in plan.stages))
        exclusive = {stage.shard for stage in plan.stages if self._must_free_first(model, stage, plan.num_kv_blocks)}
        state.candidate = Candidate(deployment, self._now, exclusive)
        self._enter(phase, reason)
        kind, begin = (EventKind.PLAN, "") if phase is Phase.LOADING else (EventKind.PREPARING, "preparing ")
        self._journal.record(kind, "", begin + describe_plan(deployment.epoch, plan, model.num_layers))
        for stage in plan.stages:
            member = self._members[stage.shard]
            member.load, member.load_moved_s = LoadProgress(), self._now
            if phase is Phase.LOADING or stage.shard not in exclusive:
                self._assign(member)
        self._leave_out(plan)
        self._advance_candidate()

    def _must_free_first(self, model: ModelDemand, stage: Stage, num_kv_blocks: int) -> bool:
        active = self._state.active
        if active is None or stage.shard not in active.plan.placement or not self._members.lives(self._holder_in(active, stage.shard)):
            return False
        room_bytes, block_tokens = self._members[stage.shard].room_bytes, self._config.kv_block_tokens
        units, num_blocks = active.plan.placement[stage.shard], active.plan.num_kv_blocks
        return needs_exclusive(model, block_tokens, units, num_blocks, stage.units, num_kv_blocks, room_bytes)

    @staticmethod
    def _holder_in(deployment: Deployment, name: str) -> Holder:
        return next(holder for holder in deployment.holders if holder.name == name)

    def _assign(self, member: Member) -> None:
        state, candidate, model = self._state, self._state.candidate, self._state.model
        assert candidate is not None
        assert model is not None
        shards = list(candidate.plan.placement)
        position = shards.index(member.name)
        units = candidate.plan.stages[position].units
        following = self._members[shards[position + 1]].peer if position + 1 < len(shards) else None
        exclusive = member.name in candidate.exclusive
        assert not (exclusive and state.phase in ANSWERING), "nothing is freed that is in use"
        candidate.assigned[member.name] = exclusive
        candidate.retry_at_s.pop(member.name, None)
        member.load_moved_s = self._now
        if state.phase not in ANSWERING:
            # A shard that has stopped for it gives back the blocks beyond at once.
            state.least_kv_blocks = min(state.least_kv_blocks, candidate.plan.num_kv_blocks)
        if exclusive:
            self._cache.narrow(member.holder, units)
            member.held = member.held & frozenset(units)
        geometry = candidate.plan.num_kv_blocks, self._config.kv_block_tokens, model.context_length, self._config.max_batch_rows
        self._journal.do(AssignUnits(member.name, member.boot_id, candidate.epoch, units, following, *geometry, exclusive))

    def _on_progress(self, member: Member, progress: LoadProgress) -> None:
        if progress.loaded_bytes != member.load.loaded_bytes:
            member.load_moved_s = self._now
        member.load = progress

    def _on_loaded(self, event: StageLoaded) -> None:
        candidate, model = self._state.candidate, self._state.model
        assert candidate is not None
        assert model is not None
        if event.name in candidate.ready:
            return
        member, units = self._members[event.name], candidate.plan.placement[event.name]
        candidate.ready.add(event.name)
        candidate.retry_at_s.pop(event.name, None)
        member.held = member.held | frozenset(units)
        self._note(member, "")
        what = describe_units(units, model.num_layers)
        words = f"shard {event.name} holds {what}: {format_bytes(event.weights_bytes)} in {event.load_s:.1f} s"
        self._journal.record(EventKind.LOADED, event.name, words, event.load_s)
        self._advance_candidate()

    def _advance_candidate(self) -> None:
        """If all who were told are ready: close the ring, tell the rest, or switch."""
        candidate = self._state.candidate
        if candidate is None or candidate.is_waiting:
            return
        if self._state.phase is Phase.PREPARING:
            self._close_ring(f"plan {candidate.epoch} is ready", graceful=True)
            self._enter(Phase.DRAINING, f"the ring empties, to go on with plan {candidate.epoch}")
        elif self._state.phase is Phase.LOADING:
            self._go_on_with_closed_ring()

    def _go_on_with_closed_ring(self) -> None:
        candidate = self._state.candidate
        assert candidate is not None
        if candidate.unassigned:
            self._enter(Phase.LOADING, "some shards have to free layers before they can load others")
            for name in candidate.unassigned:
                self._assign(self._members[name])
        elif candidate.is_waiting:
            self._enter(Phase.LOADING, "the shards load their layers")
        else:
            self._activate(candidate)

    def _stop_preparing(self, reason: str) -> None:
        if self._state.phase is Phase.PREPARING:
            self._drop_candidate(reason)
            self._enter(Phase.SERVING, "")

    def _drop_candidate(self, reason: str) -> None:
        """Leaves the phase to the caller. Shards that only the candidate needed are released, unless no ring is open: the next plan may
        need what they have."""
        state, candidate = self._state, self._state.candidate
        if candidate is None:
            return
        state.candidate = None
        spent_s = self._now - candidate.from_s
        self._journal.record(EventKind.CANDIDATE_DROPPED, "", f"plan {candidate.epoch} is given up: {reason}", spent_s)
        for name in candidate.assigned:
            member = self._members.get(name)
            if member and state.phase in ANSWERING and state.active and name not in state.active.plan.placement:
                self._release(member, f"plan {candidate.epoch} is given up: {reason}")

    # -- the switch

    def _activate(self, candidate: Candidate) -> None:
        state = self._state
        state.candidate, state.active = None, candidate.deployment
        state.least_kv_blocks = min(state.least_kv_blocks, candidate.plan.num_kv_blocks)
        self._enter(Phase.ACTIVATING, f"the shards switch to plan {candidate.epoch}")
        members = [self._members[stage.shard] for stage in candidate.plan.stages]
        moves = [self._moves_to(member) for member in members]
        state.unactivated = {member.name for member in members}
        for member, fetched in zip(members, moves, strict=True):
            units = candidate.plan.placement[member.name]
            self._cache.narrow(member.holder, units)
            member.speed.interrupt()
            self._journal.do(ActivateStage(member.name, member.boot_id, candidate.epoch, fetched))

    def _moves_to(self, member: Member) -> tuple[Move, ...]:
        active = self._state.active
        assert active is not None
        layers = [unit for unit, owner in active.owners.items() if owner == member.holder]
        fetches = self._cache.fetches(member.holder, layers, {other.holder for other in self._members})
        return tuple(Move(units, self._members[holder.name].peer) for units, holder in fetches)

    def _on_activated(self, event: StageActivated) -> None:
        state = self._state
        assert state.active is not None
        if event.name not in state.unactivated:
            return
        state.unactivated.discard(event.name)
        member = self._members[event.name]
        moved = {unit for move in self._moves_to(member) for unit in move.units}
        self._cache.transfer(member.holder, moved & event.transferred_units)
        member.held = frozenset(state.active.plan.placement[event.name])
        if event.note:
            words = f"shard {event.name} could not take over the cache of all layers, they are computed again: {event.note}"
            self._journal.record(EventKind.TRANSFER_INCOMPLETE, event.name, words, event.seconds)
        if not state.unactivated:
            self._open_ring(state.active)

    def _open_ring(self, active: Deployment) -> None:
        state = self._state
        self._enter(Phase.OPENING, "the ring is being opened")
        intact = self._cache.intact(active.owners)
        first = self._members[active.plan.stages[0].shard].peer
        self._journal.do(OpenRing(active.epoch, active.plan, first, active.holders, intact.kept, intact.transferred, state.least_kv_blocks))
        self._leave_out(active.plan)
        for member in self._members:
            if member.name not in active.plan.placement:
                reason = "the others serve without it" if member.is_leaving else member.note or "it has no part in the plan"
                self._release(member, reason)

    def _release(self, member: Member, reason: str) -> None:
        """Those who have nothing are told once."""
        if not (member.held or member.is_leaving or member.told_note != reason):
            return
        member.held, member.told_note = frozenset(), reason
        self._cache.forget(member.holder)
        epoch = Epoch(max(self._state.newest_epoch, self._members.last_epoch))
        self._journal.do(ReleaseShard(member.name, member.boot_id, epoch, reason, member.is_leaving))

    def _on_opened(self) -> None:
        state = self._state
        assert state.active is not None
        self._enter(Phase.SERVING, "")
        self._cache.serve(state.active.owners)
        self._record_serving(state.active)
        state.before, state.least_kv_blocks = state.active, state.active.plan.num_kv_blocks
        # What was urgent may have a better successor.
        state.may_be_better, state.served_from_s = True, self._now

    def _record_serving(self, active: Deployment) -> None:
        """What it is depends on why the ring was closed."""
        state = self._state
        pause_s = 0.0 if state.closed_at_s is None else self._now - state.closed_at_s
        moves = describe_moves(state.before.plan.placement, active.plan.placement) if state.before else ""
        details = "".join(f", {part}" for part in (moves,) if part)
        if state.closed_at_s is None:
            self._journal.record(EventKind.SERVING, "", f"serving with plan {active.epoch}")
        elif state.is_switch:
            self._journal.record(EventKind.SWITCHED, "", f"plan {active.epoch} serves{details}, pause {pause_s:.2f} s", pause_s)
        else:
            words = f"plan {active.epoch} serves{details}, {pause_s:.2f} s after {state.closed_why}"
            self._journal.record(EventKind.RECOVERED, "", words, pause_s)
        state.closed_at_s, state.closed_why, state.is_switch = None, "", False

    # -- failures

    def _on_load_failed(self, event: StageLoadFailed) -> None:
        member = self._members[event.name]
        candidate = self._state.candidate
        if candidate is None or candidate.epoch != event.epoch:
            self._journal.record(EventKind.LOAD_FAILED, member.name, f"the stage of shard {member.name} failed: {event.message}")
            self._blame(member.name)
            self._pause(f"the stage of shard {member.name} failed: {event.message}")
        elif event.needs_exclusive and not candidate.assigned[event.name]:
            self._assign_exclusively(candidate, member, event.message)
        elif event.retryable:
            self._on_retryable(candidate, member, event.message)
        else:
            self._on_hopeless(candidate, member, event.message)

    def _assign_exclusively(self, candidate: Candidate, member: Member, message: str) -> None:
        words = f"shard {member.name} has to free layers before it can load others: {message}"
        self._journal.record(EventKind.LOAD_FAILED, member.name, words)
        candidate.exclusive.add(member.name)
        candidate.ready.discard(member.name)
        candidate.retry_at_s.pop(member.name, None)
        del candidate.assigned[member.name]
        if self._state.phase is Phase.LOADING:
            self._assign(member)
        self._advance_candidate()

    def _on_hopeless(self, candidate: Candidate, member: Member, message: str) -> None:
        """It cannot load this part; if it has another one already, it may keep that."""
        self._journal.record(EventKind.LOAD_FAILED, member.name, f"shard {member.name} could not load its part: {message}")
        if not self._limit_to_present(member, math.inf):
            member.has_failed, member.note, member.unused_until_s = True, message, math.inf
            member.is_forced = False
        self._give_up_candidate(f"shard {member.name} failed")

    def _on_retryable(self, candidate: Candidate, member: Member, message: str) -> None:
        self._journal.record(EventKind.LOAD_FAILED, member.name, f"shard {member.name} could not load its part: {message}")
        is_beside = self._state.phase is not Phase.LOADING
        self._blame(member.name, is_beside)
        self._note(member, member.note or message)
        candidate.ready.discard(member.name)
        if member.failures % self._config.set_aside_after:
            candidate.retry_at_s[member.name] = self._now + self._config.pause_s(member.failures)
        elif is_beside:
            self._limit_to_present(member, self._now + self._config.set_aside_s)
            self._give_up_candidate(f"shard {member.name} could not load its part: {message}")
        else:
            self._pause(f"shard {member.name} could not load its part: {message}")

    def _limit_to_present(self, member: Member, until_s: float) -> bool:
        """Plan no more for it than it has now. False if it has nothing."""
        active = self._state.active
        stages = active.plan.stages if active and self._members.lives(member.holder) and member.holder in active.holders else ()
        stage = next((stage for stage in stages if stage.shard == member.name), None)
        if stage is None or not member.held.issuperset(stage.units) or member.limit_until_s > self._now:
            return False
        member.limit_bytes, member.limit_until_s = stage.weights_bytes + stage.kv_cache_bytes, until_s
        return True

    def _give_up_candidate(self, reason: str) -> None:
        state = self._state
        if state.phase is Phase.PREPARING:
            state.failures_beside += 1
            state.beside_not_before_s = self._now + self._config.pause_beside_s(state.failures_beside)
            self._stop_preparing(reason)
            self._schedule_plan(self._now)
        else:
            self._interrupt(reason)
            self._schedule_plan(self._now, urgent=True)

    def _retry_loads(self) -> None:
        candidate = self._state.candidate
        for name, at_s in sorted(candidate.retry_at_s.items()) if candidate else ():
            if self._now >= at_s and name in self._members:
                self._assign(self._members[name])

    def _notice_stalls(self) -> None:
        state, config = self._state, self._config
        since_s = self._now - state.phase_from_s
        if state.phase is Phase.OPENING and since_s > config.open_timeout_s:
            self._on_ring_broken(f"it did not open within {config.open_timeout_s:g} s")
        elif state.phase is Phase.DRAINING and since_s > config.drain_timeout_s:
            self._cut_draining_short(f"it did not empty within {config.drain_timeout_s:g} s")
        elif state.phase is Phase.ACTIVATING and since_s > config.activate_timeout_s:
            for name in sorted(state.unactivated):
                self._blame(name)
            self._pause(f"{' and '.join(sorted(state.unactivated))} did not switch within {config.activate_timeout_s:g} s")
        candidate = state.candidate
        for name in sorted(candidate.assigned) if candidate else ():
            if state.candidate is candidate and candidate is not None and self._has_stalled(candidate, name):
                self._on_retryable(candidate, self._members[name], f"no progress for {config.load_stall_s:g} s")

    def _has_stalled(self, candidate: Candidate, name: str) -> bool:
        is_loading = name not in candidate.ready and name not in candidate.retry_at_s
        return is_loading and self._now - self._members[name].load_moved_s > self._config.load_stall_s

    def _on_ring_broken(self, message: str) -> None:
        state = self._state
        assert state.active is not None
        if state.phase is Phase.DRAINING:
            self._cut_draining_short(message)
            return
        if state.phase is Phase.OPENING:
            self._blame(state.active.plan.stages[0].shard)
        self._pause(f"the ring broke: {message}")

    def _cut_draining_short(self, reason: str) -> None:
        """What is still in flight will not come back, or too late."""
        assert self._state.active is not None
        self._journal.do(CloseRing(self._state.active.epoch, reason, False))
        self._go_on_with_closed_ring()

    def _close_ring(self, reason: str, graceful: bool = False) -> None:
        """Leaves the phase to the caller, who must enter another: usually at the end of this very event."""
        state = self._state
        if state.phase not in RING_IN_USE:
            return
        assert state.active is not None
        self._journal.do(CloseRing(state.active.epoch, reason, graceful))
        if state.closed_at_s is None and state.phase is not Phase.OPENING:
            state.closed_at_s = self._now
        state.closed_why, state.is_switch = reason, graceful
        if graceful:
            self._journal.record(EventKind.SWITCHING, "", f"the ring of plan {state.active.epoch} empties: {reason}")

    def _interrupt(self, reason: str) -> None:
        """No ring, no candidate; the caller schedules a plan."""
        self._close_ring(reason)
        if self._state.is_switch:
            self._state.is_switch, self._state.closed_why = False, reason
        self._enter(Phase.RETRYING, reason)
        self._drop_candidate(reason)

    def _pause(self, reason: str) -> None:
        """Close the ring; after the grace plan anew, with whoever is left."""
        state = self._state
        self._interrupt(reason)
        state.failures += 1
        pause_s = self._config.pause_s(state.failures)
        self._journal.record(EventKind.RETRY, "", f"{reason}; planning again in {pause_s:g} s", pause_s)
        self._schedule_plan(self._now + pause_s, urgent=True)

    def _blame(self, name: str, is_beside: bool = False) -> None:
        """is_beside: it still does well what it does now."""
        member = self._members.get(name)
        if member is None:
            return
        member.failures += 1
        if member.failures >= self._config.set_aside_after and not (is_beside and self._is_in_use(name)):
            member.unused_until_s = self._now + self._config.set_aside_s
            self._note(member, f"set aside after {member.failures} failures in a row")
            words = f"shard {name} is set aside after {member.failures} failures in a row; the others try without it"
            self._journal.record(EventKind.SET_ASIDE, name, words)

    def _is_in_use(self, name: str) -> bool:
        active = self._state.active
        return active is not None and self._state.phase in STAGES_IN_USE and name in active.plan.placement

    def _welcome_back_set_aside(self) -> None:
        for member in self._members:
            if -math.inf < member.unused_until_s <= self._now:
                member.unused_until_s = -math.inf
                self._schedule_plan(self._now)

    def _forget_failures(self) -> None:
        """Failures are in a row until it has served for a while."""
        state = self._state
        if state.phase is Phase.SERVING and self._now - state.phase_from_s >= self._config.longest_pause_s:
            state.failures = 0
            for member in self._members:
                if state.active and member.name in state.active.plan.placement:
                    member.failures = 0

    # -- measured speeds

    def _on_step(self, shard: str | None, step_s: float) -> None:
        state = self._state
        before_s = state.steps_s.get(shard, step_s)
        state.steps_s[shard] = before_s + MEASURED_WEIGHT * (step_s - before_s)
        assert state.active is not None
        assert state.model is not None
        member = self._members.get(shard) if shard in state.active.plan.placement and shard is not None else None
        if member is None or step_s <= 0:
            return
        read_bytes = state.model.bytes_read_per_step(state.active.plan.placement[member.name])
        before_rate_s = member.speed.adopted_s or member.speed.expected_s
        if read_bytes and member.speed.measure(step_s / read_bytes, self._now):
            self._tell_speed(member, before_rate_s)

    def _tell_speed(self, member: Member, before_s: float) -> None:
        after_s = member.speed.adopted_s or member.speed.expected_s
        words = f"shard {member.name} computes at {1e-9 / after_s:.1f} GB/s, {1e-9 / before_s:.1f} GB/s were expected"
        self._journal.record(EventKind.SPEED_CHANGED, member.name, words)
        self._state.may_be_better = True

    def _forget_old_speeds(self) -> None:
        for member in self._members:
            if not self._cares_for(member.name) and member.speed.expire(self._now):
                self._state.may_be_better = True

    # -- the books

    def _enter(self, phase: Phase, reason: str, missing_bytes: int = 0) -> None:
        state = self._state
        assert phase in SUCCESSORS[state.phase] or phase is state.phase, (state.phase, phase)
        state.phase, state.reason, state.missing_bytes, state.phase_from_s = phase, reason, missing_bytes, self._now
        if phase is not Phase.ACTIVATING:
            state.unactivated.clear()
        if phase not in {Phase.DRAINING, *ANSWERING}:
            state.steps_s.clear()
