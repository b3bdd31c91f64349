"""What shards and people want: to leave, not to be used, other limits."""

from dairllm.coordinator.cluster.actions import AskToDrain, ConfigureLimits, EventKind
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.member import Cordon, Member
from dairllm.coordinator.cluster.events import CapabilitiesChanged, ConfigureRequested, CordonRequested, DrainRequested, ShardLeaving
from dairllm.coordinator.cluster.parts.idle_shards import IdleShards
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.parts.plan_search import PlanSearch
from dairllm.coordinator.cluster.parts.planning import Planning
from dairllm.coordinator.cluster.phases import Phase
from dairllm.coordinator.planner import format_bytes, format_rate
from dairllm.mesh.words import counted


class Wishes(MachinePart):
    def __init__(self, books: Books, idle: IdleShards, search: PlanSearch, planning: Planning) -> None:
        super().__init__(books)
        self._idle = idle
        self._search = search
        self._planning = planning

    # -- to leave

    def on_leaving(self, event: ShardLeaving) -> None:
        self._leave(self._members[event.name], event.reason)

    def on_drain(self, event: DrainRequested) -> None:
        member = self._members[event.name]
        member.is_leave_forced = member.is_leave_forced or event.force
        self._journal.do(AskToDrain(member.name, member.boot_id, "it was asked to hand over its layers and leave"))
        self._leave(member, "it was asked to")

    def _leave(self, member: Member, reason: str) -> None:
        if not member.is_leaving:
            lack = None if member.is_forced else self._search.lack_without(member.name)
            until = f"; it goes on for now, since without it {lack.reason}" if lack else ""
            member.leaving = f"wants to leave: {reason}{until}"
            self._journal.tell(EventKind.LEAVING, member.name, f"shard {member.name} {member.leaving}")
        self._planning.schedule(self._now_s)
        self._idle.let_go(member)

    def let_needed_go(self) -> None:
        """No answer runs or waits: who wants to leave, and has a part that nobody takes over, need not wait for that.

        While a ring is open, a plan that is due or is prepared may still do without it.
        """
        state = self._state
        is_loading = state.phase is Phase.LOADING
        if state.plan is None or not (is_loading or (state.phase is Phase.SERVING and self._timer.due_s is None)):
            return
        needed = [m for m in self._members if m.is_leaving and not m.is_leave_forced and m.name in state.plan.placement]
        for member in needed:
            member.is_leave_forced = True
            self._planning.schedule(self._now_s, urgent=is_loading)

    # -- not to be used

    def on_cordon(self, event: CordonRequested) -> None:
        cordon = Cordon.NONE if not event.cordoned else Cordon.FORCED if event.force else Cordon.UNLESS_NEEDED
        member = self._members.get(event.name)
        was_cordoned = member is not None and member.is_cordoned
        self._members.cordon(event.name, cordon)
        if member is None:
            return
        if member.is_cordoned != was_cordoned:
            words = f"shard {member.name} is {'cordoned' if member.is_cordoned else 'admitted to plans again'}"
            self._journal.tell(EventKind.CORDONED, member.name, words)
        self._planning.schedule(self._now_s)

    # -- other limits

    def on_configure(self, event: ConfigureRequested) -> None:
        limits = event.memory_budget_bytes, event.num_threads
        self._journal.do(ConfigureLimits(event.name, self._members[event.name].boot_id, *limits))

    def on_capabilities(self, event: CapabilitiesChanged) -> None:
        member = self._members[event.name]
        if event.refusal:
            self._journal.tell(EventKind.CONFIGURED, member.name, f"shard {member.name} keeps its limits: {event.refusal}")
            return
        before, room_bytes = member.hello.capabilities, member.room_bytes
        member.configure(event.capabilities)
        if event.capabilities.differs_in_speed_alone(before):
            self._tell_speed(member, before.decode_s_per_byte)
            self._better.expect()
            return
        text = f"shard {member.name} has {format_bytes(member.room_bytes)} for the model (before: {format_bytes(room_bytes)})"
        self._journal.tell(EventKind.CONFIGURED, member.name, f"{text} and {counted(event.capabilities.num_threads, 'thread')}")
        self._planning.schedule(self._now_s)

    def _tell_speed(self, member: Member, before_s: float) -> None:
        after_s = member.hello.capabilities.decode_s_per_byte
        if after_s > 0 and before_s > 0:
            words = f"shard {member.name} has measured itself again: {format_rate(after_s)}, {format_rate(before_s)} before"
            self._journal.tell(EventKind.SPEED_CHANGED, member.name, words)
