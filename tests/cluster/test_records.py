"""What has happened is kept for hours: repeated things are one record, and rare ones outlast frequent ones."""

from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.cluster.actions import ClusterEvent, EventKind
from dairllm.coordinator.cluster.books.records import MAX_RECORDS, Records


def speed(time_s: float, shard: str) -> ClusterEvent:
    return ClusterEvent(time_s, EventKind.SPEED_CHANGED, shard, f"shard {shard} computes at {time_s:.1f} GB/s")


def test_what_is_said_again_with_other_numbers_is_one_record() -> None:
    records = Records()
    for second in range(1000):
        records.add(speed(second, "ab"[second % 2]))
    kept = list(records)
    assert [(record.shard, record.times, record.time_s, record.number) for record in kept] == [("a", 500, 998, 999), ("b", 500, 999, 1000)]


def test_a_loss_is_seen_after_hours_of_restless_plans() -> None:
    records = Records()
    records.add(ClusterEvent(0.0, EventKind.LOST, "b", "shard b is lost"))
    for minute in range(24 * 60):
        records.add(speed(60.0 * minute, "a"))
        records.add(ClusterEvent(60.0 * minute, EventKind.PLAN, "", f"plan {minute}"))
        records.add(ClusterEvent(60.0 * minute, EventKind.SWITCHED, "", f"plan {minute} serves"))
    assert "shard b is lost" in {record.text for record in records}


@given(st.lists(st.tuples(st.sampled_from(EventKind), st.sampled_from("ab"), st.integers(0, 3)), max_size=500))
def test_records_are_bounded_ordered_and_numbered(told: list[tuple[EventKind, str, int]]) -> None:
    records = Records()
    for time_s, (kind, shard, number) in enumerate(told, 1):
        records.add(ClusterEvent(float(time_s), kind, shard, f"{kind} {number}"))
    kept = list(records)
    assert len(records) == len(kept) <= MAX_RECORDS
    assert [record.number for record in kept] == sorted({record.number for record in kept})
    assert [record.time_s for record in kept] == [float(record.number) for record in kept]
    assert not told or kept[-1].number == len(told)
