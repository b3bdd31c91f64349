"""Transforms: what must be stored for a shape gives that shape, and the values are those that were meant."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.model_files.transforms import TRANSFORMS, stored_shape, transformed

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
NAMES = st.lists(st.sampled_from(sorted(TRANSFORMS.keys() - {"mxfp4_blocks"})), max_size=4).map(tuple)


@given(SHAPES, NAMES)
def test_what_must_be_stored_gives_the_shape(shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    numbers = len(shape) == 1
    if numbers:
        names = tuple(name for name in names if name not in ("transpose", "mxfp4_blocks"))
    stored = np.ones(stored_shape(shape, names, numbers=numbers), np.float32)
    result = transformed(stored, names, numbers=numbers)
    assert result.shape == shape
    assert result.flags.c_contiguous


def test_values() -> None:
    stack = np.arange(24.0).reshape(2, 3, 4)
    assert transformed(stack, ("transpose", "odd_rows"), numbers=False).tolist() == stack.transpose(0, 2, 1)[:, 1::2].tolist()
    assert transformed(stack[0], ("even_rows",), numbers=True).tolist() == stack[0][:, ::2].tolist()
    assert transformed(np.zeros(2), ("plus_one", "negative_exp"), numbers=True) == pytest.approx([-np.e, -np.e])


def test_blocks_and_exponents_become_blocks_of_gguf() -> None:
    """Two rows of 64 values: four blocks of 16 bytes with values 0 to 15 by turns, then their exponents."""
    values = np.arange(2 * 64) % 16
    pairs = (values[::2] | values[1::2] << 4).astype(np.uint8)
    exponents = np.array([120, 121, 122, 123], np.uint8)
    stored = np.concatenate([pairs, exponents]).reshape(2, 34)
    blocks = transformed(stored, ("mxfp4_blocks",), numbers=False).reshape(4, 17)
    assert blocks[:, 0].tolist() == exponents.tolist()
    for block, expected in zip(blocks[:, 1:], values.reshape(4, 32), strict=True):
        assert [*(block & 15), *(block >> 4)] == expected.tolist()
