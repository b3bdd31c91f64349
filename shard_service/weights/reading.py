"""Reading weights that do not stay in memory: past the page cache where the system can, in pieces that are packed where they belong.

What is read at a time is all that this takes in memory (`model_files/memory.py`).
"""

import contextlib
import logging
import math
import mmap
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from dairllm.mesh.errors import DairllmError, PeerUnreachable, WeightsDiffer
from dairllm.model_files.errors import ModelFileError
from dairllm.model_files.file_identity import FileIdentity, identity_of
from dairllm.model_files.manifest import TensorInfo, Unit
from dairllm.model_files.memory import STREAM_PAGE_BYTES, STREAM_READERS, stream_piece_bytes
from dairllm.shard_service.weights.writers import Matrices, pack_piece

STALL_S = 60.0
"""A disk that has given nothing for so long has failed."""

log = logging.getLogger(__name__)


class StreamedFile:
    """Ranges of a file, past the page cache if the file system can do that. may_change: somebody may write to it. Raises OSError."""

    def __init__(self, path: Path, *, may_change: bool = True) -> None:
        self.path = path
        self._descriptor = _open(path)
        self._identity = self._found() if may_change else None
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int, buffer: mmap.mmap) -> memoryview:
        """The bytes, within the buffer, which begins at a page and has room for two more than the range needs."""
        begin = offset // STREAM_PAGE_BYTES * STREAM_PAGE_BYTES
        end = -(-(offset + size) // STREAM_PAGE_BYTES) * STREAM_PAGE_BYTES
        filled, needed = 0, offset + size - begin
        while filled < needed:
            with memoryview(buffer) as whole, whole[filled : end - begin] as part:
                count = os.preadv(self._descriptor, [part], begin + filled)
            if not count:
                raise OSError(f"{self.path} ends before byte {offset + size}")
            filled += count
        return memoryview(buffer)[offset - begin : needed]

    def require_unchanged(self) -> None:
        if self._identity is not None and self._found() != self._identity:
            raise OSError(f"{self.path} has changed since it was verified")

    def _found(self) -> FileIdentity:
        return identity_of(os.fstat(self._descriptor))


def _open(path: Path) -> int:
    """Not every file system has O_DIRECT: those in memory, and some over a network."""
    direct = getattr(os, "O_DIRECT", 0)
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct)
        try:
            with mmap.mmap(-1, STREAM_PAGE_BYTES) as page:
                os.preadv(descriptor, [page], 0)
        except OSError:
            os.close(descriptor)
        else:
            return descriptor
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class StreamMeter:
    """What a process has read of weights that do not stay in memory, and how long that took, whatever stream it was for.

    stalled_s: for how long frames waited. experts_found, experts_missed: of those that were chosen, how many were in memory. Any thread.
    """

    def __init__(self) -> None:
        self.read_bytes = 0
        self.stalled_s = 0.0
        self.experts_found = 0
        self.experts_missed = 0
        self._reading_s = 0.0
        self._under_way = 0
        self._from_s = 0.0
        self._lock = threading.Lock()

    @property
    def reading_s(self) -> float:
        """During which something was read and packed."""
        with self._lock:
            return self._reading_s + (time.perf_counter() - self._from_s if self._under_way else 0.0)

    def begin(self, num_pieces: int) -> None:
        with self._lock:
            if num_pieces and not self._under_way:
                self._from_s = time.perf_counter()
            self._under_way += num_pieces

    def end(self, read_bytes: int) -> None:
        """Of one piece; 0 bytes if it was not wanted any more."""
        with self._lock:
            self.read_bytes += read_bytes
            self._under_way -= 1
            if not self._under_way:
                self._reading_s += time.perf_counter() - self._from_s


class FilePart(NamedTuple):
    file: StreamedFile
    offset_bytes: int
    size_bytes: int


class UnitPlace:
    """Where the bytes of a unit lie, in order."""

    def __init__(self, parts: Sequence[FilePart]) -> None:
        self._parts = parts
        self._begins = [0, *accumulate(part.size_bytes for part in parts)]

    def read(self, begin: int, size: int, buffer: mmap.mmap) -> memoryview | bytes:
        """A range of the unit. Raises OSError."""
        found = [
            (part.file, part.offset_bytes + max(begin - at, 0), min(begin + size, after) - max(begin, at))
            for part, at, after in zip(self._parts, self._begins, self._begins[1:], strict=False)
            if at < begin + size and begin < after
        ]
        if len(found) == 1:
            return found[0][0].read(*found[0][1:], buffer)
        return b"".join(bytes(file.read(offset, length, buffer)) for file, offset, length in found)

    def require_unchanged(self) -> None:
        for file in {part.file for part in self._parts}:
            file.require_unchanged()


