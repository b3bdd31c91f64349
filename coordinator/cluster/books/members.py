"""Who is a member: joins, leases, signs of life. What a change of members means for the plan is the machine's business."""

from collections.abc import Iterator
from enum import Enum

from dairllm.coordinator.cluster.actions import AdmitShard, EndLease, EventKind, RefuseShard
from dairllm.coordinator.cluster.books.join_refusals import refusal_of
from dairllm.coordinator.cluster.books.journal import Journal
from dairllm.coordinator.cluster.books.member import NO_FAULT, Cordon, Fault, Member
from dairllm.coordinator.cluster.books.speeds import SpeedEstimate
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.descriptions import describe_join
from dairllm.coordinator.cluster.events import HeartbeatReceived
from dairllm.coordinator.cluster.identities import Holder, LeaseId
from dairllm.coordinator.cluster.shard_reports import ShardHello
from dairllm.mesh.errors import DairllmError, NameTaken

MAX_FAULTS = 64
"""Of shards that are away, the latest ones."""


class JoinOutcome(Enum):
    REFUSED = "refused"
    NEW = "new"
    RESTARTED = "restarted"
    RECONNECTED = "reconnected"


class Members:
    def __init__(self, config: ClusterConfig, journal: Journal) -> None:
        self._config = config
        self._journal = journal
        self._members: dict[str, Member] = {}
        self._cordons: dict[str, Cordon] = {}
        self._faults: dict[Holder, Fault] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    def __iter__(self) -> Iterator[Member]:
        """By name."""
        return iter([self._members[name] for name in sorted(self._members)])

    def __len__(self) -> int:
        return len(self._members)

    def get(self, name: str) -> Member | None:
        return self._members.get(name)

    def is_current(self, name: str, boot_id: str) -> bool:
        return name in self._members and self._members[name].boot_id == boot_id

    def lives(self, holder: Holder) -> bool:
        return self.is_current(holder.name, holder.boot_id)

    def has_lease(self, name: str, boot_id: str, lease: LeaseId) -> bool:
        return self.is_current(name, boot_id) and self._members[name].lease == lease

    # -- joins

    def join(self, lease: LeaseId, hello: ShardHello) -> JoinOutcome:
        error = refusal_of(hello, self._config)
        present = None if error else self._members.get(hello.name)
        if present and present.boot_id != hello.boot_id:
            error = self._name_taken(present)
        if error:
            self._journal.do(RefuseShard(hello.name, hello.boot_id, lease, error))
            self._journal.tell(EventKind.REFUSED, "", f"a shard was refused: {error}")
            return JoinOutcome.REFUSED
        if present and present.boot_id == hello.boot_id:
            self._reconnect(present, lease, hello)
            return JoinOutcome.RECONNECTED
        if present:
            self.end_lease(present, "the shard has joined again after a restart")
            self._journal.tell(EventKind.LOST, present.name, f"shard {present.name} has restarted")
        self._admit(lease, hello)
        return JoinOutcome.RESTARTED if present else JoinOutcome.NEW

    def _name_taken(self, present: Member) -> DairllmError | None:
        silent_s = self._journal.now_s - present.last_seen_s
        if silent_s > 2 * self._config.heartbeat_interval_s:
            return None
        return NameTaken(
            f"a living shard is named '{present.name}' (heard of {silent_s:.1f} s ago at {present.hello.addresses[0]}): "
            "start this one with --name and another name",
            "name",
            self._config.lease_timeout_s,
        )

    def _admit(self, lease: LeaseId, hello: ShardHello) -> None:
        now_s = self._journal.now_s
        speed = SpeedEstimate(hello.capabilities.decode_s_per_byte)
        member = Member(hello, lease, now_s, speed, cordon=self._cordons.get(hello.name, Cordon.NONE))
        member.take_fault(self._faults.pop(member.holder, NO_FAULT))
        self._members[hello.name] = member
        self._journal.do(AdmitShard(hello.name, hello.boot_id, lease))
        self._journal.tell(EventKind.JOINED, hello.name, describe_join(hello))

    def _reconnect(self, member: Member, lease: LeaseId, hello: ShardHello) -> None:
        """The process lives and keeps what it has; only what was sent on the old stream may be lost."""
        self.end_lease(member, "the shard has joined again on a new connection")
        member.configure(hello.capabilities)
        member.hello, member.lease = hello, lease
        member.last_seen_s = self._journal.now_s
        self._journal.do(AdmitShard(member.name, member.boot_id, lease))
        self._journal.tell(EventKind.RECONNECTED, member.name, f"shard {member.name} is back on a new connection")

    # -- cordons

    def is_known(self, name: str) -> bool:
        """Whether it is a member, or one that is away of which something is wanted."""
        return name in self._members or name in self._cordons

    def cordon(self, name: str, cordon: Cordon) -> None:
        """What is wanted of shards that are away is remembered."""
        if cordon is Cordon.NONE:
            self._cordons.pop(name, None)
        else:
            self._cordons[name] = cordon
        if name in self._members:
            self._members[name].cordon = cordon

    # -- leases

    def hear(self, name: str, boot_id: str) -> None:
        if self.is_current(name, boot_id):
            self._members[name].last_seen_s = self._journal.now_s

    def beat(self, event: HeartbeatReceived) -> None:
        member = self._members[event.name]
        member.usage, member.work = event.usage, event.work
        member.num_beats += 1
        if event.round_trip_us > 0:
            member.round_trip_us = event.round_trip_us
            member.num_round_trips += 1
            member.least_round_trip_us = min(member.least_round_trip_us or event.round_trip_us, event.round_trip_us)

    def expire(self) -> dict[str, str]:
        """End the leases of those who were silent for too long. Returns what happened, by name; they still have to be removed."""
        now_s = self._journal.now_s
        expired = [member for member in self if now_s - member.last_seen_s > self._config.lease_timeout_s]
        reasons = {member.name: f"nothing was heard of it for {now_s - member.last_seen_s:.1f} s" for member in expired}
        for member in expired:
            self.end_lease(member, reasons[member.name])
        return reasons

    def end_lease(self, member: Member, reason: str) -> None:
        self._journal.do(EndLease(member.name, member.boot_id, member.lease, reason))

    def remove(self, name: str) -> Member:
        """That it was at fault is remembered, so that it does not help to join again."""
        member = self._members.pop(name)
        if member.num_faults:
            self._faults[member.holder] = member.fault
            while len(self._faults) > MAX_FAULTS:
                del self._faults[next(iter(self._faults))]
        return member
