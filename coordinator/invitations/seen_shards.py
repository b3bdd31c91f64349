"""Machines that were seen but are no members: whom to invite and when, and what to tell people of each. Pure, the shell is `inviter`.

    ShardSeen ──► InviteShard, unless it joins by itself ──┬─ InviteAccepted ─► waits for it to join, then calls again
                                                            ├─ InviteFailed ───► calls again, after longer each time
                                                            └─ InviteRefused ──► likewise

A shard whose record changes, such as one that comes back with another address, is as new. One of another cluster or protocol is not called.
Anybody can announce anything, so the number of records, of calls at the same time and of calls to each are bounded.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from dairllm.mesh.discovery.records import DiscoveredShard, ShardState

INVITE_AFTER_S = 0.25
"""By itself a shard often joins only after a second, since answers by multicast are spaced out (RFC 6762, section 6)."""
LISTED_AFTER_S = 3.0
"""Before that people are not told of it: it most likely joins."""
JOINED_ELSEWHERE_AFTER_S = 10.0
"""A shard that says that it has joined, and is no member here for so long, has joined elsewhere, or its record is old."""
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
MAX_SEEN = 64
MAX_CALLS = 4


class SeenPhase(StrEnum):
    """The values are those of SeenShardPhase in cluster.proto."""

    INVITED = "invited"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    OTHER_CLUSTER = "other_cluster"
    OTHER_PROTOCOL = "other_protocol"


@dataclass(frozen=True, slots=True)
class ShardSeen:
    """There is this record, or it is another one now. key: of the record, which two shards that claim one id do not share."""

    key: str
    shard: DiscoveredShard


@dataclass(frozen=True, slots=True)
class ShardGone:
    key: str


@dataclass(frozen=True, slots=True)
class InviteAccepted:
    key: str


@dataclass(frozen=True, slots=True)
class InviteFailed:
    """It did not answer, or not as a shard. reason: in words."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class InviteRefused:
    """reason: its own words."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class MembersKnown:
    """Time passes, and these are members. member_ids: of those that announce themselves."""

    member_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class InviteShard:
    key: str
    shard: DiscoveredShard


Event = ShardSeen | ShardGone | InviteAccepted | InviteFailed | InviteRefused | MembersKnown


@dataclass(frozen=True, slots=True)
class SeenShard:
    """What people are told. since_s: seen, and no member, since then."""

    shard: DiscoveredShard
    phase: SeenPhase
    reason: str
    since_s: float


@dataclass(slots=True)
class _Seen:
    """calls: since it was new, each without making it a member. called_s, called: the last one, and whether it is under way."""

    shard: DiscoveredShard
    since_s: float
    due_s: float
    calls: int = 0
    called_s: float = -math.inf
    is_called: bool = False
    is_member: bool = False
    phase: SeenPhase = SeenPhase.INVITED
    reason: str = "it is being invited"

    def renew(self, now_s: float) -> None:
        """Nothing that was learned of it holds any more. Still it is not called more often than every FIRST_PAUSE_S."""
        waits_s = INVITE_AFTER_S if self.shard.state is ShardState.LOOKING else JOINED_ELSEWHERE_AFTER_S
        self.since_s = now_s
        self.due_s = max(now_s + waits_s, self.called_s + FIRST_PAUSE_S)
        self.calls = 0
        self.phase, self.reason = SeenPhase.INVITED, "it is being invited"

    def note(self, phase: SeenPhase, reason: str, now_s: float) -> None:
        self.is_called = False
        self.due_s = now_s + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(max(self.calls - 1, 0), 16))
        self.phase, self.reason = phase, reason


class SeenShards:
    def __init__(self, cluster_hash: str, protocol_major: int, protocol_minor: int) -> None:
        self._cluster_hash = cluster_hash
        self._protocol_major = protocol_major
        self._protocol = f"{protocol_major}.{protocol_minor}"
        self._seen: dict[str, _Seen] = {}
        self._now_s = 0.0

    def handle(self, event: Event, now_s: float) -> list[InviteShard]:
        """The calls to make, in their order; the outcome of each comes back as an event."""
        self._now_s = max(now_s, self._now_s)
        match event:
            case ShardSeen(key, shard):
                self._see(key, shard)
            case ShardGone(key):
                self._seen.pop(key, None)
            case InviteAccepted(key):
                self._note(key, SeenPhase.INVITED, "it was told where this coordinator is, and has not joined yet")
            case InviteFailed(key, reason):
                self._note(key, SeenPhase.UNREACHABLE, reason)
            case InviteRefused(key, reason):
                self._note(key, SeenPhase.REFUSED, reason)
            case MembersKnown(member_ids):
                for seen in self._seen.values():
                    self._compare(seen, seen.shard.shard_id in member_ids)
                return self._due_calls()
        return []

    def listed(self, member_ids: Collection[str]) -> tuple[SeenShard, ...]:
        """Those that people may wonder about, the longest seen first: not those that have had no time to join by themselves yet.

        member_ids: of those that are members at this moment, which `MembersKnown` may not have told yet.
        """
        told = [self._told(seen) for seen in self._seen.values() if seen.shard.shard_id not in member_ids and self._is_listed(seen)]
        return tuple(sorted(told, key=lambda seen: (seen.since_s, seen.shard.name, seen.shard.shard_id)))

    def _see(self, key: str, shard: DiscoveredShard) -> None:
        known = self._seen.get(key)
        if known is None:
            if len(self._seen) < MAX_SEEN or self._forget_one():
                self._seen[key] = _Seen(shard, self._now_s, 0.0)
                self._seen[key].renew(self._now_s)
        elif known.shard != shard:
            known.shard = shard
            known.renew(self._now_s)

    def _forget_one(self) -> bool:
        """The longest seen of those that are of no use, so that records that mean nothing do not keep out those that do."""
        useless = [key for key, seen in self._seen.items() if not (seen.is_member or seen.is_called) and (seen.calls or self._misfit(seen))]
        if useless:
            del self._seen[min(useless, key=lambda key: self._seen[key].since_s)]
        return bool(useless)

    def _note(self, key: str, phase: SeenPhase, reason: str) -> None:
        if key in self._seen:
            self._seen[key].note(phase, reason, self._now_s)

    def _compare(self, seen: _Seen, is_member: bool) -> None:
        if seen.is_member != is_member:
            seen.is_member = is_member
            seen.renew(self._now_s)

    def _due_calls(self) -> list[InviteShard]:
        due = {key: seen for key, seen in self._seen.items() if self._now_s >= seen.due_s and not (seen.is_called or seen.is_member)}
        wanted = sorted((key for key, seen in due.items() if self._misfit(seen) is None), key=lambda key: due[key].due_s)
        under_way = sum(seen.is_called for seen in self._seen.values())
        chosen = wanted[: max(0, MAX_CALLS - under_way)]
        for key in chosen:
            due[key].is_called, due[key].called_s = True, self._now_s
            due[key].calls += 1
        return [InviteShard(key, due[key].shard) for key in chosen]

    def _misfit(self, seen: _Seen) -> SeenPhase | None:
        """Why it is not called at all."""
        if seen.shard.cluster_hash != self._cluster_hash:
            return SeenPhase.OTHER_CLUSTER
        return None if seen.shard.protocol.partition(".")[0] == str(self._protocol_major) else SeenPhase.OTHER_PROTOCOL

    def _is_listed(self, seen: _Seen) -> bool:
        """A shard that has joined another cluster is where it belongs."""
        if seen.is_member or self._now_s - seen.since_s < LISTED_AFTER_S:
            return False
        if self._misfit(seen) is None:
            return seen.calls > 0
        return seen.shard.state is ShardState.LOOKING or seen.shard.cluster_hash == self._cluster_hash

    def _told(self, seen: _Seen) -> SeenShard:
        shard = seen.shard
        misfit = self._misfit(seen)
        reasons = {
            SeenPhase.OTHER_CLUSTER: f"it looks for another cluster (hash {shard.cluster_hash}; this one's is {self._cluster_hash})",
            SeenPhase.OTHER_PROTOCOL: f"it speaks protocol {shard.protocol}; this coordinator speaks {self._protocol}",
        }
        return SeenShard(shard, misfit or seen.phase, reasons[misfit] if misfit else seen.reason, seen.since_s)
