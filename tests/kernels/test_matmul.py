"""Matrix kernels: right against float64, the same bits on every instruction set, in every batch."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dairllm.kernels_pyx import BLOCK_FORMATS, PackedMatrix, dequantize, optimization_info
from tests.block_data import QUANTISED, SCALES, decode, random_blocks, super_blocks
from tests.kernels.computing import instruction_set

ROW_COUNTS = (0, 1, 2, 3, 5, 8, 16, 17, 33)


def random_weights(block_format: str, outputs: int, inputs: int, seed: int = 1) -> bytes:
    """Weights in GGUF layout: any quants, scales and numbers of ordinary size and both signs."""
    generator = np.random.default_rng(seed)
    layout = BLOCK_FORMATS[block_format]
    numbers = generator.standard_normal(outputs * inputs).astype(np.float32)
    if block_format == "F32":
        return numbers.tobytes()
    if block_format == "F16":
        return numbers.astype(np.float16).tobytes()
    if block_format == "BF16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return random_blocks(block_format, outputs * inputs // layout.block_size, generator).tobytes()


def packed(block_format: str, outputs: int, inputs: int, data: bytes) -> PackedMatrix:
    matrix = PackedMatrix(block_format, outputs, inputs)
    matrix.pack_rows(0, data)
    return matrix


def activations(rows: int, inputs: int, seed: int = 2) -> NDArray[np.float32]:
    """Mostly ordinary numbers with a few huge ones and a block of zeros, as residual streams have them."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, inputs)).astype(np.float32)
    x[:, ::29] *= 300
    x[::2, :32] = 0
    return x


