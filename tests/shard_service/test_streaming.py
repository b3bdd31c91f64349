"""Units that are read anew for every frame: the right bytes, whatever is asked for in whatever order, and clear words when a disk fails."""

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dairllm.kernels_pyx import PackedMatrix, PackedStack
from dairllm.mesh.errors import DairllmError, PeerUnreachable, WeightsDiffer
from dairllm.model_files.manifest import TensorInfo, TensorPiece, Unit
from dairllm.model_files.memory import (
    STREAM_PIECE_BYTES,
    STREAM_READERS,
    STREAM_SLOTS,
    stream_piece_bytes,
    streamed_bytes,
    streamed_size_of,
)
from dairllm.shard_service.weights import reading
from dairllm.shard_service.weights.reading import StreamMeter
from dairllm.shard_service.weights.sources import place_in
from dairllm.shard_service.weights.streaming import WeightStream

NUM_UNITS = 7
ROWS, COLUMNS, EXPERTS = 48, 64, 3


class Stored(NamedTuple):
    """Units of one matrix, a stack and a vector each, in two files at odd places, and the values of all matrices by unit."""

    paths: tuple[Path, Path]
    units: tuple[Unit, ...]
    values: dict[int, dict[str, np.ndarray]]


@pytest.fixture
def readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(STREAM_READERS) as threads:
        yield threads


@pytest.fixture(params=["a disk", "memory"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stored]:
    """In memory there is no O_DIRECT."""
    folder = tmp_path if request.param == "a disk" else Path("/dev/shm", f"dairllm-{os.getpid()}-{request.node.name.replace('/', '-')}")
    folder.mkdir(exist_ok=True)
    yield write_units(folder)
    for path in folder.glob("*.bin"):
        path.unlink()
    if request.param == "memory":
        folder.rmdir()


def write_units(folder: Path) -> Stored:
    """The second tensor lies in two pieces, one in each file."""
    generator = np.random.default_rng(5)
    contents, units, values = [bytearray(b"x" * 13), bytearray(b"y" * 4099)], [], dict[int, dict[str, np.ndarray]]()
    for index in range(1, NUM_UNITS + 1):
        tensors, values[index] = [], {}
        for role, shape, block_format in (
            ("q", (ROWS, COLUMNS), "F32"),
            ("expert_gate", (EXPERTS, ROWS, COLUMNS), "F16"),
            ("attention_norm", (COLUMNS,), "F32"),
        ):
            numbers = generator.standard_normal(shape).astype(np.float32 if block_format == "F32" else np.float16)
            data = numbers.tobytes()
            cut = len(data) // 3 // 2 * 2 if role == "expert_gate" else len(data)
            pieces = []
            for file, part in ((index % 2, data[:cut]), (1 - index % 2, data[cut:])):
                if part:
                    pieces.append(TensorPiece(file_index=file, offset_bytes=len(contents[file]), size_bytes=len(part)))
                    contents[file] += part
            tensors.append(TensorInfo(name=role, role=role, block_format=block_format, shape=shape, pieces=tuple(pieces)))
            values[index][role] = numbers.astype(np.float32)
        units.append(Unit(index=index, tensors=tuple(tensors), size_bytes=sum(one.size_bytes for one in tensors), digest=b""))
    paths = (folder / "first.bin", folder / "second.bin")
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return Stored(paths, tuple(units), values)


def stream_of(
    stored: Stored, readers: ThreadPoolExecutor, units: Sequence[Unit] | None = None, meter: StreamMeter | None = None
) -> WeightStream:
    streamed = stored.units if units is None else units
    stream = WeightStream(streamed, readers, meter or StreamMeter())
    for unit in streamed:
        stream.place(unit.index, place_in(stored.paths, unit))
    return stream


def require_right(stored: Stored, stream: WeightStream, unit: int) -> None:
    with stream.in_memory(unit):
        matrices, values = stream.matrices_of(unit), stored.values[unit]
        assert matrices.keys() == {"q", "expert_gate"}
        matrix, stack = matrices["q"], matrices["expert_gate"]
        assert isinstance(matrix, PackedMatrix)
        assert isinstance(stack, PackedStack)
        np.testing.assert_array_equal(matrix.dequantize_rows(np.arange(ROWS)), values["q"])
        for expert in range(EXPERTS):
            np.testing.assert_array_equal(stack.dequantize_rows(expert), values["expert_gate"][expert])


def test_units_come_round_and_round(stored: Stored, readers: ThreadPoolExecutor) -> None:
    meter = StreamMeter()
    stream = stream_of(stored, readers, meter=meter)
    for _ in range(3):
        for unit in stored.units:
            require_right(stored, stream, unit.index)
    matrices_bytes = sum(piece.size_bytes for unit in stored.units for tensor in unit.tensors[:2] for piece in tensor.pieces)
    assert 3 * matrices_bytes <= meter.read_bytes <= (3 + 1) * matrices_bytes, "what is read ahead at the end, and nothing twice"
    assert stream.size_bytes == streamed_bytes([size for unit in stored.units if (size := streamed_size_of(unit, 1)) is not None])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, NUM_UNITS), max_size=30), st.sets(st.integers(1, NUM_UNITS), min_size=1))
