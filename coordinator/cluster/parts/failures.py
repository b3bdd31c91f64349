"""What fails, and what is done about it: retries, pauses that double, shards that are set aside or asked for no more than they have."""

import math
from collections.abc import Collection

from dairllm.coordinator.cluster.actions import EventKind
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.deployments import Candidate
from dairllm.coordinator.cluster.books.links import Edge
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.events import EdgeBroken, RingBroken, StageLoadFailed
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.parts.planning import Planning
from dairllm.coordinator.cluster.parts.preparation import Preparation
from dairllm.coordinator.cluster.parts.switch import Switch
from dairllm.coordinator.cluster.phases import Phase
from dairllm.mesh.peers import COORDINATOR_NAME

LEAST_LESSON_BYTES = 1 << 20
"""A shard that lacks memory is planned with so much less at least: there is an end to it."""


class Failures(MachinePart):
    def __init__(self, books: Books, switch: Switch, preparation: Preparation, planning: Planning) -> None:
        super().__init__(books)
        self._switch = switch
        self._preparation = preparation
        self._planning = planning

    # -- a stage fails

    def on_stage_failed(self, event: StageLoadFailed) -> None:
        """One that is active, or was to be."""
        reason = f"the stage of shard {event.name} failed: {event.message}"
        self._journal.tell(EventKind.LOAD_FAILED, event.name, reason)
        self._blame(event.name)
        self._close_and_retry(reason)

    def on_load_failed(self, event: StageLoadFailed) -> None:
        """One of the candidate."""
        member, candidate = self._members[event.name], self._state.candidate
        assert candidate is not None
        if event.needs_exclusive and not candidate.assigned[event.name]:
            words = f"shard {member.name} has to free layers before it can load others: {event.message}"
            self._journal.tell(EventKind.LOAD_FAILED, member.name, words)
            self._preparation.assign_exclusively(candidate, member)
        elif event.retryable:
            self._on_retryable(candidate, member, event.message)
        else:
            self._on_hopeless(member, event.message, event.missing_bytes)

    def _on_retryable(self, candidate: Candidate, member: Member, message: str) -> None:
        self._journal.tell(EventKind.LOAD_FAILED, member.name, f"shard {member.name} could not load its part: {message}")
        self._state.note_trouble(f"shard {member.name} could not load its part: {message}")
        is_beside = self._state.phase is not Phase.LOADING
        self._blame(member.name, is_beside)
        member.take_note(member.note or message)
        candidate.note_failed(member.name)
        if member.failures < self._config.set_aside_after:
            candidate.retry(member.name, self._now_s + self._config.pause_s(member.failures))
        elif is_beside:
            self._limit_to_present(member, self._now_s + self._config.set_aside_s)
            self._give_up_candidate(f"shard {member.name} could not load its part: {message}")
        else:
            self._close_and_retry(f"shard {member.name} could not load its part: {message}")

    def _on_hopeless(self, member: Member, message: str, missing_bytes: int) -> None:
        """It cannot load this part; if it has another one already, it may keep that. With too little memory it may have a smaller one."""
        self._journal.tell(EventKind.LOAD_FAILED, member.name, f"shard {member.name} could not load its part: {message}")
        self._state.note_trouble(f"shard {member.name} could not load its part: {message}")
        if not self._limit_to_present(member, math.inf):
            if missing_bytes:
                self._learn_room(member, missing_bytes)
            else:
                member.fail(message, math.inf)
        self._give_up_candidate(f"shard {member.name} failed")

    def _learn_room(self, member: Member, missing_bytes: int) -> None:
        """It has less room than was planned with: so much less than its part of the candidate needs."""
        state, candidate = self._state, self._state.candidate
        assert state.model is not None
        assert candidate is not None
        stage = next(stage for stage in candidate.plan.stages if stage.shard == member.name)
        scratch_bytes = state.model.scratch_bytes(stage.units, member.hello.capabilities.num_threads)
        needed_bytes = stage.weights_bytes + stage.kv_cache_bytes
        member.unplanned_bytes += max(member.memory_beside(scratch_bytes) - needed_bytes + missing_bytes, LEAST_LESSON_BYTES)

    def _limit_to_present(self, member: Member, until_s: float) -> bool:
        """Plan no more for it than it has now. False if it has nothing."""
        active = self._state.active
        stages = active.plan.stages if active and self._members.lives(member.holder) and member.holder in active.holders else ()
        stage = next((stage for stage in stages if stage.shard == member.name), None)
        if stage is None or not member.held.issuperset(stage.units) or member.limit_until_s > self._now_s:
            return False
        member.limit_bytes, member.limit_until_s = stage.weights_bytes + stage.kv_cache_bytes, until_s
        return True

    def _give_up_candidate(self, reason: str) -> None:
        if self._state.phase is Phase.PREPARING:
            self._retries_beside.fail(self._now_s)
            self._preparation.stop(reason)
            self._planning.schedule(self._now_s)
        else:
            self.interrupt(reason)
            self._planning.schedule(self._now_s, urgent=True)

    # -- a connection breaks

    def on_edge_broken(self, event: EdgeBroken) -> None:
        self._blame(event.peer if event.peer in self._members else event.reporter)
        # Silence towards the coordinator says nothing of the link, over which a lease is held: the coordinator may have stood still.
        self._blame_link(Edge(event.reporter, event.peer), silent=event.silent and event.peer != COORDINATOR_NAME)
        self._give_up_ring(f"the connection from {event.reporter} to {event.peer} broke: {event.message}")

    def on_ring_broken(self, event: RingBroken) -> None:
        self._break_ring(event.message)

    def _break_ring(self, message: str) -> None:
        state = self._state
        assert state.active is not None
        if state.phase is Phase.OPENING:
            self._blame(state.active.plan.stages[0].shard)
            self._blame_link(Edge(COORDINATOR_NAME, state.active.plan.stages[0].shard))
        self._give_up_ring(f"the ring broke: {message}")

    def _give_up_ring(self, reason: str) -> None:
        """If it was to be closed anyway, go on with the plan that is ready."""
        if self._state.phase is Phase.DRAINING:
            self._preparation.cut_draining_short(reason)
        else:
            self._close_and_retry(reason)

    # -- nothing moves

    def notice_stalls(self) -> None:
        state, config = self._state, self._config
        since_s = self._now_s - state.phase_from_s
        if state.phase is Phase.OPENING and since_s > config.open_timeout_s:
            self._break_ring(f"it did not open within {config.open_timeout_s:g} s")
        elif state.phase is Phase.DRAINING and since_s > config.drain_timeout_s:
            self._preparation.cut_draining_short(f"it did not empty within {config.drain_timeout_s:g} s")
        elif state.phase is Phase.ACTIVATING and since_s > config.activate_timeout_s:
            for name in sorted(state.unactivated):
                self._blame(name)
            self._close_and_retry(f"{' and '.join(sorted(state.unactivated))} did not switch within {config.activate_timeout_s:g} s")
        self._notice_stalled_loads()

    def _notice_stalled_loads(self) -> None:
        state, candidate = self._state, self._state.candidate
        for name in sorted(candidate.assigned) if candidate else ():
            if state.candidate is candidate and candidate is not None and self._has_stalled(candidate, name):
                self._on_retryable(candidate, self._members[name], f"no progress for {self._config.load_stall_s:g} s")

    def _has_stalled(self, candidate: Candidate, name: str) -> bool:
        return candidate.is_loading(name) and self._now_s - self._members[name].load_moved_s > self._config.load_stall_s

    # -- what follows

    def go_on_without(self, names: Collection[str], what: str) -> None:
        """A new plan at once if one that is in use or in the making needs them."""
        state = self._state
        reason = " and ".join(f"shard {name} {what}" for name in names if state.cares_for(name))
        is_in_use = any(state.is_in_use(name) for name in names)
        if is_in_use or (reason and state.phase in (Phase.LOADING, Phase.DRAINING, Phase.RETRYING)):
            self.interrupt(reason)
            self._planning.schedule(self._now_s, urgent=True)
        elif reason and state.phase is Phase.PREPARING:
            self._preparation.stop(reason)
            self._planning.schedule(self._now_s)
        elif state.phase is Phase.WAITING:
            self._planning.schedule(self._now_s)

    def interrupt(self, reason: str) -> None:
        """No ring, no candidate; the caller schedules a plan."""
        self._switch.close_ring(reason)
        if self._pause.is_switch:
            self._pause.fail(reason)
        self._state.enter(Phase.RETRYING, reason, self._now_s)
        self._preparation.drop(reason)

    def _close_and_retry(self, reason: str) -> None:
        """Close the ring; after the grace plan anew, with whoever is left."""
        self._state.note_trouble(reason)
        self.interrupt(reason)
        self._retries.fail(self._now_s)
        pause_s = self._retries.pause_s
        self._journal.tell(EventKind.RETRY, "", f"{reason}; planning again in {pause_s:g} s", pause_s)
        self._planning.schedule(self._retries.not_before_s, urgent=True)

    def _blame(self, name: str, is_beside: bool = False) -> None:
        """is_beside: it still does well what it does now."""
        member = self._members.get(name)
        if member is None:
            return
        member.failures += 1
        if member.failures >= self._config.set_aside_after and not (is_beside and self._state.is_in_use(name)):
            member.unused_until_s = max(member.unused_until_s, self._now_s + self._config.set_aside_s)
            member.take_note(f"set aside after {member.failures} failures in a row")
            words = f"shard {name} is set aside after {member.failures} failures in a row; the others try without it"
            self._journal.tell(EventKind.SET_ASIDE, name, words)

    def _blame_link(self, edge: Edge, *, silent: bool = False) -> None:
        avoided_s = self._links.fail(edge, self._now_s, silent=silent)
        if avoided_s:
            failed = "fell silent" if silent else "failed again"
            words = f"the link from {edge.sender} to {edge.receiver} {failed}, though both live: plans go around it for {avoided_s:g} s"
            self._journal.tell(EventKind.SET_ASIDE, "", f"{words}, if they can")

    # -- what is forgiven

    def try_links_again(self) -> None:
        if self._links.end_avoidances(self._now_s):
            self._planning.schedule(self._now_s)

    def welcome_back_set_aside(self) -> None:
        for member in self._members:
            if -math.inf < member.unused_until_s <= self._now_s and not member.has_failed:
                member.try_again()
                self._planning.schedule(self._now_s)

    def forget_failures(self) -> None:
        """Failures are in a row until it has served for a while."""
        state = self._state
        if state.phase is Phase.SERVING and self._now_s - state.phase_from_s >= self._config.longest_pause_s:
            self._retries.succeed()
            if state.active:
                self._links.hold(state.active.plan)
            for member in self._members:
                if state.active and member.name in state.active.plan.placement:
                    member.failures, member.accused = 0, ""
