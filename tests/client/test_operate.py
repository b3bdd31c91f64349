"""`dairllm drain`, `cordon`, `uncordon`, `set` and `events` against a coordinator that does what the test says."""

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.client.events import event_line, new_events
from dairllm.client.operate import describe_departure
from dairllm.mesh.errors import InvalidRequest, NotEnoughMemory
from dairllm.v1 import cluster_pb2
from tests.client.fake_cluster import FakeCluster
from tests.instruments.commands import RunDairllm

GIB = 1024**3


def state(*shards: cluster_pb2.ShardState, events: Sequence[cluster_pb2.ClusterEvent] = ()) -> cluster_pb2.ClusterState:
    return cluster_pb2.ClusterState(model="m", num_layers=10, shards=shards, events=events, phase=cluster_pb2.CLUSTER_PHASE_SERVING)


def shard(name: str, first: int = 0, end: int = 0, **fields: object) -> cluster_pb2.ShardState:
    stage = {"stage": 0} if end else {}
    return cluster_pb2.ShardState(name=name, first_unit=first, end_unit=end, **stage, **fields)  # type: ignore[arg-type]


def loading(name: str, done: int, total: int) -> cluster_pb2.ShardState:
    load = cluster_pb2.LoadProgress(loaded_bytes=done, total_bytes=total)
    return shard(name, 6, 12, phase=cluster_pb2.SHARD_PHASE_LOADING, load=load)


def event(number: int, text: str = "shard b has joined", kind: str = "shard_joined", duration_s: float = 0.0) -> cluster_pb2.ClusterEvent:
    return cluster_pb2.ClusterEvent(number=number + 1, time_s=1.0 + number, kind=kind, shard="b", text=text, duration_s=duration_s)


DEPARTURE = [
    state(shard("a", 6, 12), shard("b", 0, 6)),
    state(loading("a", 1, 4), shard("b", 0, 6)),
    state(shard("a", 0, 12), shard("b")),
    state(shard("a", 0, 12)),
]


def test_drain_follows_the_shard_until_it_is_gone(dairllm: RunDairllm) -> None:
    with FakeCluster(DEPARTURE, stays=True) as cluster:
        result = dairllm("drain", "b", "--coordinator", cluster.address)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        "b still computes embedding, layers 0-4",
        "b still computes embedding, layers 0-4; loading: a 25%",
        "b has handed over its layers",
    ]
    assert result.stdout.startswith("b has left the cluster after ")
    assert cluster.requests == [cluster_pb2.DrainShardRequest(name="b")]


def test_drain_by_force_says_so(dairllm: RunDairllm) -> None:
    with FakeCluster(DEPARTURE[3:]) as cluster:
        assert dairllm("drain", "b", "--force", "--coordinator", cluster.address).returncode == 0
    assert cluster.requests == [cluster_pb2.DrainShardRequest(name="b", force=True)]


def test_drain_ends_when_the_shard_does_not(dairllm: RunDairllm) -> None:
    with FakeCluster(DEPARTURE[:1], stays=True) as cluster:
        result = dairllm("drain", "b", "--timeout", "0.5", "--coordinator", cluster.address)
    assert result.returncode == 2
    assert "'b' has not left within 0.5 s" in result.stderr.splitlines()[-1]


def test_drain_that_loses_the_coordinator_does_not_claim_success(dairllm: RunDairllm) -> None:
    with FakeCluster(DEPARTURE[:1]) as cluster:
        result = dairllm("drain", "b", "--coordinator", cluster.address)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "'b'" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (("cordon", "b"), cluster_pb2.CordonShardRequest(name="b", cordoned=True)),
        (("cordon", "b", "--force"), cluster_pb2.CordonShardRequest(name="b", cordoned=True, force=True)),
        (("uncordon", "b"), cluster_pb2.CordonShardRequest(name="b", cordoned=False)),
        (("set", "b", "--memory", "2GiB"), cluster_pb2.ConfigureShardRequest(name="b", memory_budget_bytes=2 * GIB)),
        (
            ("set", "b", "--memory", "1g", "--force"),
            cluster_pb2.ConfigureShardRequest(name="b", memory_budget_bytes=GIB, force=True),
        ),
        (("set", "b", "--threads", "3"), cluster_pb2.ConfigureShardRequest(name="b", num_threads=3)),
        (
            ("set", "b", "--memory", "1g", "--threads", "1"),
            cluster_pb2.ConfigureShardRequest(name="b", memory_budget_bytes=GIB, num_threads=1),
        ),
    ],
)
def test_what_is_asked_for(dairllm: RunDairllm, arguments: tuple[str, ...], request_: object) -> None:
    with FakeCluster() as cluster:
        result = dairllm(*arguments, "--coordinator", cluster.address)
    assert (result.returncode, result.stderr) == (0, "")
    assert "b" in result.stdout
    assert cluster.requests == [request_]


def test_the_limits_that_are_in_force_are_said(dairllm: RunDairllm) -> None:
    with FakeCluster() as cluster:
        result = dairllm("set", "b", "--threads", "3", "--coordinator", cluster.address)
    assert result.stdout == "b uses at most 2 GiB of memory and 3 threads\n"


