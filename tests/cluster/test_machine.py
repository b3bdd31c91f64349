"""The cluster machine under random events, and what scenarios do not show."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.coordinator.cluster.actions import ActivateStage, AdmitShard, AssignUnits, OpenRing, RefuseShard, TellEvent
from dairllm.coordinator.cluster.events import (
    AnswersRecovered,
    CordonRequested,
    HeartbeatReceived,
    JoinRequested,
    LeaseBroken,
    ModelRegistered,
    RingBroken,
    RingOpened,
    StageActivated,
    StageLoaded,
    StageLoadFailed,
    StepMeasured,
    TimePassed,
)
from dairllm.coordinator.cluster.identities import Epoch, LeaseId
from dairllm.coordinator.cluster.phases import Phase
from dairllm.coordinator.cluster.shard_reports import ShardUsage
from dairllm.mesh.errors import InvalidRequest
from tests.cluster.scenario import Cluster, Scenario, hello
from tests.instruments.descriptions import demand_of

GIB = 1 << 30
MODEL = demand_of("toy", b"\1", (0, GIB, GIB, GIB, GIB, GIB // 2), kv_per_token=1 << 10)
NAMES = ["A", "B", "C", "D", "E"]
names = st.sampled_from(NAMES)
memories = st.sampled_from(["1GiB", "2049MiB", "3GiB", "6GiB"])
speeds = st.sampled_from([0, 5, 20, 60])
held = st.sampled_from(["", "0..2", "3..5", "0..5"])
epochs = st.sampled_from(["epoch=-0", "epoch=-1", "epoch=-2"])


def cluster_with_model(**settings_: float) -> Cluster:
    cluster = Cluster(**settings_)
    cluster.happen(ModelRegistered(MODEL))
    return cluster


def lines(*words: st.SearchStrategy[Any] | str) -> st.SearchStrategy[str]:
    return st.tuples(*(st.just(word) if isinstance(word, str) else word for word in words)).map(lambda line: " ".join(map(str, line)))


joining = st.builds("memory={} speed={} boot={} held={}".format, memories, speeds, st.integers(1, 4), held)
commands = st.one_of(
    lines("join", names, joining),
    lines(st.sampled_from(["lost", "leave", "silence", "stale"]), names),
    lines("loaded", names, epochs),
    lines("progress", names, st.sampled_from(["0%", "50%", "100%"]), epochs),
    lines("failed", names, "no", st.sampled_from(["", "retryable", "exclusive"]), epochs),
    lines("edge", names, names, st.sampled_from(["", "silent"]), epochs),
    lines("accuse", names, names, "no", epochs),
    lines("fault", names, "no", st.sampled_from(["", "believed"])),
    lines("activated", names, st.sampled_from(["", "transferred=1..4"]), epochs),
    lines(st.sampled_from(["opened", "drained", "broken reset", "step 0.1"]), epochs),
    st.builds("steps {}={} 12s".format, names, st.sampled_from([0.01, 3.0])),
    lines(st.sampled_from(["leaving", "drain", "cordon", "uncordon"]), names),
    lines(st.sampled_from(["drain", "cordon"]), names, "force"),
    st.builds("configure {} memory={}".format, names, memories),
    st.sampled_from(["loaded", "switched", "idle", "busy", "work"]),
    st.builds("tick {}s".format, st.sampled_from([0.25, 0.5, 1.0, 3.0, 6.0, 61.0])),
    st.builds("standstill {}s".format, st.sampled_from([3.0, 100.0])),
)


def scenario_with_model(**settings_: int) -> Scenario:
    scenario = Scenario()
    scenario.run(" ".join(["config", *(f"{name}={value}" for name, value in settings_.items())]))
    scenario.cluster.happen(ModelRegistered(MODEL))
    return scenario


def play(scenario: Scenario, line: str) -> None:
    """One random command of a scenario, if it can happen now: a connection that is not there can't end."""
    command, name = [*line.split(), ""][:2]
    if command in ("lost", "leave", "configure") and name not in scenario.cluster.streams:
        return
    if command == "opened" and scenario.cluster.open_epoch is None:
        return
    scenario.run(line)


