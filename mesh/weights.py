"""Weights in transit: the pieces in which a unit of a model file is sent."""

from collections.abc import Iterable
from typing import NamedTuple

from dairllm.mesh.errors import InvalidRequest

PIECE_BYTES = 1024**2


class UnitPiece(NamedTuple):
    """offset_bytes: in the unit, whose tensors follow one another without a gap. file_offset_bytes: in the file of this index."""

    offset_bytes: int
    file_index: int
    file_offset_bytes: int
    size_bytes: int


def pieces_of(tensors: Iterable[tuple[int, int, int]], from_bytes: int) -> list[UnitPiece]:
    """What is left of a unit from this offset on, in order; no piece reaches from one tensor into the next.

    tensors: (index of the file, offset in it, size), in bytes. Raises InvalidRequest if the unit ends before the offset.
    """
    pieces, tensor_start = [], 0
    for file_index, file_offset, size in tensors:
        for start in range(max(from_bytes - tensor_start, 0), size, PIECE_BYTES):
            pieces.append(UnitPiece(tensor_start + start, file_index, file_offset + start, min(PIECE_BYTES, size - start)))
        tensor_start += size
    if from_bytes > tensor_start:
        raise InvalidRequest(f"offset_bytes is {from_bytes}; the unit has {tensor_start} bytes", "offset_bytes")
    return pieces