@pytest.mark.parametrize("arguments", [("drain", "b"), ("cordon", "b"), ("uncordon", "b"), ("set", "b", "--threads", "2")])
@pytest.mark.parametrize("refusal", [NotEnoughMemory("without 'b' 1.2 GiB are missing"), InvalidRequest("no shard is named 'b'")])
def test_refusals_are_one_sentence(dairllm: RunDairllm, arguments: tuple[str, ...], refusal: NotEnoughMemory | InvalidRequest) -> None:
    with FakeCluster(DEPARTURE, refusal=refusal) as cluster:
        result = dairllm(*arguments, "--coordinator", cluster.address)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith(f": {refusal.message}\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "b"), "--memory"),
        (("set", "b", "--memory", "much"), "much"),
        (("set", "b", "--threads", "0"), "threads"),
        (("drain",), "NAME"),
    ],
)
def test_mistakes_reach_no_coordinator(dairllm: RunDairllm, arguments: tuple[str, ...], words: str) -> None:
    with FakeCluster() as cluster:
        result = dairllm(*arguments, "--coordinator", cluster.address)
    assert result.returncode == 2
    assert words in result.stderr
    assert cluster.requests == []


def test_set_takes_no_limits_that_were_meant_for_this_machine(clean_environment: dict[str, str]) -> None:
    environment = clean_environment | {"DAIRLLM_MEMORY": "7GiB"}
    with FakeCluster() as cluster:
        command = [sys.executable, "-m", "dairllm.client.cli", "set", "b", "--threads", "2", "--coordinator", cluster.address]
        subprocess.run(command, env=environment, timeout=60, check=True, capture_output=True)
    assert cluster.requests == [cluster_pb2.ConfigureShardRequest(name="b", num_threads=2)]


def test_the_note_of_a_shard_that_leaves_is_shown() -> None:
    leaving = shard("b", 0, 6, note="waits for its answers")
    assert describe_departure(state(leaving), leaving) == "b still computes embedding, layers 0-4; waits for its answers"


def test_events_are_shown_once_in_their_order(dairllm: RunDairllm) -> None:
    states = [state(events=[event(0), event(1)]), state(events=[event(1), event(2, "answers recovered", "recovered", 0.42)])]
    with FakeCluster(states) as cluster:
        now = dairllm("events", "--coordinator", cluster.address)
        followed = dairllm("events", "--follow", "--json", "--coordinator", cluster.address)
    assert [line.split("  ", 1)[1] for line in now.stdout.splitlines()] == ["shard b has joined"] * 2
    shown = [json.loads(line) for line in followed.stdout.splitlines()]
    assert [one["time"] for one in shown] == [f"1970-01-01T00:00:0{second}.000+00:00" for second in (1, 2, 3)]
    assert shown[-1] == {
        "time": "1970-01-01T00:00:03.000+00:00",
        "kind": "recovered",
        "shard": "b",
        "text": "answers recovered",
        "duration_s": 0.42,
        "number": 3,
        "times": 0,
    }


def test_a_shard_that_was_lost_is_shown_with_what_it_computed(dairllm: RunDairllm) -> None:
    lost = cluster_pb2.LostShard(name="attic", reason="is lost: nothing was heard of it", first_unit=4, end_unit=8, since_time_s=1.0)
    with FakeCluster([cluster_pb2.ClusterState(model="m", num_layers=10, lost=[lost])]) as cluster:
        lines = dairllm("status", "--coordinator", cluster.address).stdout.splitlines()
    line = lines[lines.index("lost:") + 1]
    assert line.startswith("  attic is lost: nothing was heard of it, at ")
    assert line.endswith("; it computed layers 3-6")


def test_status_lists_machines_that_are_no_members_with_the_reason(dairllm: RunDairllm) -> None:
    seen = cluster_pb2.SeenShard(name="attic", addresses=["10.0.0.7:4000"], reason="it does not answer the call", since_time_s=1.0)
    with FakeCluster([cluster_pb2.ClusterState(model="m", seen=[seen])]) as cluster:
        lines = dairllm("status", "--coordinator", cluster.address).stdout.splitlines()
    line = lines[lines.index("seen, but no members:") + 1]
    assert line.startswith("  attic at 10.0.0.7:4000, since ")
    assert line.endswith(": it does not answer the call")


def test_status_ends_with_recent_events(dairllm: RunDairllm) -> None:
    with FakeCluster([state(events=[event(number, f"event {number}") for number in range(9)])]) as cluster:
        lines = dairllm("status", "--coordinator", cluster.address).stdout.splitlines()
    assert [line.split("  ", 1)[1].strip() for line in lines[-5:]] == [f"event {number}" for number in range(4, 9)]


def test_how_often_it_happened_stands_behind_the_event() -> None:
    repeated = cluster_pb2.ClusterEvent(kind="refused", text="a shard was refused", times=120)
    assert event_line(repeated).plain.endswith("a shard was refused  (120 times)")


def test_durations_stand_behind_the_event() -> None:
    assert event_line(event(0, "recovered 8 answers", duration_s=0.42)).plain.endswith("recovered 8 answers  (0.42 s)")


@given(st.integers(0, 30), st.integers(1, 8), st.lists(st.integers(0, 6), max_size=6))
def test_followed_events_are_all_of_them_while_lists_overlap(start: int, kept: int, steps: list[int]) -> None:
    """Lists hold the latest `kept` of a growing history; what was never in a list can't be shown."""
    history = [event(number) for number in range(80)]
    ends = [start]
    for step in steps:
        ends.append(ends[-1] + step)
    shown = list(new_events(history[max(0, end - kept) : end] for end in ends))
    times = [one.time_s for one in shown]
    assert times == sorted(set(times))
    if all(step <= kept for step in steps):
        assert shown == history[max(0, start - kept) : ends[-1]]
