"""From the bytes of one tensor, in whatever pieces they come, to the weights that the kernels take."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import PackedMatrix, PackedStack, WeightMemory, dequantize
from dairllm.mesh.errors import InvalidModel
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.manifest import TensorInfo
from dairllm.model_files.memory import TILE_ROWS
from dairllm.model_files.quantizing import quantize_stored_rows
from dairllm.model_files.transforms import transformed

Matrices = PackedMatrix | PackedStack
Weights = Matrices | npt.NDArray[np.float32]
_VALUES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}
"""Single values that are only moved; of other formats there are rows of bytes."""


class Writer(Protocol):
    def write(self, data: memoryview, *, ends: bool) -> None:
        """The next bytes of the tensor. ends: they are the last."""
        ...

    def result(self) -> Weights: ...


def matrices_for(tensor: TensorInfo, memory: WeightMemory | None = None, offset_bytes: int = 0) -> Matrices:
    """The matrix of a tensor, or its stack of them, in memory of its own or at an offset of that which is given."""
    *stacked, outputs, inputs = tensor.shape
    if stacked:
        return PackedStack(tensor.packed_format, math.prod(stacked), outputs, inputs, memory=memory, offset_bytes=offset_bytes)
    return PackedMatrix(tensor.packed_format, outputs, inputs, memory=memory, offset_bytes=offset_bytes)


def pack_piece(tensor: TensorInfo, matrices: Matrices, first_row: int, data: memoryview | bytes) -> None:
    """Rows as they are stored, all of one matrix: whole tiles, or the end of it; of a tensor with transforms the whole matrix.

    first_row: counted over all matrices.
    """
    _Rows(tensor, matrices).pack(first_row, _moved(tensor, data) if tensor.transforms else data)


def _moved(tensor: TensorInfo, data: memoryview | bytes) -> bytes:
    """The values of one stored matrix where the transforms put them."""
    rows, columns = tensor.stored_shape[-2:]
    stored_shape = (rows, columns) if tensor.block_format in _VALUES else (rows, tensor.row_bytes)
    stored = np.frombuffer(data, _VALUES.get(tensor.block_format, np.dtype("u1"))).reshape(stored_shape)
    return transformed(stored, tensor.transforms, numbers=False).tobytes()


class _Rows:
    """Where the rows of all matrices of a tensor go, one after the other."""

    def __init__(self, tensor: TensorInfo, matrices: Matrices | None = None) -> None:
        self.outputs = tensor.shape[-2]
        self._tensor = tensor
        self.matrices = matrices if matrices is not None else matrices_for(tensor)

    def pack(self, first_row: int, rows: memoryview | bytes) -> None:
        """first_row: counted over all matrices; the rows are all of one of them, as they are stored."""
        if self._tensor.quantized_to is not None:
            values = dequantize(self._tensor.block_format, rows, len(rows) // self._tensor.row_bytes * self._tensor.shape[-1])
            try:
                rows = quantize_stored_rows(self._tensor.quantized_to, values.reshape(-1, self._tensor.shape[-1]))
            except CorruptModelFile as error:
                raise InvalidModel(f"{self._tensor.name}: {error}") from error
        if isinstance(self.matrices, PackedStack):
            index, first_row = divmod(first_row, self.outputs)
            self.matrices.pack_rows(index, first_row, rows)
        else:
            self.matrices.pack_rows(first_row, rows)


class MatrixWriter:
    """Packs whole tiles of 16 rows and keeps what is left over for the next piece."""

    def __init__(self, tensor: TensorInfo) -> None:
        self._rows = _Rows(tensor)
        self._row_bytes = tensor.row_bytes
        self._next_row = 0
        self._left_over = b""

    def write(self, data: memoryview, *, ends: bool) -> None:
        if self._left_over:
            data = memoryview(self._left_over + data)
        while rows := self._packable(len(data) // self._row_bytes):
            self._rows.pack(self._next_row, data[: rows * self._row_bytes])
            self._next_row += rows
            data = data[rows * self._row_bytes :]
        self._left_over = bytes(data)

    def _packable(self, rows: int) -> int:
        """Of so many that are there: to the end of a matrix, else whole tiles."""
        to_end = self._rows.outputs - self._next_row % self._rows.outputs
        return to_end if rows >= to_end else rows - rows % TILE_ROWS

    def result(self) -> Weights:
        return self._rows.matrices


class TransformedMatrixWriter:
    """Takes one stored matrix at a time, since its values are moved before they are packed."""

    def __init__(self, tensor: TensorInfo) -> None:
        self._tensor = tensor
        self._rows = _Rows(tensor)
        self._matrix_bytes = tensor.size_bytes // math.prod(tensor.shape[:-2])
        self._next_row = 0
        self._data = bytearray()

    def write(self, data: memoryview, *, ends: bool) -> None:
        while data:
            taken = data[: self._matrix_bytes - len(self._data)]
            self._data += taken
            data = data[len(taken) :]
            if len(self._data) == self._matrix_bytes:
                self._pack()

    def _pack(self) -> None:
        self._rows.pack(self._next_row, _moved(self._tensor, bytes(self._data)))
        self._next_row += self._rows.outputs
        self._data.clear()

    def result(self) -> Weights:
        return self._rows.matrices


class NumbersWriter:
    """Keeps values as float32."""

    def __init__(self, tensor: TensorInfo) -> None:
        self._tensor = tensor
        self._data = bytearray()

    def write(self, data: memoryview, *, ends: bool) -> None:
        self._data += data

    def result(self) -> Weights:
        shape = self._tensor.stored_shape
        values = dequantize(self._tensor.block_format, bytes(self._data), math.prod(shape)).reshape(shape)
        return transformed(values, self._tensor.transforms, numbers=True).astype(np.float32, copy=False)


class SharedWriter:
    """Stands for a tensor that is in memory already."""

    def __init__(self, matrices: Matrices) -> None:
        self._matrices = matrices

    def write(self, data: memoryview, *, ends: bool) -> None:
        pass

    def result(self) -> Weights:
        return self._matrices


def writer_for(tensor: TensorInfo, shared: Matrices | None) -> Writer:
    """shared: what was made of the same tensor already."""
    if tensor.is_numbers:
        return NumbersWriter(tensor)
    if shared is not None:
        return SharedWriter(shared)
    return TransformedMatrixWriter(tensor) if tensor.transforms else MatrixWriter(tensor)