def test_any_unit_may_be_asked_for_next(stored: Stored, asked: list[int], streamed: set[int]) -> None:
    """As a replay does, which begins in the middle; and however many there are."""
    with ThreadPoolExecutor(STREAM_READERS) as readers:
        stream = stream_of(stored, readers, [unit for unit in stored.units if unit.index in streamed])
        for unit in asked:
            if unit in stream:
                require_right(stored, stream, unit)
        assert {unit for unit in range(NUM_UNITS + 2) if unit in stream} == streamed


def test_large_matrices_are_read_in_whole_tiles() -> None:
    """And those that are moved before they are packed as a whole."""

    def matrix(rows: int, columns: int, **changes: object) -> TensorInfo:
        pieces = (TensorPiece(offset_bytes=0, size_bytes=rows * columns * 4),)
        return TensorInfo(name="q", role="q", block_format="F32", shape=(rows, columns), pieces=pieces, **changes)  # type: ignore[arg-type]

    for rows, columns in ((3, 32), (48, 64), (5000, 4096), (100, 1 << 17)):
        piece_bytes, tile_bytes = stream_piece_bytes(matrix(rows, columns)), 16 * columns * 4
        assert piece_bytes == rows * columns * 4 or piece_bytes % tile_bytes == 0
        assert piece_bytes <= max(STREAM_PIECE_BYTES, tile_bytes)


def test_a_file_that_ends_too_early_is_named(stored: Stored, readers: ThreadPoolExecutor) -> None:
    """Until it is there again, every time; it counts as changed even if it is."""
    stream = stream_of(stored, readers)
    content = stored.paths[0].read_bytes()
    require_right(stored, stream, 1)
    os.truncate(stored.paths[0], 100)
    not_read_ahead = [unit.index for unit in stored.units[1 + STREAM_SLOTS :]]
    assert [unit for unit in not_read_ahead if fails(stream, unit, stored.paths[0].name)] == not_read_ahead
    stored.paths[0].write_bytes(content)
    assert fails(stream, NUM_UNITS, "has changed since it was verified")


def test_what_was_read_and_how_long_it_took_is_counted(stored: Stored, readers: ThreadPoolExecutor) -> None:
    """From the start, which reads ahead, and nothing while nothing is read."""
    meter = StreamMeter()
    stream = WeightStream(stored.units, readers, meter)
    for unit in stored.units:
        stream.place(unit.index, place_in(stored.paths, unit))
    stream.start()
    for unit in stored.units[:STREAM_SLOTS]:
        require_right(stored, stream, unit.index)
    readers.shutdown()
    read_s = meter.reading_s
    assert meter.read_bytes > 0
    assert 0 < read_s == meter.reading_s
    assert meter.stalled_s >= 0


def fails(stream: WeightStream, unit: int, words: str) -> bool:
    with pytest.raises(WeightsDiffer, match=rf"unit {unit} cannot be read any more: .*{words}"), stream.in_memory(unit):
        pass
    return True


def test_a_disk_that_gives_nothing_fails_in_time(stored: Stored, readers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, read = threading.Event(), reading.StreamedFile.read

    def hang(self: reading.StreamedFile, offset: int, size: int, buffer: mmap.mmap) -> memoryview:
        goes_on.wait(30)
        return read(self, offset, size, buffer)

    monkeypatch.setattr(reading.StreamedFile, "read", hang)
    monkeypatch.setattr(reading, "STALL_S", 0.1)
    stream = stream_of(stored, readers)
    with pytest.raises(PeerUnreachable, match=r"the disk has given nothing of the weights for 0\.1 s"), stream.in_memory(2):
        pass
    goes_on.set()
    monkeypatch.setattr(reading, "STALL_S", 30.0)
    require_right(stored, stream, 2)


def test_a_fault_of_this_program_is_told_to_whoever_waits(
    stored: Stored, readers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "pack_piece", lambda *_: 1 / 0)
    with pytest.raises(DairllmError, match="reading unit 3 failed: ZeroDivisionError"), stream_of(stored, readers).in_memory(3):
        pass


def test_rows_are_quantised_on_the_way(tmp_path: Path, readers: ThreadPoolExecutor) -> None:
    numbers = np.random.default_rng(6).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    (tmp_path / "model.bin").write_bytes(numbers.tobytes())
    pieces = (TensorPiece(offset_bytes=0, size_bytes=numbers.nbytes),)
    tensor = TensorInfo(name="q", role="q", block_format="F32", shape=numbers.shape, pieces=pieces, quantized_to="Q8_0")
    unit = Unit(index=1, tensors=(tensor,), size_bytes=numbers.nbytes, digest=b"")
    stream = WeightStream([unit], readers, StreamMeter())
    stream.place(1, place_in((tmp_path / "model.bin",), unit))
    with stream.in_memory(1):
        matrix = stream.matrices_of(1)["q"]
        assert isinstance(matrix, PackedMatrix)
        assert matrix.block_format == "Q8_0"
        assert np.abs(matrix.dequantize_rows(np.arange(ROWS)) - numbers).max() < 0.03
