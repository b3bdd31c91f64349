"""Rows that are no numbers: who makes them says so and sends none, and who gets them refuses the frame. Two stages in this process."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from dairllm.kernels_pyx import encode_rows
from dairllm.mesh.errors import MalformedFrame
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, RingId, SequenceBegin, SequenceSlice
from dairllm.mesh.sampling import SamplingParams
from tests.shard_service.local_ring import ring_over
from tests.tiny_gguf import write_tiny_llama

WIRES = ["F32", "F16", "Q8_0", "Q8_0_OUTLIERS"]
PROMPT = (3, 14, 15)


def frame(wire: str, ring_ids: Sequence[int] = (1,)) -> MicroBatch:
    begins = tuple(SequenceBegin(RingId(number), len(PROMPT), SamplingParams(temperature=0.0)) for number in ring_ids)
    slices = tuple(SequenceSlice(RingId(number), 0, PROMPT, (number,), num_samples=1) for number in ring_ids)
    return MicroBatch(1, 1, wire, begins, slices, ())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("sound") / "tiny.gguf", block_format="F32")


@pytest.mark.parametrize("wire", WIRES)
def test_a_shard_whose_rows_are_no_numbers_says_so_and_sends_none(tmp_path: Path, wire: str) -> None:
    path = write_tiny_llama(tmp_path / "broken.gguf", block_format="F32")
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.attn_norm.weight")
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(np.full(tensor.n_elements, np.nan, np.float32).tobytes())
    ring = ring_over(path, wire)
    passed = ring.first.compute(frame(wire), 0)
    assert isinstance(passed, MicroBatch)
    words = "its rows are no numbers behind shard 0: weights or activations are broken"
    assert [(piece.failure, piece.activations) for piece in passed.slices] == [(words, b"")]
    result = ring.last.compute(passed, 0)
    assert isinstance(result, MicroBatchResult)
    assert [(one.failure, one.sampled) for one in result.results] == [(words, ())]


@pytest.mark.parametrize("wire", WIRES)
def test_a_slice_that_has_failed_fails_alone(sound: Path, wire: str) -> None:
    alone, ring = ring_over(sound, wire), ring_over(sound, wire)
    expected = alone.last.compute(alone.first.compute(frame(wire, (2,)), 0), 0)  # type: ignore[arg-type]
    passed = ring.first.compute(frame(wire, (1, 2)), 0)
    assert isinstance(passed, MicroBatch)
    assert isinstance(expected, MicroBatchResult)
    failed, other = passed.slices
    result = ring.last.compute(replace(passed, slices=(failed.with_failure("no numbers"), other)), 0)
    assert isinstance(result, MicroBatchResult)
    by_id = {one.sequence_id: one for one in result.results}
    assert by_id[RingId(1)].failure == "no numbers"
    assert [token.token_id for token in by_id[RingId(2)].sampled] == [token.token_id for token in expected.results[0].sampled]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers_are_refused_and_change_nothing(sound: Path, value: float) -> None:
    ring = ring_over(sound, "F32")
    passed = ring.first.compute(frame("F32"), 0)
    assert isinstance(passed, MicroBatch)
    rows = encode_rows(np.full((len(PROMPT), ring.width), value, np.float32), "F32")
    with pytest.raises(MalformedFrame, match="sequence 1 has activations that are no numbers"):
        ring.last.compute(replace(passed, slices=(passed.slices[0].with_activations(rows),)), 0)
    assert len(ring.last.sequences) == 0
    assert isinstance(ring.last.compute(passed, 0), MicroBatchResult)


@pytest.mark.parametrize("wire", WIRES)
def test_the_largest_rows_are_numbers_to_the_next_member_too(sound: Path, wire: str) -> None:
    """An encoding may hold less than a float; what it does not hold is either bounded, as in half precision, or said to be no number."""
    ring = ring_over(sound, wire)
    for size in (1e3, 65504.0, 1e6, 1e9, 1e30):
        rows = np.full((1, ring.width), size, np.float32)
        are_numbers = ring.first._are_numbers(rows, encode_rows(rows, wire))
        piece = SequenceSlice(RingId(1), 0, (5,), (1,), num_samples=0, activations=encode_rows(rows, wire))
        begin = SequenceBegin(RingId(1), 1, SamplingParams())
        sent = MicroBatch(1, 1, wire, (begin,), (piece,), (RingId(1),))
        if are_numbers:
            ring.last.compute(sent, 0)
        else:
            with pytest.raises(MalformedFrame, match="no numbers"):
                ring.last.compute(sent, 0)
