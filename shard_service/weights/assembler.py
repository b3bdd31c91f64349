"""Turning the bytes of a unit, in whatever pieces they come, into packed matrices and numbers, while their digest is computed.

Only a few rows are held besides the packed weights, or one matrix whose values are moved, so loading needs hardly more memory than the
weights themselves.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dairllm.mesh.errors import WeightsDiffer
from dairllm.model_files.manifest import TensorInfo, Unit
from dairllm.shard_service.weights.writers import Matrices, Weights, writer_for

FindMatrix = Callable[[TensorInfo], Matrices | None]


@dataclass(frozen=True, slots=True)
class LoadedUnit:
    """Weights by role, verified against `facts.digest`. Matrices may be shared with another unit of the same model."""

    facts: Unit
    model_digest: bytes
    weights: Mapping[str, Weights]

    def matrix_of(self, tensor: TensorInfo) -> Matrices | None:
        """What was made of exactly this tensor of the files, if this unit has it."""
        for own in self.facts.tensors:
            if own.place == tensor.place and not own.is_numbers:
                weights = self.weights[own.role]
                return None if isinstance(weights, np.ndarray) else weights
        return None


class UnitAssembler:
    """Takes the unit's bytes through `hash` and `pack`, each of which gets every piece in order, possibly from two threads at once.

    find_shared: gives the matrix of a tensor that is in memory already (tied embeddings), which is then hashed but not packed again.
    """

    def __init__(self, unit: Unit, model_digest: bytes, find_shared: FindMatrix) -> None:
        self._unit = unit
        self._model_digest = model_digest
        self._digest = hashlib.sha256()
        self._writers = [writer_for(tensor, None if tensor.is_numbers else find_shared(tensor)) for tensor in unit.tensors]
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


def share_matrix(one: Unit, other: Unit) -> bool:
    """Whether a matrix of one is a matrix of the other."""
    return bool({tensor.place for tensor in one.tensors if not tensor.is_numbers} & {tensor.place for tensor in other.tensors})
