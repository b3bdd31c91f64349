"""Stacks: matrices of many experts or heads in one memory."""

import numpy as np
import pytest

from dairllm.kernels_pyx import PackedStack, dequantize, quantize_q8_0


@pytest.mark.parametrize("outputs", [1, 16, 33])
def test_a_stack_holds_each_matrix(outputs: int) -> None:
    values = np.random.default_rng(0).standard_normal((3, outputs, 64)).astype(np.float32)
    stack = PackedStack("Q8_0", 3, outputs, 64)
    for expert in (2, 0, 1):
        data = quantize_q8_0(values[expert].reshape(-1))
        first = min(16, outputs) * 68
        stack.pack_rows(expert, 0, data[:first])
        if outputs > 16:
            stack.pack_rows(expert, 16, data[first:])
    for expert in range(3):
        expected = dequantize("Q8_0", quantize_q8_0(values[expert].reshape(-1)), outputs * 64)
        assert stack.dequantize_rows(expert).reshape(-1).tolist() == expected.tolist()
    assert stack.size_bytes == 3 * ((outputs + 15) // 16) * 16 * 68
    assert (stack.num_matrices, stack.outputs, stack.inputs, stack.block_format) == (3, outputs, 64, "Q8_0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Q4_0", 0, 16, 32), "num_matrices is 0"),
        (("Q4_0", 2, 0, 32), "outputs is 0"),
        (("Q4_0", 2, 16, 31), "multiple of 32"),
        (("Q4_0", 1 << 20, 1 << 20, 32), "num_matrices x outputs is 1099511627776"),
    ],
)
def test_impossible_stacks_are_refused(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedStack(*arguments)


@pytest.mark.parametrize(
    ("expert", "first_row", "num_bytes", "message"),
    [
        (2, 0, 40 * 18, "index is 2, expected 0 to 1"),
        (-1, 0, 40 * 18, "index is -1"),
        (0, 0, 17, "data has 17 bytes"),
        (0, 8, 16 * 18, "multiple of 16"),
        (0, 32, 16 * 18, "do not fit"),
        (0, 0, 15 * 18, "data has 15 rows"),
    ],
)
def test_rows_that_do_not_fit_a_stack_are_refused(expert: int, first_row: int, num_bytes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedStack("Q4_0", 2, 40, 32).pack_rows(expert, first_row, bytes(num_bytes))
