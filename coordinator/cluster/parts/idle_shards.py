"""Shards without a part in the plan: they are told why, free what they hold, and go if they want to."""

from dairllm.coordinator.cluster.actions import EventKind, ReleaseShard
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.planner import Plan


class IdleShards(MachinePart):
    def release(self, member: Member, reason: str) -> None:
        """Those who have nothing are told once."""
        if not (member.held or member.is_leaving or member.told_note != reason):
            return
        member.held, member.told_note = frozenset(), reason
        self._cache.forget(member.holder)
        self._journal.do(ReleaseShard(member.name, member.boot_id, self._state.newest_epoch, reason, member.is_leaving))

    def release_others(self, plan: Plan) -> None:
        """The ring of this plan opens: it needs nobody else."""
        for member in self._members:
            if member.name not in plan.placement:
                reason = "the others serve without it" if member.is_leaving else member.note or "it has no part in the plan"
                self.release(member, reason)

    def let_go(self, member: Member) -> None:
        """If it wants to leave and is not needed, it may."""
        if member.is_leaving and not self._state.cares_for(member.name):
            self.release(member, "it has asked to leave")

    def leave_out(self, plan: Plan) -> None:
        """Tell why shards have no part, those for whom it has changed."""
        reasons = dict(plan.left_out)
        for member in self._members:
            if member.name in plan.placement:
                member.take_note("")
                continue
            if self._state.is_in_use(member.name):
                continue
            before, reason = member.note, reasons.get(member.name) or member.note
            member.take_note(reason)
            if member.note != before:
                self._journal.tell(EventKind.LEFT_OUT, member.name, f"shard {member.name} {reason}")
