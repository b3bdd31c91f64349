"""The cluster machine: membership, leases, plans, recovery. `handle(event, now_s)` takes what happened and returns what is to be done.

It holds no clock, no sockets and no tasks, so that a cluster of a thousand shards with faults runs in a unit test, in simulated
time; equal events at equal times give equal actions. A lost shard is an event like any other.

A plan has an epoch, which only grows. A new plan closes the ring of the old epoch, assigns units, waits until every stage has
loaded them, and opens the ring. Phases and their successors stand in `state.Phase`; when an event of a plan counts, in
`state.COUNTS_IN`. Joins settle for a moment and change a running plan only if the planner finds it worth while. A lost shard
is replaced at once. A broken edge is usually the first sign of a lost shard, so planning pauses for `grace_s`; if all are alive
after it, the same plan starts again with a new epoch, after pauses that double. A shard that keeps failing is set aside for a
while if the others suffice; one whose stage can never load (too little memory, weights that differ) is used again only after a restart.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from dairllm.coordinator.cluster.actions import (
    Action,
    AdmitShard,
    AssignUnits,
    CloseRing,
    ClusterEventRecord,
    EndLease,
    OpenRing,
    RecordEvent,
    RefuseShard,
    ReleaseShard,
)
from dairllm.coordinator.cluster.admission import refusal_of
from dairllm.coordinator.cluster.events import (
    EdgeBroken,
    Event,
    HeartbeatReceived,
    JoinRequested,
    LeaseBroken,
    LoadProgressed,
    ModelRegistered,
    RingBroken,
    RingOpened,
    ShardLeft,
    StageLoaded,
    StageLoadFailed,
    StepMeasured,
    TimePassed,
)
from dairllm.coordinator.cluster.facts import Epoch, LeaseId, LoadProgress, ShardHello
from dairllm.coordinator.cluster.snapshot import NO_LOAD, ClusterSnapshot, EngineLoad, ShardSnapshot
from dairllm.coordinator.cluster.state import COUNTS_IN, SUCCESSORS, ClusterConfig, Member, Phase, ShardPhase
from dairllm.coordinator.cluster.words import describe_join, describe_plan, describe_units
from dairllm.coordinator.planner import Infeasible, ModelDemand, Plan, format_bytes, make_plan
from dairllm.mesh.errors import DairllmError, NameTaken

MAX_RECORDS = 200
MEASURED_WEIGHT = 0.1
"""Weight of the newest step in the moving average."""


class ClusterMachine:
    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._model: ModelDemand | None = None
        self._members: dict[str, Member] = {}
        self._phase = Phase.WAITING
        self._reason = "no model is registered yet"
        self._missing_bytes = 0
        self._epoch = Epoch(0)
        self._plan: Plan | None = None
        self._last_plan: Plan | None = None
        self._plan_due_s: float | None = None
        self._plan_forced = False
        self._failures = 0
        self._phase_from_s = 0.0
        self._steps_s: dict[str | None, float] = {}
        self._records: deque[ClusterEventRecord] = deque(maxlen=MAX_RECORDS)
        self._now_s: float | None = None
        self._actions: list[Action] = []

    @property
    def epoch(self) -> Epoch:
        return self._epoch

    @property
    def plan(self) -> Plan | None:
        """The plan of this epoch, serving or not yet."""
        return self._plan

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def reason(self) -> str:
        """Why it is not serving; '' while it is."""
        return self._reason

    @property
    def missing_bytes(self) -> int:
        """Memory that is missing for any plan; 0 if nothing or something else is missing."""
        return self._missing_bytes

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take an event and return the actions, in order. now_s: any clock that does not run backwards."""
        self._actions = []
        self._advance_to(now_s)
        self._note_life(event)
        if self._counts(event):
            self._dispatch(event)
        self._run_timers()
        return self._actions

    # -- time and routing

    @property
    def _now(self) -> float:
        assert self._now_s is not None, "only within handle"
        return self._now_s

    def _advance_to(self, now_s: float) -> None:
        """If the coordinator itself stood still (a suspended laptop), nobody's silence in that time counts."""
        before_s = now_s if self._now_s is None else self._now_s
        self._now_s = max(now_s, before_s)
        gap_s = self._now_s - before_s
        if gap_s > self._config.lease_timeout_s / 2:
            for member in self._members.values():
                member.lease_from_s += gap_s

    def _note_life(self, event: Event) -> None:
        """Every word of a shard renews its lease, also one that comes too late for its plan."""
        match event:
            case HeartbeatReceived() | LoadProgressed() | StageLoaded() | StageLoadFailed():
                if self._is_current(event.name, event.boot_id):
                    self._members[event.name].heard(self._now)

    def _counts(self, event: Event) -> bool:
        """Whether the event is about this lease, boot and epoch."""
        match event:
            case LeaseBroken() | ShardLeft():
                member = self._members.get(event.name)
                return member is not None and (member.boot_id, member.lease) == (event.boot_id, event.lease)
            case HeartbeatReceived():
                return self._is_current(event.name, event.boot_id)
            case LoadProgressed() | StageLoaded() | StageLoadFailed():
                in_plan = self._plan is not None and event.name in self._plan.placement
                return in_plan and self._is_current(event.name, event.boot_id) and self._is_in_time(event, event.epoch)
            case EdgeBroken() | RingOpened() | RingBroken() | StepMeasured():
                return self._is_in_time(event, event.epoch)
            case ModelRegistered() | JoinRequested() | TimePassed():
                return True

    def _is_current(self, name: str, boot_id: str) -> bool:
        return name in self._members and self._members[name].boot_id == boot_id

    def _is_in_time(self, event: Event, epoch: Epoch) -> bool:
        return epoch == self._epoch and self._phase in COUNTS_IN[type(event)]

    def _dispatch(self, event: Event) -> None:
        match event:
            case ModelRegistered():
                self._on_model(event.model)
            case JoinRequested():
                self._on_join(event.lease, event.hello)
            case HeartbeatReceived():
                self._on_heartbeat(event)
            case LeaseBroken():
                self._lose({event.name: f"is lost: its connection broke: {event.reason}"})
            case ShardLeft():
                self._end_lease(self._members[event.name], event.reason)
                self._lose({event.name: f"left: {event.reason}"})
            case LoadProgressed():
                self._on_progress(self._members[event.name], event.progress)
            case StageLoaded():
                self._on_loaded(event)
            case StageLoadFailed():
                self._on_load_failed(self._members[event.name], event.message, event.retryable)
            case EdgeBroken():
                self._blame(event.peer if event.peer in self._members else event.reporter)
                self._pause(f"the connection from {event.reporter} to {event.peer} broke: {event.message}")
            case RingOpened():
                self._on_opened()
            case RingBroken():
                self._on_ring_broken(event.message)
            case StepMeasured():
                self._on_step(event.shard, event.step_s)
            case TimePassed():
                self._expire_leases()

    def _run_timers(self) -> None:
        self._welcome_back_set_aside()
        if self._plan_due_s is not None and self._now >= self._plan_due_s:
            self._replan()
        self._retry_loads()
        self._notice_stalls()
        self._forget_failures()

    # -- membership

    def _on_join(self, lease: LeaseId, hello: ShardHello) -> None:
        error = refusal_of(hello, self._config.expectation)
        present = None if error else self._members.get(hello.name)
        if present and present.boot_id != hello.boot_id:
            error = self._name_taken(present)
        if error:
            self._refuse(lease, hello, error)
        elif present:
            self._replace(present, lease, hello)
        else:
            self._admit(lease, hello)
            self._settle()

    def _name_taken(self, present: Member) -> DairllmError | None:
        silent_s = self._now - present.last_seen_s
        if silent_s > 2 * self._config.heartbeat_interval_s:
            return None
        return NameTaken(
            f"a living shard is named '{present.name}' (heard of {silent_s:.1f} s ago at {present.hello.addresses[0]}): "
            "start this one with --name and another name",
            "name",
            self._config.lease_timeout_s,
        )

    def _refuse(self, lease: LeaseId, hello: ShardHello, error: DairllmError) -> None:
        self._actions.append(RefuseShard(hello.name, hello.boot_id, lease, error))
        self._record("refused", "", f"a shard was refused: {error}")

    def _admit(self, lease: LeaseId, hello: ShardHello) -> None:
        self._members[hello.name] = Member(hello, lease, self._now, self._now)
        self._actions.append(AdmitShard(hello.name, hello.boot_id, lease))
        self._record("joined", hello.name, describe_join(hello))

    def _replace(self, present: Member, lease: LeaseId, hello: ShardHello) -> None:
        if present.boot_id == hello.boot_id:
            self._reconnect(present, lease, hello)
            return
        self._end_lease(present, "the shard has joined again after a restart")
        self._record("lost", present.name, f"shard {present.name} has restarted")
        del self._members[present.name]
        self._admit(lease, hello)
        if self._plan and hello.name in self._plan.placement:
            self._close_ring(f"shard {hello.name} has restarted")
            self._schedule_plan(self._now, forced=True)
        else:
            self._settle()

    def _settle(self) -> None:
        """Wait a little for shards that start together."""
        if self._phase is Phase.WAITING and self._model:
            self._enter(Phase.WAITING, "shards are joining")
        self._schedule_plan(self._now + self._config.settle_s)

    def _reconnect(self, member: Member, lease: LeaseId, hello: ShardHello) -> None:
        """The process lives and keeps what it has; only what was sent on the old stream may be lost."""
        self._end_lease(member, "the shard has joined again on a new connection")
        changed = member.hello.capabilities != hello.capabilities
        member.hello, member.lease = hello, lease
        member.heard(self._now)
        self._actions.append(AdmitShard(member.name, member.boot_id, lease))
        self._record("joined", member.name, f"shard {member.name} is back on a new connection")
        if self._phase is Phase.LOADING and member.phase is ShardPhase.LOADING:
            self._assign(member)
        if changed:
            self._settle()

    def _on_heartbeat(self, event: HeartbeatReceived) -> None:
        member = self._members[event.name]
        member.usage = event.usage
        if event.round_trip_us > 0:
            member.round_trip_us = event.round_trip_us
            member.least_round_trip_us = min(member.least_round_trip_us or event.round_trip_us, event.round_trip_us)

    def _expire_leases(self) -> None:
        expired = [m for m in self._members.values() if self._now - m.lease_from_s > self._config.lease_timeout_s]
        reasons = {m.name: f"nothing was heard of it for {self._now - m.last_seen_s:.1f} s" for m in expired}
        for member in expired:
            self._end_lease(member, reasons[member.name])
        if expired:
            self._lose({name: f"is lost: {reason}" for name, reason in reasons.items()})

    def _end_lease(self, member: Member, reason: str) -> None:
        self._actions.append(EndLease(member.name, member.boot_id, member.lease, reason))

    def _lose(self, reasons: dict[str, str]) -> None:
        """reasons: by name, what happened: 'left: …', 'is lost: …'."""
        for name, reason in reasons.items():
            self._record("lost", name, f"shard {name} {reason}")
            del self._members[name]
        if self._plan and any(name in self._plan.placement for name in reasons):
            self._close_ring(" and ".join(f"shard {name} is gone" for name in reasons if name in self._plan.placement))
            self._schedule_plan(self._now, forced=True)
        elif self._phase is Phase.WAITING:
            self._schedule_plan(self._now)

    # -- planning

    def _on_model(self, model: ModelDemand) -> None:
        limit = self._config.context_length or model.context_length
        self._model = replace(model, context_length=min(limit, model.context_length))
        self._close_ring(f"the model {model.name} is served from now on")
        self._last_plan = None
        self._wait(Infeasible("shards are joining" if self._members else "no shard has joined yet"))
        if self._members:
            self._schedule_plan(self._now + self._config.settle_s)

    def _schedule_plan(self, at_s: float, forced: bool = False) -> None:
        """forced: a new epoch is needed, whatever the planner says. What is due already is not put off, nor hurried by a join."""
        if forced or self._plan_due_s is None:
            self._plan_due_s = at_s
            self._plan_forced = forced

    def _replan(self) -> None:
        forced, self._plan_due_s, self._plan_forced = self._plan_forced, None, False
        if self._model is None:
            return
        outcome = self._find_plan(self._model)
        if isinstance(outcome, Infeasible):
            self._close_ring(outcome.reason)
            self._wait(outcome)
        elif forced or self._plan is None or not outcome.same_work_as(self._plan):
            self._start(outcome)
        else:
            self._leave_out(outcome)

    def _find_plan(self, model: ModelDemand) -> Plan | Infeasible:
        """Shards that are set aside are used only if the others do not suffice."""
        usable = [m for m in self._members.values() if m.unused_until_s < math.inf]
        preferred = [m for m in usable if m.unused_until_s <= self._now]
        outcome = self._make_plan(model, preferred)
        return self._make_plan(model, usable) if isinstance(outcome, Infeasible) and len(usable) > len(preferred) else outcome

    def _make_plan(self, model: ModelDemand, members: Iterable[Member]) -> Plan | Infeasible:
        offers = [member.offer(self._config.hop_s) for member in members]
        return make_plan(model, offers, min_shards=self._config.min_shards, previous=self._plan or self._last_plan, kv=self._config.kv)

    def _wait(self, lack: Infeasible) -> None:
        failed = [f"{m.name} failed: {m.note}" for m in self._sorted_members() if m.phase is ShardPhase.FAILED]
        reason = "; ".join([lack.reason, *failed])
        if self._phase is not Phase.WAITING or reason != self._reason:
            self._record("waiting", "", f"waiting: {reason}")
        self._plan = None
        self._enter(Phase.WAITING, reason, lack.missing_bytes)
        reasons = dict(lack.left_out)
        for member in self._members.values():
            self._idle(member, reasons.get(member.name, ""))

    def _start(self, plan: Plan) -> None:
        assert self._model is not None
        self._close_ring("another plan begins")
        self._epoch = Epoch(self._epoch + 1)
        self._plan = self._last_plan = plan
        self._steps_s = {}
        self._record("plan", "", describe_plan(self._epoch, plan, self._model.num_layers))
        self._enter(Phase.LOADING, "the shards load their layers")
        for stage in plan.stages:
            member = self._members[stage.shard]
            member.phase, member.note, member.retry_at_s = ShardPhase.LOADING, "", None
            member.load, member.load_moved_s = LoadProgress(), self._now
            self._assign(member)
        self._leave_out(plan, new=True)

    def _assign(self, member: Member) -> None:
        assert self._plan is not None
        assert self._model is not None
        shards = list(self._plan.placement)
        position = shards.index(member.name)
        following = self._members[shards[position + 1]].peer if position + 1 < len(shards) else None
        self._actions.append(
            AssignUnits(
                member.name,
                member.boot_id,
                self._epoch,
                self._plan.stages[position].units,
                following,
                self._plan.num_kv_blocks,
                self._config.kv_block_tokens,
                self._model.context_length,
                self._config.max_batch_rows,
            )
        )

    def _leave_out(self, plan: Plan, new: bool = False) -> None:
        """Tell the shards without a part why, those that have not been told."""
        reasons = dict(plan.left_out)
        for member in self._sorted_members():
            if member.name in plan.placement:
                continue
            before, reason = member.note, reasons.get(member.name) or member.note
            self._idle(member, reason)
            if new or reason != before:
                self._actions.append(ReleaseShard(member.name, member.boot_id, self._epoch, reason))
            if reason != before:
                self._record("left_out", member.name, f"shard {member.name} left out: {reason}")

    def _idle(self, member: Member, note: str) -> None:
        member.retry_at_s = None
        if member.phase is not ShardPhase.FAILED:
            member.phase, member.note = ShardPhase.JOINED, note

    # -- loading

    def _on_progress(self, member: Member, progress: LoadProgress) -> None:
        if progress.loaded_bytes != member.load.loaded_bytes:
            member.load_moved_s = self._now
        member.load = progress

    def _on_loaded(self, event: StageLoaded) -> None:
        assert self._plan is not None
        assert self._model is not None
        member = self._members[event.name]
        if member.phase is ShardPhase.READY:
            return
        member.phase, member.note, member.retry_at_s = ShardPhase.READY, "", None
        units = describe_units(self._plan.placement[event.name], self._model.num_layers)
        self._record("loaded", event.name, f"shard {event.name} holds {units}: {format_bytes(event.weights_bytes)} in {event.load_s:.1f} s")
        if all(self._members[name].phase is ShardPhase.READY for name in self._plan.placement):
            self._enter(Phase.OPENING, "the ring is being opened")
            first = self._members[self._plan.stages[0].shard].peer
            self._actions.append(OpenRing(self._epoch, self._plan, first))

    def _on_load_failed(self, member: Member, message: str, retryable: bool) -> None:
        self._record("failed", member.name, f"shard {member.name} could not load its part: {message}")
        if not retryable:
            member.phase, member.note, member.unused_until_s = ShardPhase.FAILED, message, math.inf
            self._close_ring(f"shard {member.name} failed")
            self._schedule_plan(self._now, forced=True)
            return
        self._blame(member.name)
        member.note = member.note or message
        if self._phase is Phase.LOADING and member.unused_until_s <= self._now:
            member.phase = ShardPhase.LOADING
            member.retry_at_s = self._now + self._config.pause_s(member.failures)
        else:
            self._pause(f"shard {member.name} could not load its part: {message}")

    def _retry_loads(self) -> None:
        for member in self._sorted_members():
            if member.retry_at_s is not None and self._now >= member.retry_at_s:
                member.retry_at_s, member.load_moved_s = None, self._now
                self._assign(member)

    def _notice_stalls(self) -> None:
        if self._phase is Phase.OPENING and self._now - self._phase_from_s > self._config.open_timeout_s:
            self._on_ring_broken(f"it did not open within {self._config.open_timeout_s:g} s")
        for member in self._sorted_members():
            loading = self._phase is Phase.LOADING and member.phase is ShardPhase.LOADING and member.retry_at_s is None
            if loading and self._now - member.load_moved_s > self._config.load_stall_s:
                self._on_load_failed(member, f"no progress for {self._config.load_stall_s:g} s", retryable=True)

    # -- the ring

    def _on_opened(self) -> None:
        self._enter(Phase.SERVING, "")
        self._record("serving", "", f"serving with plan {self._epoch}")

    def _on_ring_broken(self, message: str) -> None:
        assert self._plan is not None
        if self._phase is Phase.OPENING:
            self._blame(self._plan.stages[0].shard)
        self._pause(f"the ring broke: {message}")

    def _on_step(self, shard: str | None, step_s: float) -> None:
        before_s = self._steps_s.get(shard, step_s)
        self._steps_s[shard] = before_s + MEASURED_WEIGHT * (step_s - before_s)

    def _close_ring(self, reason: str) -> None:
        """Leaves the phase to the caller, who must enter another: usually at the end of this very event."""
        if self._phase in (Phase.OPENING, Phase.SERVING):
            self._actions.append(CloseRing(self._epoch, reason))
            self._enter(Phase.RETRYING, reason)

    def _pause(self, reason: str) -> None:
        """Close the ring; after the grace plan anew, with whoever is left."""
        self._close_ring(reason)
        self._failures += 1
        pause_s = self._config.pause_s(self._failures)
        self._enter(Phase.RETRYING, reason)
        self._record("retry", "", f"{reason}; planning again in {pause_s:g} s")
        self._schedule_plan(self._now + pause_s, forced=True)
        for member in self._members.values():
            member.retry_at_s = None

    # -- failures in a row

    def _blame(self, name: str) -> None:
        member = self._members.get(name)
        if member is None:
            return
        member.failures += 1
        if member.failures >= self._config.set_aside_after:
            member.unused_until_s = self._now + self._config.set_aside_s
            member.note = f"set aside after {member.failures} failures in a row"
            self._record("set_aside", name, f"shard {name} is {member.note}; the others try without it")

    def _welcome_back_set_aside(self) -> None:
        for member in self._members.values():
            if -math.inf < member.unused_until_s <= self._now:
                member.unused_until_s = -math.inf
                self._schedule_plan(self._now)

    def _forget_failures(self) -> None:
        """Failures are in a row until it has served for a while."""
        if self._phase is Phase.SERVING and self._now - self._phase_from_s >= self._config.longest_pause_s:
            self._failures = 0
            for member in self._members.values():
                if self._plan and member.name in self._plan.placement:
                    member.failures = 0

    # -- the books

    def _enter(self, phase: Phase, reason: str, missing_bytes: int = 0) -> None:
        assert phase in SUCCESSORS[self._phase] or phase is self._phase, (self._phase, phase)
        self._phase, self._reason, self._missing_bytes, self._phase_from_s = phase, reason, missing_bytes, self._now

    def _record(self, kind: str, shard: str, text: str) -> None:
        record = ClusterEventRecord(self._now, kind, shard, text)
        self._records.append(record)
        self._actions.append(RecordEvent(record))

    def _sorted_members(self) -> list[Member]:
        return [self._members[name] for name in sorted(self._members)]

    def snapshot(self, now_s: float, load: EngineLoad = NO_LOAD) -> ClusterSnapshot:
        """Everything that people may want to know, now. load: what the engine says, which the machine does not know."""
        model, plan = self._model, self._plan
        step_s = self._steps_s.get(None, 0.0)
        return ClusterSnapshot(
            coordinator_id=self._config.coordinator_id,
            software_version=self._config.software_version,
            model=model.name if model else "",
            model_digest=model.digest if model else b"",
            num_layers=model.num_layers if model else 0,
            model_size_bytes=model.size_bytes if model else 0,
            wire=self._config.wire,
            phase=self._phase,
            reason=self._reason,
            missing_bytes=self._missing_bytes,
            epoch=self._epoch,
            shards=tuple(self._shard_snapshot(member, now_s) for member in self._in_ring_order()),
            predicted_decode_tok_s=plan.predicted_decode_tok_s if plan else 0.0,
            measured_decode_tok_s=1 / step_s if step_s > 0 else 0.0,
            running_sequences=load.running_sequences,
            waiting_sequences=load.waiting_sequences,
            kv_blocks_total=plan.num_kv_blocks if plan else 0,
            kv_blocks_free=load.kv_blocks_free,
            events=tuple(self._records),
        )

    def _in_ring_order(self) -> list[Member]:
        positions = list(self._plan.placement) if self._plan else []
        present = [name for name in positions if name in self._members]
        return [self._members[name] for name in [*present, *(name for name in sorted(self._members) if name not in positions)]]

    def _shard_snapshot(self, member: Member, now_s: float) -> ShardSnapshot:
        stages = self._plan.stages if self._plan else ()
        position = next((i for i, stage in enumerate(stages) if stage.shard == member.name), None)
        return ShardSnapshot(
            name=member.name,
            addresses=member.hello.addresses,
            phase=member.phase,
            stage=position,
            units=stages[position].units if position is not None else range(0),
            capabilities=member.hello.capabilities,
            usage=member.usage,
            load=member.load,
            round_trip_us=member.round_trip_us,
            last_seen_s=max(0.0, now_s - member.last_seen_s),
            predicted_step_s=stages[position].predicted_step_s if position is not None else 0.0,
            measured_step_s=self._steps_s.get(member.name, 0.0),
            note=member.note,
            software_version=member.hello.software_version,
        )

    def check_invariants(self) -> None:
        """What holds between any two events. For tests: it costs time, and raises AssertionError."""
        leases = [member.lease for member in self._members.values()]
        assert len(set(leases)) == len(leases), "one shard per lease"
        assert all(name == member.name for name, member in self._members.items())
        assert (self._plan is None) == (self._phase is Phase.WAITING), "waiting means no plan"
        assert (self._reason == "") == (self._phase is Phase.SERVING), "not serving has a reason"
        assert self._missing_bytes == 0 or self._phase is Phase.WAITING
        assert self._phase is not Phase.RETRYING or (self._plan_due_s is not None and self._plan_forced), "a pause ends"
        assert len(self._records) <= MAX_RECORDS
        placement = self._plan.placement if self._plan else {}
        for member in self._members.values():
            assert member.name in placement or member.phase in (ShardPhase.JOINED, ShardPhase.FAILED), "only stages load"
            assert member.retry_at_s is None or self._phase is Phase.LOADING
        if self._plan:
            self._check_plan(self._plan)

    def _check_plan(self, plan: Plan) -> None:
        assert self._model is not None
        assert self._epoch > 0
        assert (plan.stages[0].units.start, plan.stages[-1].units.stop) == (0, self._model.num_units), "every unit"
        assert all(a.units.stop == b.units.start for a, b in pairwise(plan.stages)), "once"
        assert len(plan.placement) == len(plan.stages) >= self._config.min_shards
        assert plan.num_kv_blocks * self._config.kv_block_tokens >= self._model.context_length, "room for one context"
        for stage in plan.stages:
            assert stage.shard in self._members, "only members have a part"
            member = self._members[stage.shard]
            assert stage.units, "no empty stage"
            assert stage.weights_bytes + stage.kv_cache_bytes <= member.offer(0).room_bytes, "memory is a budget"
            assert member.unused_until_s < math.inf, "a failed shard has no part"
            ready = {ShardPhase.READY} if self._phase in (Phase.OPENING, Phase.SERVING) else {ShardPhase.READY, ShardPhase.LOADING}
            assert member.phase in ready, "the ring opens when all are ready"
