"""An embedding that has no room in memory: of each frame, the rows of its tokens are read."""

import mmap
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import PackedMatrix
from dairllm.mesh.errors import WeightsDiffer
from dairllm.model_files.manifest import Unit
from dairllm.model_files.memory import STREAM_PAGE_BYTES, TILE_ROWS, streamed_size_of, table_rows
from dairllm.shard_service.weights.reading import StreamMeter, UnitPlace
from dairllm.shard_service.weights.writers import pack_piece


class EmbeddingRows:
    """max_rows: of a frame. The unit is placed before rows are wanted; one thread computes."""

    def __init__(self, unit: Unit, max_rows: int, meter: StreamMeter) -> None:
        size = streamed_size_of(unit, max_rows)
        assert size is not None, "only where it can be"
        self.size_bytes = size.numbers_bytes
        (self._tensor,) = unit.tensors
        self._table = PackedMatrix(self._tensor.packed_format, table_rows(max_rows), self._tensor.shape[-1])
        self._buffer = mmap.mmap(-1, self._tensor.row_bytes + 2 * STREAM_PAGE_BYTES)
        self._place: UnitPlace | None = None
        self._meter = meter

    def __contains__(self, unit: int) -> bool:
        return unit == 0

    def matrices_of(self, unit: int) -> Mapping[str, PackedMatrix]:
        """The table of the rows that were read last."""
        return {self._tensor.role: self._table}

    def place(self, unit: int, place: UnitPlace) -> None:
        """Where it is read from: the bytes there were verified."""
        self._place = place

    def read(self, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Where in the table the rows of these tokens lie from now on. ValueError for no tokens of the model, WeightsDiffer if they can't
        be read."""
        num_rows = self._tensor.shape[0]
        if not 0 <= int(token_ids.min()) <= int(token_ids.max()) < num_rows:
            raise ValueError(f"tokens are from {token_ids.min()} to {token_ids.max()}, expected 0 to {num_rows - 1}")
        began_s = time.perf_counter()
        wanted, local = np.unique(token_ids, return_inverse=True)
        try:
            rows = self._rows(wanted.tolist())
        except OSError as error:
            raise WeightsDiffer(f"the embedding cannot be read any more: {error}") from error
        pack_piece(self._tensor, self._table, 0, rows)
        self._meter.stalled_s += time.perf_counter() - began_s
        return local.astype(np.int32)

    def _rows(self, token_ids: list[int]) -> bytes:
        """As they are stored, up to a whole tile."""
        assert self._place is not None, "it is placed before rows are wanted"
        self._place.require_unchanged()
        row_bytes = self._tensor.row_bytes
        rows = [bytes(self._place.read(token_id * row_bytes, row_bytes, self._buffer)) for token_id in token_ids]
        return b"".join(rows) + bytes(-len(rows) % TILE_ROWS * row_bytes)
