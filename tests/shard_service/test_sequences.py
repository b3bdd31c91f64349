"""What a frame must be to be computed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.kernels_pyx import WIRE_ENCODINGS
from dairllm.mesh.errors import MalformedFrame
from dairllm.mesh.ring.codec import micro_batch_from_proto, micro_batch_to_proto
from dairllm.mesh.ring.frames import MicroBatch, Replay, RingId, SequenceBegin, SequenceSlice
from dairllm.mesh.sampling import SamplingParams
from dairllm.shard_service.assignment import CacheGeometry
from dairllm.shard_service.forward.sampler import TokenHistory
from dairllm.shard_service.forward.sequences import SequenceTable
from tests.instruments.descriptions import spec_of

MODEL = spec_of(2, vocab_size=100)
GEOMETRY = CacheGeometry(num_blocks=8, block_tokens=4, context_length=20, max_batch_rows=10)


def begin(sequence_id: int = 1, **changes: object) -> SequenceBegin:
    return replace(SequenceBegin(RingId(sequence_id), 3, SamplingParams()), **changes)  # type: ignore[arg-type]


def slice_of(sequence_id: int = 1, first: int = 0, rows: int = 3, blocks: tuple[int, ...] = (0,), **changes: object) -> SequenceSlice:
    base = SequenceSlice(RingId(sequence_id), first, tuple(range(rows)), blocks, num_samples=1)
    return replace(base, **changes)  # type: ignore[arg-type]


def frame(begins: tuple[SequenceBegin, ...] = (), slices: tuple[SequenceSlice, ...] = (), ends: tuple[int, ...] = ()) -> MicroBatch:
    return MicroBatch(1, 1, "Q8_0", begins, slices, tuple(RingId(end) for end in ends), ())


def table_with_one() -> SequenceTable:
    """Sequence 1 is at position 3, with block 0."""
    table = SequenceTable(MODEL, GEOMETRY)
    table.advance(table.check(frame((begin(),), (slice_of(),))))
    return table


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (frame((begin(2), begin(2))), "begins twice"),
        (frame((begin(2, block_ids=(8,)),)), "cache block 8"),
        (frame((begin(2, block_ids=(1, 1)),)), "twice"),
        (frame((begin(2, token_ids=(100,)),)), "token 100"),
        (frame((begin(2, token_ids=tuple(range(21))),)), "21 tokens"),
        (frame((begin(2, sampling=SamplingParams(logit_bias={100: 1.0})),)), "100"),
        (frame(slices=(slice_of(2),)), "has not begun"),
        (frame(slices=(slice_of(first=3, rows=1), slice_of(first=4, rows=1))), "two slices"),
        (frame(slices=(slice_of(first=4, rows=1),)), "expected at most 3"),
        (frame(slices=(slice_of(first=3, rows=0),)), "without rows"),
        (frame(slices=(slice_of(first=3, rows=11, blocks=(1, 2, 3)),)), "11 rows"),
        (frame(slices=(slice_of(first=3, rows=2, blocks=()),)), "1 cache blocks"),
        (frame(slices=(slice_of(first=3, rows=2, blocks=(8,)),)), "cache block 8"),
        (frame(slices=(slice_of(first=3, rows=2, blocks=(0,)),)), "twice"),
        (frame(slices=(slice_of(first=0, rows=5, blocks=(1,)),)), "1 cache blocks"),
        (frame(slices=(slice_of(first=3, rows=1, token_ids=(100,)),)), "token 100"),
        (frame(slices=(slice_of(first=3, rows=1, token_ids=(2**32 - 1,)),)), "token 4294967295"),
        (frame(slices=(slice_of(first=3, rows=2, blocks=(2**32 - 1,)),)), "cache block 4294967295"),
        (frame(slices=(slice_of(first=3, rows=1, score_targets=(1, 2)),)), "2 score targets"),
        (frame(slices=(slice_of(first=3, rows=1, score_targets=(100,)),)), "score target 100"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(bad: MicroBatch, text: str) -> None:
    table = table_with_one()
    with pytest.raises(MalformedFrame, match=text):
        table.check(bad)
    assert len(table) == 1
    table.check(frame(slices=(slice_of(first=3, rows=1, blocks=()),)))


def test_the_context_is_a_limit() -> None:
    table = table_with_one()
    table.advance(table.check(frame(slices=(slice_of(first=3, rows=10, blocks=(1, 2, 3)),))))
    table.advance(table.check(frame(slices=(slice_of(first=13, rows=7, blocks=(4,)),))))
    with pytest.raises(MalformedFrame, match="context"):
        table.check(frame(slices=(slice_of(first=20, rows=1, blocks=(5,)),)))


def test_a_sequence_may_begin_and_end_in_one_frame() -> None:
    table = table_with_one()
    checked = table.check(frame((begin(2),), (slice_of(2, blocks=(3,)),), ends=(2, 1)))
    table.advance(checked)
    assert len(table) == 2
    table.drop(checked.ends)
    assert len(table) == 0


IDS = st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple)
SLICES = st.builds(
    SequenceSlice,
    st.builds(RingId, st.integers(0, 2**64 - 1)),
    st.integers(0, 2**32 - 1),
    IDS,
    IDS,
    st.integers(0, 2**32 - 1),
    IDS,
    st.none() | st.builds(Replay, st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1), st.text(max_size=3), st.booleans()),
    st.binary(max_size=20),
)


@given(st.lists(SLICES, max_size=3), st.sampled_from(WIRE_ENCODINGS))
def test_frames_survive_the_wire(slices: list[SequenceSlice], encoding: str) -> None:
    original = replace(frame((begin(),), tuple(slices), ends=(7,)), encoding=encoding)
    assert micro_batch_from_proto(micro_batch_to_proto(original)) == original


def test_impossible_values_are_malformed() -> None:
    message = micro_batch_to_proto(frame((begin(),)))
    message.begins[0].sampling.temperature = float("nan")
    with pytest.raises(MalformedFrame, match="temperature"):
        micro_batch_from_proto(message)


def state_of(table: SequenceTable, sequence_id: int = 1) -> tuple[int, list[int], set[int], dict[int, int]]:
    """Length, block table, and what penalties see; of a sequence that a frame could go on with."""
    probe = table.check(frame(slices=(slice_of(sequence_id, first=0, rows=1, blocks=()),))).slices[0].sequence
    return probe.length, probe.block_table.tolist(), probe.history.all_ids, dict(probe.history.answer_counts)


PENALTY = SamplingParams(repetition_penalty=1.5)


def test_rows_that_come_again_replace_what_was_there() -> None:
    table = SequenceTable(MODEL, GEOMETRY)
    table.advance(table.check(frame((begin(sampling=PENALTY),), (slice_of(rows=10, blocks=(0, 1, 2), token_ids=tuple(range(10))),))))
    assert state_of(table) == (10, [0, 1, 2], set(range(10)), dict.fromkeys(range(3, 10), 1))
    again = slice_of(first=4, rows=2, blocks=(5, 6), token_ids=(50, 50), replay=Replay(1, 2, "elsewhere"))
    table.advance(table.check(frame(slices=(again,))))
    assert state_of(table) == (6, [0, 5, 6], {0, 1, 2, 3, 50}, {3: 1, 50: 2})


def test_a_known_sequence_begins_once_more() -> None:
    table = table_with_one()
    again = begin(block_ids=(4, 5), token_ids=(9, 9, 9, 8, 8), sampling=PENALTY)
    table.advance(table.check(frame((again,), (slice_of(first=5, rows=1, blocks=()),))))
    assert state_of(table) == (6, [4, 5], {9, 8, 0}, {8: 2, 0: 1})


def test_only_living_sequences_outlive_a_plan() -> None:
    table = table_with_one()
    table.advance(table.check(frame((begin(2), begin(3)))))
    small = replace(GEOMETRY, num_blocks=1)
    later = table.under(MODEL, small, {1, 3, 99})
    assert len(later) == 2
    assert state_of(later)[0] == 3
    with pytest.raises(MalformedFrame, match="cache block 1"):
        later.check(frame(slices=(slice_of(first=3, rows=2, blocks=(1,)),)))
    table.drop([RingId(2), RingId(77)])
    assert len(table) == 2


def history_of(tokens: list[int]) -> TokenHistory:
    history = TokenHistory(PENALTY, 3)
    history.extend(0, tokens)
    return history


@given(st.lists(st.tuples(st.integers(0, 12), st.lists(st.integers(0, 5), max_size=5)), max_size=8))
def test_history_is_that_of_the_tokens_which_are_there(pieces: list[tuple[int, list[int]]]) -> None:
    tokens: list[int] = []
    history = TokenHistory(PENALTY, 3)
    for wanted_position, piece in pieces:
        position = min(wanted_position, len(tokens))
        tokens[position:] = piece
        history.extend(position, piece)
    expected = history_of(tokens)
    assert (history.all_ids, history.answer_counts) == (expected.all_ids, expected.answer_counts)