@settings(deadline=None, max_examples=60)
@given(st.lists(commands, max_size=30), st.integers(1, 3))
def test_any_events_keep_the_invariants_and_enough_living_shards_end_up_serving(history: list[str], min_shards: int) -> None:
    scenario = scenario_with_model(min_shards=min_shards)
    cluster = scenario.cluster
    for line in history:
        play(scenario, line)
    cluster.silent |= set(cluster.streams)
    cluster.tick(6.0)
    assert not cluster.streams, "who is silent is no member any more"
    for name in NAMES[:3]:
        cluster.join(hello(name, memory=3 * GIB, boot="final"))
        cluster.happen(CordonRequested(name, False))
    for _ in range(40):
        cluster.tick(0.5)
        cluster.work()
    assert cluster.machine.phase is Phase.SERVING, cluster.machine.reason


@settings(deadline=None, max_examples=40)
@given(st.lists(commands, max_size=25))
def test_equal_events_give_equal_actions(history: list[str]) -> None:
    transcripts = []
    for _ in range(2):
        scenario = scenario_with_model()
        for line in history:
            play(scenario, line)
        transcripts.append([event.text for event in scenario.cluster.machine.snapshot(scenario.cluster.now_s).events])
    assert transcripts[0] == transcripts[1]


def serving_pair() -> Cluster:
    cluster = cluster_with_model()
    for name in "AB":
        cluster.join(hello(name, memory=3 * GIB))
    cluster.tick(0.5)
    cluster.work()
    assert cluster.machine.phase is Phase.SERVING
    return cluster


def stand_still(cluster: Cluster) -> Phase:
    """Nothing happens for an hour, not even that time passes; then it does."""
    cluster.now_s += 3600
    cluster.happen(TimePassed())
    return cluster.machine.phase


def test_a_standstill_of_the_coordinator_costs_no_lease() -> None:
    cluster = serving_pair()
    assert stand_still(cluster) is Phase.SERVING
    assert set(cluster.streams) == {"A", "B"}
    cluster.silent.add("A")
    cluster.tick(4.25)
    assert set(cluster.streams) == {"A", "B"}
    cluster.tick(0.5)
    assert set(cluster.streams) == {"B"}, "the next silence counts"


def test_no_deadline_passes_while_the_coordinator_stands_still() -> None:
    """In every phase on the way from a broken ring to the next, and to a better plan, it is suspended for an hour."""
    cluster = serving_pair()
    cluster.happen(RingBroken(Epoch(1), "reset"))
    assert stand_still(cluster) is Phase.RETRYING
    cluster.tick(0.5)
    assert stand_still(cluster) is Phase.LOADING
    cluster.load()
    assert stand_still(cluster) is Phase.ACTIVATING
    for name in "AB":
        cluster.activated(name)
    assert stand_still(cluster) is Phase.OPENING
    cluster.happen(RingOpened(Epoch(2)))
    cluster.join(hello("C", memory=6 * GIB, speed=60))
    cluster.tick(0.5)
    assert stand_still(cluster) is Phase.PREPARING
    cluster.load()
    assert stand_still(cluster) is Phase.DRAINING
    cluster.switched()
    assert cluster.machine.phase is Phase.SERVING
    assert cluster.plan.placement == {"C": range(6)}


def test_records_bear_the_time_of_the_clock_and_silence_is_counted_without_the_standstill() -> None:
    cluster = serving_pair()
    cluster.silent.add("A")
    cluster.tick(1.0)
    stand_still(cluster)
    cluster.happen(RingBroken(Epoch(1), "reset"))
    snapshot = cluster.machine.snapshot(cluster.now_s)
    assert snapshot.events[-1].time_s == cluster.now_s == pytest.approx(3601.5)
    assert {shard.name: shard.last_seen_s for shard in snapshot.shards} == pytest.approx({"A": 1.0, "B": 0.0})


