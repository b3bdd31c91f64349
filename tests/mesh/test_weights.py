"""The pieces in which a unit's weights are sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh import weights
from dairllm.mesh.errors import InvalidRequest
from dairllm.mesh.weights import PIECE_BYTES, UnitPiece, pieces_of


def test_a_unit_goes_in_pieces_that_end_with_its_tensors() -> None:
    tensors = [(1, 100, PIECE_BYTES + 1), (0, 5, 3)]
    assert pieces_of(tensors, 0) == [
        UnitPiece(0, 1, 100, PIECE_BYTES),
        UnitPiece(PIECE_BYTES, 1, 100 + PIECE_BYTES, 1),
        UnitPiece(PIECE_BYTES + 1, 0, 5, 3),
    ]


@given(st.lists(st.binary(max_size=30), max_size=5), st.data())
def test_what_is_left_from_any_byte_on_comes_in_order_and_once(contents: list[bytes], data: st.DataObject) -> None:
    unit = b"".join(contents)
    from_bytes = data.draw(st.integers(0, len(unit)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "PIECE_BYTES", 7)
        # In the file the tensors lie in the opposite order, with a gap between them.
        file = b""
        tensors: list[tuple[int, int, int]] = []
        for content in reversed(contents):
            tensors.insert(0, (0, len(file), len(content)))
            file += content + b"gap"
        pieces = pieces_of(tensors, from_bytes)
    assert b"".join(file[piece.file_offset_bytes :][: piece.size_bytes] for piece in pieces) == unit[from_bytes:]
    position = from_bytes
    for piece in pieces:
        assert (piece.offset_bytes, piece.size_bytes <= 7) == (position, True)
        position += piece.size_bytes


def test_nothing_lies_behind_a_unit() -> None:
    assert pieces_of([(0, 0, 8)], 8) == []
    with pytest.raises(InvalidRequest, match="offset_bytes is 9; the unit has 8 bytes"):
        pieces_of([(0, 0, 8)], 9)
