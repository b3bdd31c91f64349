"""A head that comes in parts of its rows: the right bytes in the right order, and none for frames that need no logits."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dairllm.kernels_pyx import PackedMatrix
from dairllm.model_files.block_formats import BLOCK_FORMATS
from dairllm.model_files.manifest import TensorInfo, TensorPiece, Unit
from dairllm.model_files.memory import STREAM_HEAD_PARTS, STREAM_READERS, STREAM_SLOTS, TILE_ROWS, output_parts, streamed_size_of
from dairllm.shard_service.weights.reading import StreamMeter
from dairllm.shard_service.weights.sources import place_in
from dairllm.shard_service.weights.streaming import WeightStream

COLUMNS, LAYER_ROWS, HEAD_ROWS = 64, 48, 1000


class Stored(NamedTuple):
    """values: of the matrix of each unit."""

    path: Path
    units: tuple[Unit, ...]
    values: tuple[npt.NDArray[np.float32], ...]


def write_model(path: Path, num_layers: int, head_rows: int = HEAD_ROWS) -> Stored:
    """Layers of one matrix each, and behind them a head."""
    numbers, content, units, values = np.random.default_rng(8), bytearray(b"x" * 77), list[Unit](), list[npt.NDArray[np.float32]]()
    for index in range(1, num_layers + 2):
        is_head = index == num_layers + 1
        norm, matrix = ("output_norm", "output") if is_head else ("attention_norm", "q")
        tensors = []
        for role, shape in ((norm, (COLUMNS,)), (matrix, (head_rows if is_head else LAYER_ROWS, COLUMNS))):
            data = numbers.standard_normal(shape).astype(np.float32)
            pieces = (TensorPiece(offset_bytes=len(content), size_bytes=data.nbytes),)
            tensors.append(TensorInfo(name=role, role=role, block_format="F32", shape=shape, pieces=pieces))
            content += data.tobytes()
        values.append(data)
        units.append(Unit(index=index, tensors=tuple(tensors), size_bytes=sum(one.size_bytes for one in tensors), digest=b""))
    path.write_bytes(content)
    return Stored(path, tuple(units), tuple(values))


@pytest.fixture
def readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(STREAM_READERS) as threads:
        yield threads


def stream_of(stored: Stored, readers: ThreadPoolExecutor, meter: StreamMeter | None = None) -> WeightStream:
    stream = WeightStream(stored.units, readers, meter or StreamMeter())
    for unit in stored.units:
        stream.place(unit.index, place_in((stored.path,), unit))
    stream.start()
    return stream


def compute_frame(stored: Stored, stream: WeightStream, *, with_head: bool) -> None:
    """As a stage does, and look at all that is in memory meanwhile."""
    stream.leave_out(frozenset() if with_head else {stored.units[-1].index})
    for unit, values in list(zip(stored.units, stored.values, strict=True))[: None if with_head else -1]:
        found = list[npt.NDArray[np.float32]]()
        for part in stream.parts_of(unit.index):
            with stream.part_in_memory(part):
                (matrix,) = part.matrices.values()
                assert isinstance(matrix, PackedMatrix)
                found.append(matrix.dequantize_rows(np.arange(matrix.outputs)))
        np.testing.assert_array_equal(np.concatenate(found), values)


def matrix_bytes(units: Sequence[Unit]) -> int:
    return sum(tensor.size_bytes for unit in units for tensor in unit.tensors if not tensor.is_numbers)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 7), st.sampled_from([1, 16, 40, 100, HEAD_ROWS]), st.lists(st.booleans(), min_size=1, max_size=8))
def test_the_head_comes_with_the_frames_that_want_it(tmp_path: Path, num_layers: int, head_rows: int, frames: list[bool]) -> None:
    stored = write_model(tmp_path / "model.bin", num_layers, head_rows)
    with ThreadPoolExecutor(STREAM_READERS) as readers:
        stream = stream_of(stored, readers)
        for with_head in frames:
            compute_frame(stored, stream, with_head=with_head)


def test_what_is_read_ahead_is_wanted(tmp_path: Path, readers: ThreadPoolExecutor) -> None:
    """With the head or without it, and when one follows the other: nothing is read twice but what comes behind the last frame."""
    stored, meter = write_model(tmp_path / "model.bin", 9), StreamMeter()
    stream = stream_of(stored, readers, meter)
    frames = [True, True, False, False, True, False]
    for with_head in frames:
        compute_frame(stored, stream, with_head=with_head)
    layers_bytes, head_bytes = matrix_bytes(stored.units[:-1]), matrix_bytes(stored.units[-1:])
    needed_bytes = len(frames) * layers_bytes + sum(frames) * head_bytes
    assert needed_bytes <= meter.read_bytes <= needed_bytes + STREAM_SLOTS * LAYER_ROWS * COLUMNS * 4


def test_a_head_alone_is_read_ahead_too(tmp_path: Path, readers: ThreadPoolExecutor) -> None:
    stored, meter = write_model(tmp_path / "model.bin", 0), StreamMeter()
    stream = stream_of(stored, readers, meter)
    for with_head in (True, False, False, True):
        compute_frame(stored, stream, with_head=with_head)
    head_bytes = matrix_bytes(stored.units)
    assert 2 * head_bytes <= meter.read_bytes <= 2 * head_bytes + STREAM_SLOTS * -(-head_bytes // STREAM_HEAD_PARTS) * 2


@given(
    st.integers(1, 300_000),
    st.sampled_from(["Q4_0", "F16", "F32"]),
    st.integers(0, 100),
    st.integers(0, 1 << 30),
    st.sampled_from([64, 4096]),
)
def test_parts_of_a_head_lie_in_slots(num_rows: int, block_format: str, num_others: int, layer_bytes: int, width: int) -> None:
    row_bytes = width // BLOCK_FORMATS[block_format].block_size * BLOCK_FORMATS[block_format].block_bytes
    pieces = (TensorPiece(offset_bytes=0, size_bytes=num_rows * row_bytes),)
    output = TensorInfo(name="output", role="output", block_format=block_format, shape=(num_rows, width), pieces=pieces)
    unit = Unit(index=9, tensors=(output,), size_bytes=num_rows * row_bytes, digest=b"")
    size = streamed_size_of(unit, 1)
    assert size is not None
    slot_bytes = max(size.slot_bytes, layer_bytes)
    parts = output_parts(output, slot_bytes, num_others)
    assert [row for part in parts for row in (part.start, part.stop)] == [
        0,
        *(row for part in parts[1:] for row in [part.start] * 2),
        num_rows,
    ]
    assert all(part.start % TILE_ROWS == 0 and 0 < -(-len(part) // TILE_ROWS) * TILE_ROWS * row_bytes <= slot_bytes for part in parts)
    assert len(parts) >= size.most_slots
    num_tiles = -(-num_rows // TILE_ROWS)
    assert (len(parts) + num_others) % STREAM_SLOTS == 0 or len(parts) == num_tiles
    assert size.slot_bytes < -(-num_tiles // STREAM_HEAD_PARTS) * TILE_ROWS * row_bytes + 64
