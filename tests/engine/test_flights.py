"""Frames on their way: when one is overdue, and what is measured when it comes back."""

import pytest

from dairllm.coordinator.engine.flights import FIRST_FRAME_LIMIT_S, FRAME_PATIENCE, LEAST_FRAME_LIMIT_S, Flights
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, RingId, SequenceResult, SequenceSlice, StageTiming, TokenScore


def batch(batch_id: int, slices: tuple[SequenceSlice, ...] = ()) -> MicroBatch:
    return MicroBatch(epoch=1, batch_id=batch_id, encoding="F32", begins=(), slices=slices, ends=())


def result(batch_id: int) -> MicroBatchResult:
    return MicroBatchResult(epoch=1, batch_id=batch_id, results=(), timings=())


@pytest.mark.parametrize("took_s", [0.1, 1.0])
def test_a_frame_may_take_much_longer_than_the_slowest_that_came_back(took_s: float) -> None:
    flights = Flights()
    flights.send(batch(1), 0.0)
    assert flights.overdue_s(FIRST_FRAME_LIMIT_S) is None
    assert flights.overdue_s(FIRST_FRAME_LIMIT_S + 1) == FIRST_FRAME_LIMIT_S + 1
    assert flights.come_back(result(1), took_s) == took_s
    flights.send(batch(2), 10.0)
    limit_s = max(LEAST_FRAME_LIMIT_S, FRAME_PATIENCE * took_s)
    assert flights.overdue_s(10.0 + limit_s) is None
    assert flights.overdue_s(11.0 + limit_s) == pytest.approx(limit_s + 1)


def test_what_was_given_up_is_not_waited_for_and_counts_no_more() -> None:
    flights = Flights()
    flights.send(batch(1), 0.0)
    flights.give_up()
    assert flights.overdue_s(1e6) is None
    assert flights.come_back(result(1), 1.0) is None


def test_steps_that_only_decode_are_measured_with_their_rows() -> None:
    flights = Flights()
    assert flights.decode_steps() == {}
    rows = tuple(SequenceSlice(RingId(number), 5, (1,), (), True) for number in range(3))
    prompt = SequenceSlice(RingId(9), 0, (1, 2), (), True)
    timings = (StageTiming("A", 0, 20_000, 0, 3, 0),)
    results = tuple(SequenceResult(slice_.sequence_id, (TokenScore(7, -1.0),)) for slice_ in rows)
    flights.send(batch(1, rows), 0.0)
    assert flights.come_back(MicroBatchResult(epoch=1, batch_id=1, results=results, timings=timings), 0.5)
    flights.send(batch(2, (*rows, prompt)), 1.0)
    assert flights.come_back(MicroBatchResult(epoch=1, batch_id=2, results=results, timings=timings), 9.0)
    flights.send(batch(3, rows), 10.0)
    assert flights.come_back(MicroBatchResult(epoch=1, batch_id=3, results=results[1:], timings=()), 19.0), "one rested on a wrong guess"
    assert flights.decode_steps() == {"A": (0.02, 3.0), None: (0.5, 3.0)}
