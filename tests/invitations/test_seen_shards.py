"""Whom the coordinator invites, when, and what it tells of machines that are no members."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.invitations.seen_shards import (
    FIRST_PAUSE_S,
    INVITE_AFTER_S,
    JOINED_ELSEWHERE_AFTER_S,
    LISTED_AFTER_S,
    LONGEST_PAUSE_S,
    MAX_CALLS,
    MAX_SEEN,
    Event,
    InviteAccepted,
    InviteFailed,
    InviteRefused,
    InviteShard,
    MembersKnown,
    SeenPhase,
    SeenShards,
    ShardGone,
    ShardSeen,
)
from dairllm.mesh.discovery.records import DiscoveredShard, ShardState

HASH, OTHER_HASH = "0123456789abcdef", "fedcba9876543210"


def shard(name: str = "b", **changes: object) -> DiscoveredShard:
    return replace(DiscoveredShard(f"id-{name}", name, HASH, "1.0", ShardState.LOOKING, ("10.0.0.2:4000",)), **changes)  # type: ignore[arg-type]


class Network:
    """The machine in a time of its own. members: ids of those that have joined."""

    def __init__(self) -> None:
        self.machine = SeenShards(HASH, 1, 0)
        self.now_s = 100.0
        self.members: set[str] = set()

    def see(self, one: DiscoveredShard, key: str = "") -> None:
        assert self.happen(ShardSeen(key or one.name, one)) == []

    def happen(self, event: Event) -> list[InviteShard]:
        return self.machine.handle(event, self.now_s)

    def wait(self, seconds: float) -> list[InviteShard]:
        self.now_s += seconds
        return self.happen(MembersKnown(frozenset(self.members)))

    def listed(self) -> dict[str, tuple[SeenPhase, str]]:
        return {seen.shard.name: (seen.phase, seen.reason) for seen in self.machine.listed(self.members)}


def test_a_shard_that_looks_is_called_and_not_listed_at_once() -> None:
    network = Network()
    network.see(shard())
    assert network.wait(INVITE_AFTER_S / 2) == []
    assert network.wait(INVITE_AFTER_S) == [InviteShard("b", shard())]
    assert network.listed() == {}
    network.happen(InviteAccepted("b"))
    network.members.add("id-b")
    assert network.wait(LISTED_AFTER_S) == []
    assert network.listed() == {}


def test_one_that_joins_by_itself_is_not_called() -> None:
    network = Network()
    network.members.add("id-b")
    network.see(shard())
    assert network.wait(LONGEST_PAUSE_S) == []
    assert network.listed() == {}


def test_one_that_does_not_answer_is_called_after_longer_and_longer_pauses_and_listed_with_the_reason() -> None:
    network = Network()
    network.see(shard())
    for pause_s in (INVITE_AFTER_S, 2, 4, 8, 16, 32, LONGEST_PAUSE_S, LONGEST_PAUSE_S):
        assert network.wait(pause_s * 0.99) == []
        assert network.wait(pause_s * 0.02) == [InviteShard("b", shard())]
        assert network.wait(1000) == [], "the call is under way"
        network.happen(InviteFailed("b", "it does not answer"))
    assert network.listed() == {"b": (SeenPhase.UNREACHABLE, "it does not answer")}
    assert network.machine.listed(network.members)[0].since_s == 100.0


def test_one_that_accepts_and_does_not_join_is_called_again() -> None:
    network = Network()
    network.see(shard())
    assert len(network.wait(INVITE_AFTER_S)) == 1
    network.happen(InviteAccepted("b"))
    assert len(network.wait(FIRST_PAUSE_S)) == 1
    network.happen(InviteAccepted("b"))
    assert network.wait(FIRST_PAUSE_S) == []
    assert network.listed()["b"][0] is SeenPhase.INVITED


def test_one_that_has_just_become_a_member_is_not_listed_any_more() -> None:
    network = Network()
    network.see(shard())
    network.wait(INVITE_AFTER_S)
    network.happen(InviteFailed("b", "it does not answer"))
    network.wait(LISTED_AFTER_S)
    assert "b" in network.listed()
    network.members.add("id-b")
    assert network.listed() == {}, "though no tick has compared it with the members yet"


def test_a_refusal_is_told_in_its_own_words() -> None:
    network = Network()
    network.see(shard())
    network.wait(INVITE_AFTER_S)
    network.happen(InviteRefused("b", "it was told to join 10.0.0.9:7117"))
    network.wait(LISTED_AFTER_S)
    assert network.listed() == {"b": (SeenPhase.REFUSED, "it was told to join 10.0.0.9:7117")}


def test_a_shard_that_comes_back_with_another_address_is_as_new() -> None:
    network = Network()
    network.see(shard())
    for _ in range(6):
        assert len(network.wait(LONGEST_PAUSE_S)) == 1
        network.happen(InviteFailed("b", "it does not answer"))
    moved = shard(addresses=("10.0.0.77:4000",))
    network.see(moved)
    assert network.wait(FIRST_PAUSE_S) == [InviteShard("b", moved)]


def test_a_record_that_keeps_changing_gives_no_more_calls() -> None:
    network = Network()
    num_calls = 0
    for number in range(200):
        network.see(shard(addresses=(f"10.0.0.{number}:4000",)))
        calls = network.wait(0.3)
        num_calls += len(calls)
        if calls:
            network.happen(InviteFailed("b", "it does not answer"))
    assert 1 <= num_calls <= 200 * 0.3 / FIRST_PAUSE_S + 1


def test_a_member_that_is_lost_is_called() -> None:
    network = Network()
    network.members.add("id-b")
    network.see(shard(state=ShardState.JOINED))
    network.wait(100)
    network.members.clear()
    assert network.wait(0.1) == []
    assert network.wait(JOINED_ELSEWHERE_AFTER_S * 0.9) == []
    network.see(shard(state=ShardState.LOOKING))
    assert network.wait(INVITE_AFTER_S) == [InviteShard("b", shard())]


def test_one_that_says_that_it_has_joined_is_asked_after_a_while() -> None:
    network = Network()
    network.see(shard(state=ShardState.JOINED))
    assert network.wait(JOINED_ELSEWHERE_AFTER_S * 0.9) == []
    assert network.listed() == {}
    assert len(network.wait(JOINED_ELSEWHERE_AFTER_S * 0.2)) == 1


def test_other_clusters_and_protocols_are_not_called() -> None:
    network = Network()
    network.see(shard("looks", cluster_hash=OTHER_HASH))
    network.see(shard("belongs", cluster_hash=OTHER_HASH, state=ShardState.JOINED))
    network.see(shard("old", protocol="0.9"))
    assert network.wait(LISTED_AFTER_S) == []
    listed = network.listed()
    assert {name: phase for name, (phase, _) in listed.items()} == {"looks": SeenPhase.OTHER_CLUSTER, "old": SeenPhase.OTHER_PROTOCOL}
    assert OTHER_HASH in listed["looks"][1]
    assert "0.9" in listed["old"][1]


def test_one_that_is_gone_is_forgotten_and_what_comes_of_its_call_ignored() -> None:
    network = Network()
    network.see(shard())
    network.wait(INVITE_AFTER_S)
    network.happen(ShardGone("b"))
    network.happen(InviteFailed("b", "it does not answer"))
    assert network.wait(LONGEST_PAUSE_S) == []
    assert network.listed() == {}


def test_records_that_mean_nothing_do_not_keep_out_those_that_do() -> None:
    network = Network()
    for number in range(MAX_SEEN * 2):
        network.see(shard(f"x{number}", cluster_hash=OTHER_HASH))
    network.see(shard())
    assert network.wait(INVITE_AFTER_S) == [InviteShard("b", shard())]
    network.wait(LISTED_AFTER_S)
    assert len(network.listed()) == MAX_SEEN


KEYS = st.sampled_from(["a", "b", "c", "d", "e", "f"])
RECORDS = st.builds(
    lambda name, cluster, protocol, state, port: shard(
        name, cluster_hash=cluster, protocol=protocol, state=state, addresses=(f"10.0.0.2:{port}",)
    ),
    KEYS,
    st.sampled_from([HASH, HASH, OTHER_HASH]),
    st.sampled_from(["1.0", "1.7", "2.0"]),
    st.sampled_from(ShardState),
    st.integers(1, 3),
)
STEPS = st.one_of(
    st.builds(ShardSeen, KEYS, RECORDS),
    st.builds(ShardGone, KEYS),
    st.builds(InviteAccepted, KEYS),
    st.builds(InviteFailed, KEYS, st.just("silent")),
    st.builds(InviteRefused, KEYS, st.just("no")),
    st.builds(MembersKnown, st.frozensets(KEYS.map(lambda name: f"id-{name}"))),
)


@given(st.lists(st.tuples(st.floats(0, 20), STEPS), max_size=60))
def test_whatever_happens_calls_are_few_and_members_left_alone(history: list[tuple[float, Event]]) -> None:
    machine, now_s = SeenShards(HASH, 1, 0), 0.0
    under_way: dict[str, float] = {}
    last_s: dict[str, float] = {}
    for passed_s, event in history:
        now_s += passed_s
        if isinstance(event, ShardGone | InviteAccepted | InviteFailed | InviteRefused):
            under_way.pop(event.key, None)
        if isinstance(event, ShardGone):
            last_s.pop(event.key, None)
        calls = machine.handle(event, now_s)
        for call in calls:
            assert isinstance(event, MembersKnown)
            assert call.key not in under_way
            assert call.shard.cluster_hash == HASH
            assert call.shard.protocol.startswith("1.")
            assert call.shard.shard_id not in event.member_ids
            assert now_s - last_s.get(call.key, -100.0) >= FIRST_PAUSE_S
            under_way[call.key] = last_s[call.key] = now_s
        assert len(under_way) <= MAX_CALLS
        if isinstance(event, MembersKnown):
            assert not {seen.shard.shard_id for seen in machine.listed(())} & event.member_ids
