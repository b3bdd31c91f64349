"""What a frame must be to be computed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.errors import MalformedFrame
from dairllm.mesh.sampling import SamplingParams
from dairllm.shard_service.assignment import CacheGeometry, ModelFacts
from dairllm.shard_service.frames import MicroBatch, SequenceBegin, SequenceId, SequenceSlice, micro_batch_from_proto, micro_batch_to_proto
from dairllm.shard_service.sequences import SequenceTable

MODEL = ModelFacts("llama", "test", 2, 64, 64, 2, 1, 32, 100, 1e-5, 1e4, 32, True, (), 0.2)
GEOMETRY = CacheGeometry(num_blocks=8, block_tokens=4, context_length=20, max_batch_rows=10)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def begin(sequence_id: int = 1, **changes: object) -> SequenceBegin:
    return replace(SequenceBegin(SequenceId(sequence_id), 3, SamplingParams(), {}), **changes)  # type: ignore[arg-type]


def part(sequence_id: int = 1, first: int = 0, rows: int = 3, blocks: tuple[int, ...] = (0,), **changes: object) -> SequenceSlice:
    base = SequenceSlice(SequenceId(sequence_id), first, np.arange(rows, dtype=np.int32), ids(*blocks), None, b"", True, ids())
    return replace(base, **changes)  # type: ignore[arg-type]


def frame(begins: tuple[SequenceBegin, ...] = (), slices: tuple[SequenceSlice, ...] = (), ends: tuple[int, ...] = ()) -> MicroBatch:
    return MicroBatch(1, 1, begins, slices, tuple(SequenceId(end) for end in ends), ())


def table_with_one() -> SequenceTable:
    """Sequence 1 is at position 3, with block 0."""
    table = SequenceTable(MODEL, GEOMETRY)
    table.advance(table.check(frame((begin(),), (part(),))))
    return table


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (frame((begin(),)), "running already"),
        (frame((begin(2), begin(2))), "running already"),
        (frame((begin(2, rounding_points={4: "F16"}),)), "boundary 4"),
        (frame((begin(2, rounding_points={0: "F16"}),)), "boundary 0"),
        (frame((begin(2, sampling=SamplingParams(logit_bias={100: 1.0})),)), "100"),
        (frame(slices=(part(2),)), "has not begun"),
        (frame(ends=(2,)), "has not begun"),
        (frame(ends=(1, 1)), "ends twice"),
        (frame(slices=(part(first=3, rows=1), part(first=4, rows=1))), "two slices"),
        (frame(slices=(part(first=4, rows=1),)), "expected 3"),
        (frame(slices=(part(first=2, rows=1),)), "expected 3"),
        (frame(slices=(part(first=3, rows=0),)), "without rows"),
        (frame(slices=(part(first=3, rows=11, blocks=(1, 2, 3)),)), "11 rows"),
        (frame(slices=(part(first=3, rows=2, blocks=()),)), "1 cache blocks"),
        (frame(slices=(part(first=3, rows=2, blocks=(8,)),)), "cache block 8"),
        (frame(slices=(part(first=3, rows=2, blocks=(0,)),)), "twice"),
        (frame(slices=(part(first=3, rows=1, token_ids=ids(100)),)), "token 100"),
        (frame(slices=(part(first=3, rows=1, score_targets=ids(1, 2)),)), "2 score targets"),
        (frame(slices=(part(first=3, rows=1, score_targets=ids(100)),)), "score target 100"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(bad: MicroBatch, text: str) -> None:
    table = table_with_one()
    with pytest.raises(MalformedFrame, match=text):
        table.check(bad)
    assert len(table) == 1
    table.check(frame(slices=(part(first=3, rows=1, blocks=()),)))


def test_the_context_is_a_limit() -> None:
    table = table_with_one()
    table.advance(table.check(frame(slices=(part(first=3, rows=10, blocks=(1, 2, 3)),))))
    table.advance(table.check(frame(slices=(part(first=13, rows=7, blocks=(4,)),))))
    with pytest.raises(MalformedFrame, match="context"):
        table.check(frame(slices=(part(first=20, rows=1, blocks=(5,)),)))


def test_a_sequence_may_begin_and_end_in_one_frame() -> None:
    table = table_with_one()
    checked = table.check(frame((begin(2),), (part(2, blocks=(3,)),), ends=(2, 1)))
    table.advance(checked)
    assert len(table) == 2
    table.drop(checked.ends)
    assert len(table) == 0


def test_rounding_points_become_encodings_of_the_kernels() -> None:
    table = SequenceTable(MODEL, GEOMETRY)
    checked = table.check(frame((begin(rounding_points={1: "F32", 3: "Q8_0"}),), (part(),)))
    sequence = checked.slices[0].sequence
    assert sequence.boundary_encodings is not None
    assert sequence.boundary_encodings.tolist() == [0, 0, 0, 2]
    assert (sequence.encoding_at(3), sequence.encoding_at(2)) == ("Q8_0", "F32")


SLICES = st.builds(
    lambda number, tokens, blocks, encoding, data, sample: SequenceSlice(
        SequenceId(number), 5, ids(*tokens), ids(*blocks), encoding, data, sample, ids(*tokens)
    ),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**31 - 1), max_size=4),
    st.lists(st.integers(0, 2**31 - 1), max_size=4),
    st.sampled_from([None, "F32", "Q8_0_OUTLIERS"]),
    st.binary(max_size=20),
    st.booleans(),
)


@given(st.lists(SLICES, max_size=3), st.sampled_from(["F16", "Q8_0"]))
def test_frames_survive_the_wire(slices: list[SequenceSlice], encoding: str) -> None:
    original = frame((begin(rounding_points={2: encoding}),), tuple(slices), ends=(7,))
    message = micro_batch_to_proto(original)
    again = micro_batch_to_proto(micro_batch_from_proto(message))
    assert again == message
    assert message.slices == again.slices


def test_impossible_values_are_malformed() -> None:
    message = micro_batch_to_proto(frame((begin(),), (part(),)))
    message.slices[0].token_ids[0] = 2**31
    with pytest.raises(MalformedFrame, match="token id"):
        micro_batch_from_proto(message)
    message = micro_batch_to_proto(frame((begin(),)))
    message.begins[0].sampling.temperature = float("nan")
    with pytest.raises(MalformedFrame, match="temperature"):
        micro_batch_from_proto(message)