def test_the_epoch_does_not_fall_back_when_a_plan_cannot_be_loaded() -> None:
    cluster = serving_pair()
    cluster.happen(RingBroken(Epoch(1), "reset"))
    for _ in range(3):
        cluster.tick(1.0)
        cluster.happen(StageLoadFailed("A", "1", Epoch(2), "the disk is full", True))
    assert (cluster.machine.phase, cluster.machine.epoch) == (Phase.RETRYING, 2)


def test_the_end_of_a_replaced_stream_does_not_end_the_new_lease() -> None:
    cluster = serving_pair()
    boot, old = cluster.streams["A"]
    cluster.join(hello("A", memory=3 * GIB))
    assert cluster.happen(LeaseBroken("A", boot, old, "replaced")) == []
    assert cluster.machine.phase is Phase.SERVING


@pytest.mark.parametrize(("round_trips_ms", "hop_s"), [((400, 900, 900, 900), 0.0005), ((900, 900, 400, 900, 900), 0.2)])
def test_the_least_of_five_round_trips_sets_the_cost_of_the_hop(round_trips_ms: tuple[int, ...], hop_s: float) -> None:
    cluster = cluster_with_model()
    cluster.join(hello("A", memory=6 * GIB))
    for milliseconds in round_trips_ms:
        cluster.happen(HeartbeatReceived("A", "1", ShardUsage(), 1000 * milliseconds))
    cluster.tick(0.5)
    compute_s = 4.5 * GIB / 20e9
    assert cluster.plan.predicted_step_s == pytest.approx(hop_s + compute_s)


def test_the_last_stage_answers_to_the_coordinator_and_the_others_to_the_next() -> None:
    cluster = serving_pair()
    first, last = cluster.assigned["A"], cluster.assigned["B"]
    assert first.next is not None
    assert (first.next.name, first.next.addresses) == ("B", ("B:7000",))
    assert last.next is None
    assert (first.context_length, first.kv_block_tokens, first.max_batch_rows) == (64, 32, 512)
    assert first.num_kv_blocks == last.num_kv_blocks


def test_the_context_is_the_smaller_of_setting_and_model() -> None:
    for setting, expected in ((32, 32), (4096, 64)):
        cluster = cluster_with_model(context_length=setting)
        cluster.join(hello("A", memory=6 * GIB))
        cluster.tick(0.5)
        assert cluster.assigned["A"].context_length == expected


def test_another_model_closes_the_ring_and_is_planned() -> None:
    cluster = serving_pair()
    cluster.happen(ModelRegistered(MODEL))
    assert cluster.open_epoch is None
    cluster.tick(0.5)
    cluster.work()
    assert cluster.machine.epoch == 2
    assert cluster.machine.phase is Phase.SERVING


