"""From one ring to the next: a ring closes, the shards switch to the stages of the new plan, its ring opens and serves."""

from dairllm.coordinator.cluster.actions import ActivateStage, CloseRing, EventKind, Move, OpenRing
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.deployments import Candidate, Deployment
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.descriptions import describe_moves
from dairllm.coordinator.cluster.events import RingOpened, StageActivated
from dairllm.coordinator.cluster.parts.idle_shards import IdleShards
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.phases import RING_IN_USE, Phase


class Switch(MachinePart):
    def __init__(self, books: Books, idle: IdleShards) -> None:
        super().__init__(books)
        self._idle = idle

    # -- the ring closes

    def close_ring(self, reason: str, graceful: bool = False) -> None:
        """Leaves the phase to the caller, who must enter another: usually at the end of this very event."""
        state = self._state
        if state.phase not in RING_IN_USE:
            return
        assert state.active is not None
        self._journal.do(CloseRing(state.active.epoch, reason, graceful))
        if state.phase is Phase.OPENING:
            self._pause.fail(reason)
        else:
            self._pause.begin(reason, self._now_s, is_switch=graceful)
        if graceful:
            self._journal.tell(EventKind.SWITCHING, "", f"the ring of plan {state.active.epoch} empties: {reason}")

    # -- the shards switch

    def activate(self, candidate: Candidate) -> None:
        self._state.activate_candidate(self._now_s)
        self._cache.limit_blocks(candidate.plan.num_kv_blocks)
        members = [self._members[stage.shard] for stage in candidate.plan.stages]
        moves = [self._moves_to(member) for member in members]
        for member, fetched in zip(members, moves, strict=True):
            units = candidate.plan.placement[member.name]
            self._cache.narrow(member.holder, units)
            member.speed.interrupt()
            self._journal.do(ActivateStage(member.name, member.boot_id, candidate.epoch, fetched))

    def repeat_order(self, member: Member) -> None:
        """What was sent on the stream that broke may be lost, and is understood twice."""
        state = self._state
        if state.phase is Phase.ACTIVATING and member.name in state.unactivated:
            assert state.active is not None
            self._journal.do(ActivateStage(member.name, member.boot_id, state.active.epoch, self._moves_to(member)))

    def _moves_to(self, member: Member) -> tuple[Move, ...]:
        active = self._state.active
        assert active is not None
        layers = [unit for unit, owner in active.owners.items() if owner == member.holder]
        reachable = {other.holder for other in self._members if not self._links.avoids(member.name, other.name, self._now_s)}
        fetches = self._cache.fetches(member.holder, layers, reachable)
        return tuple(Move(units, self._members[holder.name].peer) for units, holder in fetches)

    def on_activated(self, event: StageActivated) -> None:
        state = self._state
        assert state.active is not None
        if event.name not in state.unactivated:
            return
        state.note_activated(event.name)
        member = self._members[event.name]
        moved = {unit for move in self._moves_to(member) for unit in move.units}
        self._cache.transfer(member.holder, moved & event.transferred_units)
        member.held = frozenset(state.active.plan.placement[event.name])
        if event.note:
            words = f"shard {event.name} could not take over the cache of all layers, they are computed again: {event.note}"
            self._journal.tell(EventKind.TRANSFER_INCOMPLETE, event.name, words, event.seconds)
        if not state.unactivated:
            self._open_ring(state.active)

    # -- the ring opens

    def _open_ring(self, active: Deployment) -> None:
        state = self._state
        state.enter(Phase.OPENING, "the ring is being opened", self._now_s)
        intact = self._cache.intact(active.owners)
        first = self._members[active.plan.stages[0].shard].peer
        layers, blocks = (intact.kept, intact.transferred), self._cache.intact_blocks
        self._journal.do(OpenRing(active.epoch, active.plan, first, active.holders, *layers, blocks))
        self._idle.leave_out(active.plan)
        self._idle.release_others(active.plan)

    def on_opened(self, _: RingOpened) -> None:
        state = self._state
        assert state.active is not None
        state.enter(Phase.SERVING, "", self._now_s)
        self._cache.serve(state.active.owners, state.active.plan.num_kv_blocks)
        if self._pause.is_switch:
            self._retries_beside.succeed()
        self._record_serving(state.active)
        self._pause.end()
        self._better.note_serving(self._now_s)
        state.note_opened()

    def _record_serving(self, active: Deployment) -> None:
        """What it is depends on why the ring was closed."""
        before, pause_s = self._state.before, self._pause.since_s(self._now_s)
        moves = describe_moves(before.plan.placement, active.plan.placement) if before else ""
        details = f", {moves}" if moves else ""
        if pause_s is None:
            self._journal.tell(EventKind.SERVING, "", f"serving with plan {active.epoch}")
        elif self._pause.is_switch:
            self._journal.tell(EventKind.SWITCHED, "", f"plan {active.epoch} serves{details}, pause {pause_s:.2f} s", pause_s)
        else:
            words = f"plan {active.epoch} serves{details}, {pause_s:.2f} s after {self._pause.why}"
            self._journal.tell(EventKind.RECOVERED, "", words, pause_s)
