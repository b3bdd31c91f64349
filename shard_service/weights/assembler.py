"""Turning the bytes of a unit, in whatever pieces they come, into packed matrices and vectors, while their digest is computed.

Only a few rows are held besides the packed weights, so loading needs hardly more memory than the weights themselves.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import PackedMatrix, dequantize
from dairllm.mesh.errors import WeightsDiffer
from dairllm.model_files.manifest import TensorInfo, Unit
from dairllm.model_files.memory import TILE_ROWS

Weights = PackedMatrix | npt.NDArray[np.float32]
FindMatrix = Callable[[TensorInfo], PackedMatrix | None]


@dataclass(frozen=True, slots=True)
class LoadedUnit:
    """Weights by role, verified against `facts.digest`. Matrices may be shared with another unit of the same model."""

    facts: Unit
    model_digest: bytes
    weights: Mapping[str, Weights]

    def matrix_of(self, tensor: TensorInfo) -> PackedMatrix | None:
        """The matrix made from exactly this tensor of the file, if this unit has it."""
        for own in self.facts.tensors:
            if own.place == tensor.place:
                weights = self.weights[own.role]
                return weights if isinstance(weights, PackedMatrix) else None
        return None


class UnitAssembler:
    """Takes the unit's bytes through `hash` and `pack`, each of which gets every piece in order, possibly from two threads at once.

    find_shared: gives the matrix of a tensor that is in memory already (tied embeddings), which is then hashed but not packed again.
    """

    def __init__(self, unit: Unit, model_digest: bytes, find_shared: FindMatrix) -> None:
        self._unit = unit
        self._model_digest = model_digest
        self._digest = hashlib.sha256()
        self._writers = [_writer_for(tensor, find_shared) for tensor in unit.tensors]
        self._tensor_number = 0
        self._left_bytes = unit.tensors[0].size_bytes

    def hash(self, data: bytes) -> None:
        self._digest.update(data)

    def pack(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            taken = view[: self._left_bytes]
            self._left_bytes -= len(taken)
            self._writers[self._tensor_number].write(taken, ends=not self._left_bytes)
            view = view[len(taken) :]
            self._go_on()

    def finish(self) -> LoadedUnit:
        """Raises WeightsDiffer unless the bytes were those of the manifest."""
        found = self._digest.digest()
        if found != self._unit.digest:
            raise WeightsDiffer(f"unit {self._unit.index} has the digest {found.hex()[:16]}…; expected {self._unit.digest.hex()[:16]}…")
        weights = {tensor.role: writer.result() for tensor, writer in zip(self._unit.tensors, self._writers, strict=True)}
        return LoadedUnit(self._unit, self._model_digest, weights)

    def _go_on(self) -> None:
        if not self._left_bytes and self._tensor_number + 1 < len(self._unit.tensors):
            self._tensor_number += 1
            self._left_bytes = self._unit.tensors[self._tensor_number].size_bytes


class _MatrixWriter:
    """Packs whole tiles of 16 rows and keeps what is left over for the next piece."""

    def __init__(self, tensor: TensorInfo) -> None:
        outputs, inputs = tensor.shape
        self._matrix = PackedMatrix(tensor.block_format, outputs, inputs)
        self._row_bytes = tensor.row_bytes
        self._next_row = 0
        self._left_over = b""

    def write(self, data: memoryview, *, ends: bool) -> None:
        if self._left_over:
            data = memoryview(self._left_over + data)
        rows = len(data) // self._row_bytes
        if not ends:
            rows -= rows % TILE_ROWS
        if rows:
            self._matrix.pack_rows(self._next_row, data[: rows * self._row_bytes])
        self._next_row += rows
        self._left_over = bytes(data[rows * self._row_bytes :])

    def result(self) -> Weights:
        return self._matrix


class _VectorWriter:
    def __init__(self, tensor: TensorInfo) -> None:
        self._tensor = tensor
        self._data = bytearray()

    def write(self, data: memoryview, *, ends: bool) -> None:
        self._data += data

    def result(self) -> Weights:
        return dequantize(self._tensor.block_format, bytes(self._data), self._tensor.shape[0])


class _SharedMatrix:
    """Stands for a tensor that is in memory already."""

    def __init__(self, matrix: PackedMatrix) -> None:
        self._matrix = matrix

    def write(self, data: memoryview, *, ends: bool) -> None:
        pass

    def result(self) -> Weights:
        return self._matrix


def share_matrix(one: Unit, other: Unit) -> bool:
    """Whether a matrix of one is a matrix of the other."""
    return bool({tensor.place for tensor in one.tensors if tensor.is_matrix} & {tensor.place for tensor in other.tensors})


def _writer_for(tensor: TensorInfo, find_shared: FindMatrix) -> _MatrixWriter | _VectorWriter | _SharedMatrix:
    if not tensor.is_matrix:
        return _VectorWriter(tensor)
    shared = find_shared(tensor)
    return _MatrixWriter(tensor) if shared is None else _SharedMatrix(shared)