class MatrixPiece(NamedTuple):
    """What is read and packed at once. matrix: its number in the tensor. first_row: over all matrices, of a part: in it. begin: in the
    unit's bytes."""

    tensor: TensorInfo
    matrix: int
    first_row: int
    begin: int
    size_bytes: int


def pieces_of(unit: Unit) -> Iterator[MatrixPiece]:
    """Of its matrices."""
    begin = 0
    for tensor in unit.tensors:
        if not tensor.is_numbers:
            num_matrices, outputs, piece_bytes = math.prod(tensor.shape[:-2]), tensor.shape[-2], stream_piece_bytes(tensor)
            matrix_bytes = tensor.size_bytes // num_matrices
            for matrix in range(num_matrices):
                for at in range(0, matrix_bytes, piece_bytes):
                    first_row = matrix * outputs + at // tensor.row_bytes
                    yield MatrixPiece(tensor, matrix, first_row, begin + matrix * matrix_bytes + at, min(piece_bytes, matrix_bytes - at))
        begin += tensor.size_bytes


def pieces_of_output(unit: Unit, output: TensorInfo, rows: range) -> Iterator[MatrixPiece]:
    """Of these rows of the head's matrix: a part, which begins with a tile."""
    begin = sum(tensor.size_bytes for tensor in unit.tensors[: unit.tensors.index(output)])
    step = stream_piece_bytes(output) // output.row_bytes
    for row in range(rows.start, rows.stop, step):
        size_bytes = (min(row + step, rows.stop) - row) * output.row_bytes
        yield MatrixPiece(output, 0, row - rows.start, begin + row * output.row_bytes, size_bytes)


class PieceReaders:
    """Read pieces and pack them where they belong. threads: STREAM_READERS of them. largest_bytes: of a piece."""

    def __init__(self, threads: Executor, meter: StreamMeter, largest_bytes: int) -> None:
        self.meter = meter
        self.changed = threading.Condition()
        """Notified of every piece that was read, or was not."""
        self._threads = threads
        self._num_done = 0
        self._buffers: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(STREAM_READERS):
            self._buffers.put(mmap.mmap(-1, largest_bytes + 2 * STREAM_PAGE_BYTES))

    def submit(self, orders: Sequence["Order"]) -> None:
        self.meter.begin(len(orders))
        for order in orders:
            self._threads.submit(self._carry_out, order)

    def wait_while(self, is_open: Callable[[], bool]) -> None:
        """`changed` is held. Raises PeerUnreachable if nothing comes for long."""
        began_s, seen, seen_s = time.perf_counter(), self._num_done, time.monotonic()
        while is_open():
            self.changed.wait(STALL_S / 10)
            if self._num_done != seen:
                seen, seen_s = self._num_done, time.monotonic()
            elif time.monotonic() - seen_s > STALL_S:
                raise PeerUnreachable(f"the disk has given nothing of the weights for {STALL_S:g} s")
        self.meter.stalled_s += time.perf_counter() - began_s

    def _carry_out(self, order: "Order") -> None:
        failure: DairllmError | None = None
        is_wanted = order.is_wanted()
        try:
            if is_wanted:
                self._pack(order)
        except DairllmError as error:
            failure = error
        except (OSError, ModelFileError) as error:
            failure = WeightsDiffer(f"unit {order.unit} cannot be read any more: {error}")
        except Exception as error:
            log.exception("reading weights failed by a fault of this program")
            failure = DairllmError(f"reading unit {order.unit} failed: {type(error).__name__}; the cause is in the shard's log")
        self.meter.end(order.piece.size_bytes if is_wanted else 0)
        with self.changed:
            self._num_done += 1
            order.done(failure)
            self.changed.notify_all()

    def _pack(self, order: "Order") -> None:
        buffer, piece = self._buffers.get(), order.piece
        try:
            if order.begins:
                order.place.require_unchanged()
            pack_piece(piece.tensor, order.matrices, piece.first_row, order.place.read(piece.begin, piece.size_bytes, buffer))
        finally:
            self._buffers.put(buffer)


class Order(NamedTuple):
    """A piece to be read. begins: the first of a unit or expert, before which the file is looked at. `changed` is held while it is done."""

    unit: int
    piece: MatrixPiece
    place: UnitPlace
    matrices: Matrices
    begins: bool
    is_wanted: Callable[[], bool]
    done: Callable[[DairllmError | None], None]
