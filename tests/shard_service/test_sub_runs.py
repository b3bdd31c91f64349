"""Replays along a whole ring: every unit computes once, and rows are where they are needed."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.errors import MalformedFrame
from dairllm.mesh.ring.frames import Replay, RingId, SequenceSlice
from dairllm.shard_service.forward.sub_runs import PASSED_ON, Origin, SubRun, SubRunPlanner

NORMAL = SequenceSlice(RingId(1), 0, (0,), (), num_samples=0)


def replay(first: int, end: int, at: str = "", **changes: object) -> SequenceSlice:
    return replace(NORMAL, replay=Replay(first, end, at), **changes)  # type: ignore[arg-type]


@st.composite
def rings(draw: st.DrawFn) -> list[range]:
    num_units = draw(st.integers(3, 12))
    cuts = draw(st.sets(st.integers(1, num_units - 1), max_size=5))
    return [range(start, stop) for start, stop in pairwise(sorted({0, num_units} | cuts))]


@st.composite
def rings_with_replay(draw: st.DrawFn) -> tuple[list[range], SequenceSlice]:
    ring = draw(rings())
    num_units = ring[-1].stop
    first = draw(st.integers(0, num_units - 1))
    end = draw(st.integers(first + 1, num_units))
    holders = [index for index, span in enumerate(ring) if span.start <= first <= span.stop]
    return ring, replay(first, end, f"s{draw(st.sampled_from(holders))}" if first else "")


def runs_of(ring: list[range], slice_: SequenceSlice) -> list[SubRun]:
    return [SubRunPlanner(span, ring[-1].stop, f"s{index}").plan(slice_) for index, span in enumerate(ring)]


@given(rings_with_replay())
def test_a_replay_is_computed_once_by_its_units_and_no_others(example: tuple[list[range], SequenceSlice]) -> None:
    ring, slice_ = example
    runs = runs_of(ring, slice_)
    assert slice_.replay is not None
    assert [unit for run in runs for unit in run.units] == list(range(slice_.replay.first_unit, slice_.replay.end_unit))
    for span, run in zip(ring, runs, strict=True):
        assert set(run.units) <= set(span)


@given(rings_with_replay())
def test_rows_are_sent_exactly_to_where_they_are_expected(example: tuple[list[range], SequenceSlice]) -> None:
    ring, slice_ = example
    runs = runs_of(ring, slice_)
    assert not runs[-1].sends
    for run, following in pairwise(runs):
        assert run.sends == (following.origin is Origin.ACTIVATIONS)
    origins = [run.origin for run in runs if run.origin in (Origin.TOKENS, Origin.SENT_ROWS)]
    assert slice_.replay is not None
    assert origins == [Origin.SENT_ROWS if slice_.replay.first_unit else Origin.TOKENS]


@given(rings_with_replay())
def test_sent_rows_are_complete_wherever_the_replay_passed(example: tuple[list[range], SequenceSlice]) -> None:
    """As the coordinator reckons: boundaries behind the first unit, up to and with the end."""
    ring, slice_ = example
    kept = [span.stop for span, run in zip(ring, runs_of(ring, slice_), strict=True) if run.keeps]
    assert slice_.replay is not None
    assert kept == [span.stop for span in ring[:-1] if slice_.replay.first_unit < span.stop <= slice_.replay.end_unit]


@given(rings())
def test_a_slice_of_no_replay_passes_all_units(ring: list[range]) -> None:
    assert runs_of(ring, NORMAL) == runs_of(ring, replay(0, ring[-1].stop))
    assert runs_of(ring, replay(0, ring[-1].stop).with_lost_past()) == [PASSED_ON] * len(ring)


@pytest.mark.parametrize(
    ("slice_", "text"),
    [
        (replay(2, 2, "s"), "2 to 2"),
        (replay(0, 11), "0 to 11"),
        (replay(2, 4), "nobody"),
        (replay(0, 4, "s"), "'s'"),
        (replay(1, 4, "me"), "expected one of 2 to 5"),
        (replay(6, 8, "me"), "expected one of 2 to 5"),
        (replay(3, 8, "s"), "within this shard"),
        (replay(0, 4, num_samples=1), "tokens"),
    ],
)
def test_what_no_ring_could_compute_is_refused(slice_: SequenceSlice, text: str) -> None:
    with pytest.raises(MalformedFrame, match=text):
        SubRunPlanner(range(2, 5), 10, "me").plan(slice_)