def test_another_model_is_not_compared_with_the_one_before() -> None:
    cluster = serving_pair()
    sizes = (0, *(GIB // 2 for _ in range(9)), 0)
    cluster.happen(ModelRegistered(demand_of("toy", b"\2", sizes, kv_per_token=1 << 10, context=1024)))
    cluster.tick(0.5)
    cluster.load()
    opened = [action for action in cluster.switched() if isinstance(action, OpenRing)]
    assert [ring.intact_blocks for ring in opened] == [1024 // 32]
    assert "moved" not in cluster.machine.snapshot(cluster.now_s).events[-1].text


def test_without_a_model_shards_join_and_wait() -> None:
    cluster = Cluster()
    assert any(isinstance(action, AdmitShard) for action in cluster.join(hello("A")))
    cluster.tick(1)
    assert cluster.machine.snapshot(cluster.now_s).reason == "no model is registered yet"
    cluster.happen(ModelRegistered(MODEL))
    assert any(isinstance(action, AssignUnits) for action in cluster.tick(0.5))


def test_measured_steps_are_averaged_and_forgotten_with_the_plan() -> None:
    cluster = serving_pair()
    for step_s in (0.1, 0.2):
        cluster.happen(StepMeasured(Epoch(1), None, step_s))
        cluster.happen(StepMeasured(Epoch(1), "B", step_s / 2))
    state = cluster.machine.snapshot(cluster.now_s)
    assert state.measured_decode_tok_s == pytest.approx(1 / 0.11)
    assert [shard.measured_step_s for shard in state.shards] == pytest.approx([0, 0.055])
    cluster.happen(RingBroken(Epoch(1), "reset"))
    cluster.tick(0.5)
    assert cluster.machine.snapshot(cluster.now_s).measured_decode_tok_s == 0


def test_answers_that_go_on_are_no_recovery() -> None:
    """They do after a planned switch, too."""
    cluster = Cluster()
    cluster.happen(AnswersRecovered(num_kept=2, num_replayed=0, num_restarted=0, share=0.0, duration_s=0.1))
    assert [event.kind for event in cluster.machine.snapshot(0.0).events if "went on" in event.text] == ["resumed"]


def test_the_same_refusal_is_one_record() -> None:
    cluster = Cluster()
    for _ in range(10):
        cluster.join(hello("A", cluster="office"))
    (refusal,) = [event for event in cluster.machine.snapshot(0.0).events if event.kind == "refused"]
    assert refusal.times == 10


def test_a_lost_shard_stays_in_sight_until_it_is_back_or_for_ten_minutes() -> None:
    cluster = Cluster()
    cluster.join(hello("A"))
    cluster.join(hello("B"))
    for name in ("A", "B"):
        cluster.lost(name)
    lost = cluster.machine.snapshot(cluster.now_s).lost
    assert [(one.hello.name, one.reason, one.since_s) for one in lost] == [
        ("B", "is lost: its connection broke: connection reset", cluster.now_s),
        ("A", "is lost: its connection broke: connection reset", cluster.now_s),
    ]
    cluster.join(hello("A"))
    assert [one.hello.name for one in cluster.machine.snapshot(cluster.now_s).lost] == ["B"]
    for _ in range(3):
        cluster.tick(250.0)
    assert cluster.machine.snapshot(cluster.now_s).lost == ()


@pytest.mark.parametrize(
    ("facts", "param"),
    [
        ({"name": "x" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "A", "boot": ""}, "boot_id"),
        ({"name": "A", "addresses": ()}, "addresses"),
        ({"name": "A", "memory": 0}, "memory_budget_bytes"),
        ({"name": "A", "memory": 1 << 60}, "memory_budget_bytes"),
        ({"name": "A", "reserved": -1}, "reserved_bytes"),
        ({"name": "A", "speed": -1.0}, "decode_s_per_byte"),
        ({"name": "A", "speed": float("nan")}, "decode_s_per_byte"),
    ],
)
def test_a_malformed_hello_is_refused_and_names_the_field(facts: dict[str, Any], param: str) -> None:
    (refusal, told) = Cluster().join(hello(**facts))
    assert isinstance(refusal, RefuseShard)
    assert isinstance(refusal.error, InvalidRequest)
    assert refusal.error.param == param
    assert isinstance(told, TellEvent)
    assert "\n" not in told.event.text


def test_a_thousand_shards_join_and_a_hundred_fail_in_simulated_time() -> None:
    cluster = Cluster()
    cluster.happen(ModelRegistered(demand_of("large", b"\2", (GIB,) * 82)))
    machine = cluster.machine
    for i in range(1000):
        machine.handle(JoinRequested(LeaseId(i), hello(f"s{i:04}", memory=4 * GIB)), 0.0)
    opened = 0
    actions = machine.handle(TimePassed(), 0.5)
    for _ in range(10):
        assigned = [action for action in actions if isinstance(action, AssignUnits)]
        actions = [a for one in assigned for a in machine.handle(StageLoaded(one.name, one.boot_id, one.epoch, 1, 1, 0.1), 0.6)]
        switching = [action for action in actions if isinstance(action, ActivateStage)]
        switched = [StageActivated(one.name, one.boot_id, one.epoch, frozenset(), 0, 0.01) for one in switching]
        actions = [a for event in switched for a in machine.handle(event, 0.6)]
        opened += sum(isinstance(action, OpenRing) for action in actions)
        machine.handle(RingOpened(machine.epoch), 0.6)
        lost = cluster.plan.stages[3]
        actions = machine.handle(LeaseBroken(lost.shard, "1", LeaseId(int(lost.shard[1:])), "gone"), 0.7)
        machine.check_invariants()
    assert opened == 10
