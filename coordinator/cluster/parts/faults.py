"""Who is at fault is set aside at once, and is planned with again only after it has proved that it computes.

Whatever it says of itself meanwhile changes nothing. Who is at fault again soon is left alone for twice as long.
"""

import math

from dairllm.coordinator.cluster.actions import AskForProof, EventKind
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.events import MemberAccused, MemberAtFault, ProofGiven
from dairllm.coordinator.cluster.parts.failures import Failures
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.parts.planning import Planning


class Faults(MachinePart):
    def __init__(self, books: Books, planning: Planning, failures: Failures) -> None:
        super().__init__(books)
        self._planning = planning
        self._failures = failures

    def on_fault(self, event: MemberAtFault) -> None:
        """The others go on without it at once, also if they do not suffice."""
        member = self._members[event.name]
        if member.has_failed:
            return
        self._count(member)
        pause_s = self._config.fault_s(member.num_faults, event.is_believed)
        member.fail(f"set aside until it proves that it computes: it {event.reason}", self._now_s + pause_s)
        words = f"shard {event.name} {event.reason}: it is set aside until it proves that it computes"
        self._journal.tell(EventKind.SET_ASIDE, event.name, words)
        if event.is_believed:
            self._cache.forget(member.holder)
        else:
            self._cache.clear()
        self._state.note_trouble(f"shard {event.name} {event.reason}")
        self._failures.go_on_without([event.name], "is at fault")

    def on_accused(self, event: MemberAccused) -> None:
        """Who receives nonsense is believed once; who receives it from one member after the other is the one that is at fault."""
        active, accuser = self._state.active, self._members[event.name]
        assert active is not None
        stages = [stage.shard for stage in active.plan.stages]
        position = stages.index(event.peer) if event.peer in stages else -1
        if position < 0 or stages[position + 1 : position + 2] != [event.name] or not self._members.lives(active.holders[position]):
            return
        if accuser.accused not in ("", event.peer):
            reason = f"accuses one member after the other: first {accuser.accused}, then {event.peer}"
            self.on_fault(MemberAtFault(event.name, event.boot_id, reason))
            return
        accuser.accused = event.peer
        peer = self._members[event.peer]
        self.on_fault(MemberAtFault(peer.name, peer.boot_id, f"sent to {event.name} what cannot be: {event.reason}"))

    def _count(self, member: Member) -> None:
        """What was long ago is forgiven."""
        if self._now_s - member.last_fault_s > 2 * self._config.longest_avoid_s:
            member.num_faults = 0
        member.num_faults += 1
        member.num_asked, member.last_fault_s = 0, self._now_s

    # -- a proof

    def ask_for_proofs(self) -> None:
        """Of those whose time is over, and again of those who have not answered."""
        for member in self._members:
            if member.has_failed and member.unused_until_s <= self._now_s:
                self._ask(member)

    def _ask(self, member: Member) -> None:
        member.num_asked += 1
        member.proof_number += 1
        member.asked_at_s = self._now_s
        member.unused_until_s = self._now_s + self._config.pause_between_proofs_s(member.num_asked)
        self._journal.do(AskForProof(member.name, member.boot_id, member.proof_number))

    def on_proof(self, event: ProofGiven) -> None:
        member = self._members[event.name]
        if not member.has_failed or member.unused_until_s == math.inf or event.number != member.proof_number:
            return
        took_s = self._now_s - member.asked_at_s
        if not event.is_right:
            member.failure = "set aside until it proves that it computes: what it has computed as a proof is wrong"
            self._journal.tell(EventKind.SET_ASIDE, member.name, f"shard {member.name} computes wrong, and stays set aside")
        elif took_s > self._config.proof_limit_s:
            self._ask(member)  # it moves again: at once, or almost
        else:
            member.try_again()
            self._journal.tell(EventKind.PROVED, member.name, f"shard {member.name} has proved that it computes, and may be used again")
            self._planning.schedule(self._now_s)