def quantised_activations(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the int8 of the activations stand for, by the rule in the documentation of `matmul`."""
    blocks = x.reshape(x.shape[0], x.shape[1] // 32, 32)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale >= np.finfo(np.float32).tiny)
    scale = np.where(inverse > 0, scale, np.float32(0))
    seen: NDArray[np.float64] = np.rint(blocks * inverse).astype(np.float64) * scale
    return seen.reshape(x.shape)


def reference(block_format: str, data: bytes, outputs: int, x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The result in float64, and the sum of magnitudes that float32 rounding errors are measured by (weights as at least 1:
    a scale's and a minimum's part are rounded each, and may cancel)."""
    decoded = decode(block_format, data) if block_format in QUANTISED else dequantize(block_format, data, outputs * x.shape[1])
    weights = decoded.reshape(outputs, -1).astype(np.float64)
    seen = quantised_activations(x) if block_format in QUANTISED else x.astype(np.float64)
    return seen @ weights.T, np.abs(seen) @ np.maximum(np.abs(weights), 1).T


@pytest.mark.parametrize("block_format", BLOCK_FORMATS)
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("inputs", [32, 64, 96])
def test_equals_float64_reference(isa: str, block_format: str, outputs: int, inputs: int) -> None:
    inputs = super_blocks(block_format, inputs)
    data = random_weights(block_format, outputs, inputs)
    matrix = packed(block_format, outputs, inputs, data)
    for rows in ROW_COUNTS:
        x = activations(rows, inputs)
        expected, magnitude = reference(block_format, data, outputs, x)
        result = matrix.matmul(x)
        assert result.shape == (rows, outputs)
        assert result.dtype == np.float32
        assert np.all(np.abs(result - expected) <= 3e-6 * magnitude)


@pytest.mark.parametrize("block_format", BLOCK_FORMATS)
def test_every_isa_gives_the_bits_of_scalar(isa: str, block_format: str) -> None:
    outputs, inputs = 83, 2048
    matrix = packed(block_format, outputs, inputs, random_weights(block_format, outputs, inputs))
    for rows in (1, 2, 3, 4, 5, 6, 7, 9, 14, 16, 31, 40):
        x = activations(rows, inputs, seed=rows)
        assert matrix.matmul(x).tobytes() == by_scalar(matrix, x).tobytes()


def by_scalar(matrix: PackedMatrix, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with instruction_set("scalar"):
        return matrix.matmul(x)


@pytest.mark.parametrize("block_format", QUANTISED)
@given(seed=st.integers(0, 1 << 32), outputs=st.integers(1, 20), rows=st.integers(1, 20), super_count=st.integers(1, 20))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bits_give_those_of_scalar(isa: str, block_format: str, seed: int, outputs: int, rows: int, super_count: int) -> None:
    """Infinite, broken and subnormal scales, too: where a NaN results, it is a NaN everywhere."""
    generator = np.random.default_rng(seed)
    inputs = super_count * BLOCK_FORMATS[block_format].block_size
    data = generator.bytes(outputs * super_count * BLOCK_FORMATS[block_format].block_bytes)
    matrix = packed(block_format, outputs, inputs, data)
    x = activations(rows, inputs, seed=seed)
    result, expected = matrix.matmul(x), by_scalar(matrix, x)
    assert np.array_equal(np.isnan(result), np.isnan(expected))
    assert np.where(np.isnan(result), 0, result).tobytes() == np.where(np.isnan(expected), 0, expected).tobytes()


@pytest.mark.parametrize("block_format", BLOCK_FORMATS)
def test_row_does_not_depend_on_its_batch(isa: str, block_format: str) -> None:
    outputs, inputs = 50, 4352  # several sweeps of rows, of inputs and of tiles; the last ones are ragged
    matrix = packed(block_format, outputs, inputs, random_weights(block_format, outputs, inputs))
    x = activations(150, inputs)
    together = matrix.matmul(x)
    for row in (0, 1, 15, 16, 17, 99, 149):
        assert matrix.matmul(x[row : row + 1]).tobytes() == together[row].tobytes()
    for first, end in ((0, 7), (3, 20), (100, 150)):
        assert matrix.matmul(x[first:end]).tobytes() == together[first:end].tobytes()


def uniform_block(block_format: str, bits: int) -> bytes:
    """A block all of whose bytes are `bits`, but for scales of 1."""
    block = np.full(BLOCK_FORMATS[block_format].block_bytes, bits, np.uint8)
    if block_format == "MXFP4":
        block[0] = 128
    else:
        for at in SCALES[block_format].at:
            block[at : at + 2] = np.array([1], np.float16).view(np.uint8)
    return block.tobytes()


@pytest.mark.parametrize("block_format", QUANTISED)
@pytest.mark.parametrize("bits", [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0, 0x55, 0xAA])
@pytest.mark.parametrize("rows", [1, 7])
def test_integer_dot_products_are_exact_at_the_extremes(isa: str, block_format: str, bits: int, rows: int) -> None:
    """Weights and scales at their ends, all activations of a block of 32 at 127 of one sign: no intermediate sum may saturate or round."""
    inputs = super_blocks(block_format, 64)
    data = uniform_block(block_format, bits) * (16 * inputs // BLOCK_FORMATS[block_format].block_size)
    weights = decode(block_format, data).reshape(16, inputs).astype(np.float64)
    matrix = packed(block_format, 16, inputs, data)
    for first in range(0, inputs, 32):
        for sign in (1, -1):
            x = np.zeros((rows, inputs), np.float32)
            x[:, first : first + 32] = sign * 127
            assert np.array_equal(matrix.matmul(x), x.astype(np.float64) @ weights.T)


@pytest.mark.parametrize("block_format", QUANTISED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_activation_shows_in_its_row_only(isa: str, block_format: str, bad: float) -> None:
    inputs = super_blocks(block_format, 64)
    matrix = packed(block_format, 17, inputs, random_weights(block_format, 17, inputs))
    x = activations(5, inputs)
    clean = matrix.matmul(x)
    x[2, 40] = bad
    result = matrix.matmul(x)
    assert np.isnan(result[2]).all()
    others = [0, 1, 3, 4]
    assert result[others].tobytes() == clean[others].tobytes()


@pytest.mark.parametrize("block_format", QUANTISED)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 2e-36, 1e36])
def test_activations_at_the_ends_of_the_range(isa: str, block_format: str, size: float) -> None:
    inputs = super_blocks(block_format, 32)
    data = random_weights(block_format, 16, inputs)
    x = np.full((1, inputs), size, np.float32)
    expected, magnitude = reference(block_format, data, 16, x)
    assert np.all(np.abs(packed(block_format, 16, inputs, data).matmul(x) - expected) <= 3e-6 * magnitude)


def test_strided_input_and_other_dtypes() -> None:
    matrix = packed("F32", 3, 4, random_weights("F32", 3, 4))
    x = activations(8, 8)
    assert np.array_equal(matrix.matmul(x[::2, ::2]), matrix.matmul(np.ascontiguousarray(x[::2, ::2])))
    with pytest.raises(ValueError, match="float32, got 2 dimensions of float64"):
        matrix.matmul(np.zeros((1, 4)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("block_format", "outputs", "inputs", "message"),
    [
        ("Q4_0", 16, 0, "inputs is 0, expected 1 to"),
        ("Q4_0", 16, 31, "inputs is 31, expected a multiple of 32"),
        ("Q8_0", 16, 33, "inputs is 33, expected a multiple of 32"),
        ("Q4_1", 0, 32, "outputs is 0, expected 1 to"),
        ("F16", -1, 32, "outputs is -1, expected 1 to"),
        ("F32", 1 << 40, 32, "outputs is 1099511627776, expected 1 to"),
        ("Q4_K", 16, 32, "inputs is 32, expected a multiple of 256, the block of Q4_K"),
        ("IQ2_S", 16, 256, "unknown block format 'IQ2_S', expected one of F32, F16, BF16, Q4_0, Q4_1, Q5_0"),
    ],
)
def test_impossible_matrices_are_refused(block_format: str, outputs: int, inputs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedMatrix(block_format, outputs, inputs)


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="x has 32 columns, expected 64"):
        PackedMatrix("Q4_0", 16, 64).matmul(np.zeros((1, 32), np.float32))


@pytest.mark.parametrize("block_format", BLOCK_FORMATS)
def test_packing_in_pieces_and_taking_rows_out(block_format: str) -> None:
    outputs, inputs = 50, super_blocks(block_format, 64)
    data = random_weights(block_format, outputs, inputs)
    row_bytes = len(data) // outputs
    matrix = PackedMatrix(block_format, outputs, inputs)
    assert matrix.size_bytes == 64 * row_bytes
    matrix.pack_rows(32, data[32 * row_bytes :])
    matrix.pack_rows(0, memoryview(data)[: 32 * row_bytes])
    expected = dequantize(block_format, data, outputs * inputs).reshape(outputs, inputs)
    ids = np.array([49, 0, 17, 17, 31], np.int32)
    assert np.array_equal(matrix.dequantize_rows(ids), expected[ids])
    assert matrix.dequantize_rows(np.array([], np.int32)).shape == (0, inputs)


@pytest.mark.parametrize(
    ("first_row", "num_bytes", "message"),
    [
        (0, 0, "data has 0 bytes, expected a positive multiple of a row's 18"),
        (0, 17, "data has 17 bytes"),
        (8, 16 * 18, "first_row must be a multiple of 16"),
        (-16, 16 * 18, "first_row must be a multiple of 16"),
        (32, 16 * 18, "do not fit"),
        (0, 15 * 18, "data has 15 rows, expected a multiple of 16 unless they end the matrix of 40 rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(first_row: int, num_bytes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedMatrix("Q4_0", 40, 32).pack_rows(first_row, bytes(num_bytes))


@pytest.mark.parametrize("ids", [[-1], [40], [0, 1 << 31]])
def test_rows_outside_the_matrix_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 0 to 39"):
        PackedMatrix("Q4_0", 40, 32).dequantize_rows(np.array(ids, np.int64))


def test_threads_may_multiply_at_once() -> None:
    matrix = packed("Q4_0", 320, 512, random_weights("Q4_0", 320, 512))
    x = activations(20, 512)
    expected = matrix.matmul(x).tobytes()
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.extend(matrix.matmul(x).tobytes() for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 40


def import_with_cap(cap: str) -> subprocess.CompletedProcess[str]:
    program = "from dairllm.kernels_pyx import optimization_info as info; print(info()['isa'], info()['isa_cap'])"
    environment = {**os.environ, "DAIRLLM_ISA": cap}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_environment_caps_the_instruction_set() -> None:
    available = optimization_info()["isa_available"]
    assert isinstance(available, list)
    assert import_with_cap("scalar").stdout.split() == ["scalar", "scalar"]
    assert import_with_cap("avx512vnni").stdout.split() == [available[-1], "avx512vnni"]
    assert import_with_cap("").stdout.split() == [available[-1], "None"]


def test_unknown_instruction_set_is_refused_at_import() -> None:
    result = import_with_cap("sse9")
    assert result.returncode != 0
    assert "DAIRLLM_ISA is 'sse9', expected scalar, avx2, avxvnni, avx512vnni, neon, neondot or neoni8mm" in result.stderr
