"""Matrices in memory that somebody else counts."""

import numpy as np
import pytest

from dairllm.kernels_pyx import BLOCK_FORMATS, PackedMatrix, PackedStack, WeightMemory

OUTPUTS, INPUTS = 40, 256


def stored_rows(block_format: str, rows: int, seed: int) -> bytes:
    """Bytes of which two are an ordinary number, wherever a scale may stand."""
    _, block_size, block_bytes = BLOCK_FORMATS[block_format]
    generator = np.random.default_rng(seed)
    return generator.integers(0x28, 0x34, (rows, INPUTS // block_size * block_bytes), dtype=np.uint8).tobytes()


@pytest.mark.parametrize("block_format", ["Q4_0", "Q6_K", "F16"])
def test_matrices_at_an_offset_are_as_those_with_memory_of_their_own(block_format: str) -> None:
    """And what is packed over them is what they are from then on."""
    own = PackedMatrix(block_format, OUTPUTS, INPUTS)
    memory = WeightMemory(2 * own.size_bytes + 64)
    first = PackedMatrix(block_format, OUTPUTS, INPUTS, memory=memory)
    second = PackedMatrix(block_format, OUTPUTS, INPUTS, memory=memory, offset_bytes=-(-own.size_bytes // 64) * 64)
    same_place = PackedMatrix(block_format, OUTPUTS, INPUTS, memory=memory)
    x = np.random.default_rng(1).standard_normal((3, INPUTS)).astype(np.float32)
    for seed, matrices in ((2, (first, same_place)), (3, (second,)), (4, (first, same_place))):
        data = stored_rows(block_format, OUTPUTS, seed)
        own.pack_rows(0, data)
        matrices[0].pack_rows(0, data)
        for matrix in matrices:
            np.testing.assert_array_equal(matrix.matmul(x), own.matmul(x))


def test_stacks_lie_there_too_and_keep_the_memory() -> None:
    own = PackedStack("Q4_0", 3, OUTPUTS, INPUTS)
    there = PackedStack("Q4_0", 3, OUTPUTS, INPUTS, memory=WeightMemory(own.size_bytes + 128), offset_bytes=128)
    for index in range(3):
        data = stored_rows("Q4_0", OUTPUTS, index)
        own.pack_rows(index, 0, data)
        there.pack_rows(index, 0, data)
    for index in range(3):
        np.testing.assert_array_equal(there.dequantize_rows(index), own.dequantize_rows(index))


def test_places_outside_are_refused() -> None:
    size_bytes = PackedMatrix("F32", OUTPUTS, INPUTS).size_bytes
    memory = WeightMemory(size_bytes + 64)
    for offset_bytes in (-64, 1, 63, 128, 1 << 50):
        words = f"offset_bytes is {offset_bytes}, expected a multiple of 64 with {size_bytes} bytes behind it"
        with pytest.raises(ValueError, match=words):
            PackedMatrix("F32", OUTPUTS, INPUTS, memory=memory, offset_bytes=offset_bytes)
    for size in (0, -1, 1 << 60):
        with pytest.raises(ValueError, match=f"size_bytes is {size}, expected 1 to"):
            WeightMemory(size)
