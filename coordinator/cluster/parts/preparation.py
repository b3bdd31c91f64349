"""A candidate is prepared: its shards are told what to load, and when all are ready the ring empties and they switch."""

from dairllm.coordinator.cluster.actions import AssignUnits, CloseRing, EventKind
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.deployments import Candidate
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.descriptions import describe_plan, describe_units
from dairllm.coordinator.cluster.events import LoadProgressed, RingDrained, StageLoaded
from dairllm.coordinator.cluster.parts.idle_shards import IdleShards
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.parts.placement import needs_exclusive
from dairllm.coordinator.cluster.parts.switch import Switch
from dairllm.coordinator.cluster.phases import ANSWERING, Phase
from dairllm.coordinator.cluster.shard_reports import LoadProgress
from dairllm.coordinator.planner import ModelDemand, Plan, Stage, format_bytes


class Preparation(MachinePart):
    def __init__(self, books: Books, idle: IdleShards, switch: Switch) -> None:
        super().__init__(books)
        self._idle = idle
        self._switch = switch

    # -- its beginning and its end

    def start(self, plan: Plan, phase: Phase, reason: str) -> None:
        """phase: LOADING, or PREPARING while answers come; then those who must free units first are told later."""
        state, model = self._state, self._state.model
        assert model is not None
        holders = tuple(self._members[stage.shard].holder for stage in plan.stages)
        exclusive = {stage.shard for stage in plan.stages if self._must_free_first(model, stage, plan.num_kv_blocks)}
        state.propose(plan, holders, exclusive, self._now_s)
        state.enter(phase, reason, self._now_s)
        kind, begin = (EventKind.PLAN, "") if phase is Phase.LOADING else (EventKind.PREPARING, "preparing ")
        self._journal.tell(kind, "", begin + describe_plan(state.newest_epoch, plan, model))
        for stage in plan.stages:
            member = self._members[stage.shard]
            member.load, member.load_moved_s = LoadProgress(), self._now_s
            if phase is Phase.LOADING or stage.shard not in exclusive:
                self._assign(member)
        self._idle.leave_out(plan)
        self._advance()

    def _must_free_first(self, model: ModelDemand, stage: Stage, num_kv_blocks: int) -> bool:
        active = self._state.active
        if active is None or stage.shard not in active.plan.placement or not self._members.lives(active.holder_of(stage.shard)):
            return False
        member, block_tokens = self._members[stage.shard], self._config.kv_block_tokens
        room_bytes = member.memory_beside(model.scratch_bytes(stage.units, member.hello.capabilities.num_threads))
        units, num_blocks = active.plan.placement[stage.shard], active.plan.num_kv_blocks
        return needs_exclusive(model, block_tokens, units, num_blocks, stage.units, num_kv_blocks, room_bytes)

    def stop(self, reason: str) -> None:
        """Answers come, and go on with the plan that is active."""
        if self._state.phase is Phase.PREPARING:
            self.drop(reason)
            self._state.enter(Phase.SERVING, "", self._now_s)

    def drop(self, reason: str) -> None:
        """Leaves the phase to the caller. Shards that only the candidate needed are released, unless no ring is open: the next plan may
        need what they have."""
        state, candidate = self._state, self._state.candidate
        if candidate is None:
            return
        state.drop_candidate()
        spent_s = self._now_s - candidate.from_s
        self._journal.tell(EventKind.CANDIDATE_DROPPED, "", f"plan {candidate.epoch} is given up: {reason}", spent_s)
        for name in candidate.assigned:
            member = self._members.get(name)
            if member and state.phase in ANSWERING and state.active and name not in state.active.plan.placement:
                self._idle.release(member, f"plan {candidate.epoch} is given up: {reason}")

    # -- what shards are told

    def _assign(self, member: Member) -> None:
        state, candidate, model = self._state, self._state.candidate, self._state.model
        assert candidate is not None
        assert model is not None
        shards = list(candidate.plan.placement)
        position = shards.index(member.name)
        stage = candidate.plan.stages[position]
        units, streamed = stage.units, (stage.streamed, stage.expert_places)
        following = self._members[shards[position + 1]].peer if position + 1 < len(shards) else None
        candidate.tell(member.name)
        exclusive = candidate.assigned[member.name]
        assert not (exclusive and state.phase in ANSWERING), "nothing is freed that is in use"
        member.load_moved_s = self._now_s
        if state.phase not in ANSWERING:
            # A shard that has stopped for it gives back the blocks beyond at once.
            self._cache.limit_blocks(candidate.plan.num_kv_blocks)
        if exclusive:
            self._cache.narrow(member.holder, units)
            member.held = member.held & frozenset(units)
        geometry = candidate.plan.num_kv_blocks, self._config.kv_block_tokens, model.context_length, self._config.max_batch_rows
        self._journal.do(AssignUnits(member.name, member.boot_id, candidate.epoch, units, following, *geometry, exclusive, *streamed))

    def assign_exclusively(self, candidate: Candidate, member: Member) -> None:
        """It can't load its part beside what it has: it frees that first, at once or when the ring is closed."""
        candidate.free_first(member.name)
        if self._state.phase is Phase.LOADING:
            self._assign(member)
        self._advance()

    def repeat_order(self, member: Member) -> None:
        """What was sent on the stream that broke may be lost, and is understood twice."""
        candidate = self._state.candidate
        if candidate and member.name in candidate.assigned and member.name not in candidate.ready:
            self._assign(member)

    def retry_loads(self) -> None:
        candidate = self._state.candidate
        for name, at_s in sorted(candidate.retry_at_s.items()) if candidate else ():
            if self._now_s >= at_s and name in self._members:
                self._assign(self._members[name])

    # -- what they answer

    def on_progress(self, event: LoadProgressed) -> None:
        member = self._members[event.name]
        if event.progress.loaded_bytes != member.load.loaded_bytes:
            member.load_moved_s = self._now_s
        if event.progress.trouble:
            self._state.note_trouble(_trouble_of(event.name, event.progress))
        elif member.load.trouble:
            self._state.forget_trouble(_trouble_of(event.name, member.load))
        member.load = event.progress

    def on_loaded(self, event: StageLoaded) -> None:
        candidate, model = self._state.candidate, self._state.model
        assert candidate is not None
        assert model is not None
        if event.name in candidate.ready:
            return
        member, units = self._members[event.name], candidate.plan.placement[event.name]
        candidate.note_ready(event.name)
        member.held = member.held | frozenset(units)
        member.take_note("")
        what = describe_units(units, model.num_layers)
        words = f"shard {event.name} holds {what}: {format_bytes(event.weights_bytes)} in {event.load_s:.1f} s"
        self._journal.tell(EventKind.LOADED, event.name, words, event.load_s)
        self._advance()

    def _advance(self) -> None:
        """If all who were told are ready: close the ring, tell the rest, or switch."""
        candidate = self._state.candidate
        if candidate is None or candidate.is_waiting:
            return
        if self._state.phase is Phase.PREPARING:
            self._switch.close_ring(f"plan {candidate.epoch} is ready", graceful=True)
            self._state.enter(Phase.DRAINING, f"the ring empties, to go on with plan {candidate.epoch}", self._now_s)
        elif self._state.phase is Phase.LOADING:
            self._go_on_with_closed_ring()

    def on_drained(self, _: RingDrained) -> None:
        self._go_on_with_closed_ring()

    def _go_on_with_closed_ring(self) -> None:
        state, candidate = self._state, self._state.candidate
        assert candidate is not None
        if candidate.unassigned:
            state.enter(Phase.LOADING, "some shards have to free layers before they can load others", self._now_s)
            for name in candidate.unassigned:
                self._assign(self._members[name])
        elif candidate.is_waiting:
            state.enter(Phase.LOADING, "the shards load their layers", self._now_s)
        else:
            self._switch.activate(candidate)

    def cut_draining_short(self, reason: str) -> None:
        """What is still in flight will not come back, or too late."""
        assert self._state.active is not None
        self._journal.do(CloseRing(self._state.active.epoch, reason, False))
        self._go_on_with_closed_ring()


def _trouble_of(name: str, progress: LoadProgress) -> str:
    return f"shard {name} gets no weights now: {progress.trouble}"
