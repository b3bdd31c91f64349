"""Block formats against the gguf package, and conversions of numbers against numpy."""

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dairllm.kernels_pyx import (
    BLOCK_FORMATS,
    BlockFormat,
    decode_rows,
    dequantize,
    encode_rows,
    quantize_q4_0,
    quantize_q8_0,
    quantize_rows,
)
from tests.block_data import QUANTISED, decode, random_blocks

ORDINARY = st.floats(-1e4, 1e4, width=32)
BLOCKS = hnp.arrays(np.float32, st.integers(1, 4).map(lambda n: 32 * n), elements=ORDINARY)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_block_sizes_are_those_of_gguf(name: str) -> None:
    assert BLOCK_FORMATS[name] == BlockFormat(name, *GGML_QUANT_SIZES[GGMLQuantizationType[name]])


@pytest.mark.parametrize("name", QUANTISED)
def test_dequantize_equals_gguf(name: str) -> None:
    blocks = random_blocks(name, 300, np.random.default_rng(3))
    expected = decode(name, blocks)
    assert np.array_equal(dequantize(name, blocks.tobytes(), expected.size), expected)


@pytest.mark.parametrize("name", QUANTISED)
@given(data=st.data())
def test_any_bits_dequantize_as_in_gguf(name: str, data: st.DataObject) -> None:
    """Infinite and broken scales, too."""
    size = BLOCK_FORMATS[name].block_bytes
    block = data.draw(st.binary(min_size=size, max_size=size))
    expected = decode(name, block)
    assert np.array_equal(dequantize(name, block, expected.size), expected, equal_nan=True)


def test_every_exponent_of_mxfp4() -> None:
    blocks = np.full((256, 17), 0x21, np.uint8)
    blocks[:, 0] = np.arange(256)
    assert np.array_equal(dequantize("MXFP4", blocks.tobytes(), 256 * 32), decode("MXFP4", blocks))


def test_every_f16_and_bf16_dequantizes_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    f16 = dequantize("F16", bits.tobytes(), bits.size)
    expected = bits.view(np.float16).astype(np.float32)
    numbers = ~np.isnan(expected)
    assert f16[numbers].tobytes() == expected[numbers].tobytes()
    assert np.isnan(f16[~numbers]).all()
    assert dequantize("BF16", bits.tobytes(), bits.size).view(np.uint32).tolist() == (bits.astype(np.uint32) << 16).tolist()


def test_every_finite_f16_survives_the_wire(isa: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[np.isfinite(halves.view(np.float16))]
    numbers = halves.view(np.float16).astype(np.float32)[np.newaxis]
    encoded = encode_rows(numbers, "F16")
    assert encoded == halves.tobytes()
    assert decode_rows(encoded, 1, numbers.size, "F16").tobytes() == numbers.tobytes()


@given(hnp.arrays(np.uint32, st.integers(1, 40)))
def test_f16_rounds_like_numpy(bits: NDArray[np.uint32]) -> None:
    numbers = bits.view(np.float32)
    numbers = np.where(np.isnan(numbers), np.float32(0), numbers)
    expected = np.clip(numbers, -65504, 65504).astype(np.float16)
    assert encode_rows(numbers[np.newaxis], "F16") == expected.tobytes()


def test_f16_rounds_like_numpy_near_every_boundary(isa: str) -> None:
    """Just below, at and above the middle of every two neighbouring f16 numbers, where rounding decides."""
    halves = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    above = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves + above) / np.float32(2)
    numbers = np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e6)), -middle])
    assert encode_rows(numbers[np.newaxis], "F16") == numbers.astype(np.float16).tobytes()


@given(BLOCKS)
def test_q8_0_error_is_half_a_step(x: NDArray[np.float32]) -> None:
    data = quantize_q8_0(x)
    assert len(data) == x.size // 32 * 34
    step = np.abs(x).reshape(-1, 32).max(axis=1, keepdims=True) / 127
    error = np.abs(dequantize("Q8_0", data, x.size) - x).reshape(-1, 32)
    assert np.all(error <= step * (0.5 + 127 * 2**-11) + 127 * 2**-25)  # plus the rounding of the scale to f16


@given(BLOCKS)
def test_q4_0_error_is_a_step(x: NDArray[np.float32]) -> None:
    data = quantize_q4_0(x)
    assert len(data) == x.size // 32 * 18
    step = np.abs(x).reshape(-1, 32).max(axis=1, keepdims=True) / 8
    error = np.abs(dequantize("Q4_0", data, x.size) - x).reshape(-1, 32)
    assert np.all(error <= step * (1 + 8 * 2**-11) + 8 * 2**-25)  # -8..7: the far side is cut by up to a step


@pytest.mark.parametrize(("name", "quantize"), [("Q8_0", quantize_q8_0), ("Q4_0", quantize_q4_0)])
def test_quantize_gives_the_bytes_of_gguf(isa: str, name: str, quantize: Callable[[NDArray[np.float32]], bytes]) -> None:
    x = np.random.default_rng(4).standard_normal(32 * 500).astype(np.float32)
    expected = quants.quantize(x.reshape(500, 32), GGMLQuantizationType[name]).tobytes()
    assert quantize(x) == expected


def test_quantize_rounds_half_to_even(isa: str) -> None:
    x = np.zeros(32, np.float32)
    x[:6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]
    assert np.frombuffer(quantize_q8_0(x)[2:], np.int8)[:6].tolist() == [127, 0, 2, 2, 0, -2]


SUPER_BLOCKS = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(256)), elements=st.floats(-1e3, 1e3, width=32))


def test_quantize_rows_is_quantize() -> None:
    x = np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32)
    assert quantize_rows("Q8_0", x) == quantize_q8_0(x.reshape(-1))
    assert quantize_rows("Q4_0", x) == quantize_q4_0(x.reshape(-1))
    assert quantize_rows("Q4_K", np.zeros((0, 256), np.float32)) == b""


@given(SUPER_BLOCKS)
def test_q4_k_error_is_a_step(x: NDArray[np.float32]) -> None:
    """Of the widest sub-block, or few: its scale is the unit of the others' scales, and the lowest number that of the minima.

    Both units are f16, and are known to half of the smallest one, 2^-24.
    """
    data = quantize_rows("Q4_K", x)
    assert len(data) == x.size // 256 * 144
    blocks = x.reshape(-1, 8, 32)
    width = (blocks.max(axis=2) - np.minimum(blocks.min(axis=2), 0)).max(axis=1, keepdims=True)
    lowest = -np.minimum(blocks.min(axis=(1, 2)), 0)[:, np.newaxis]
    error = np.abs(decode("Q4_K", data).reshape(-1, 256) - x.reshape(-1, 256))
    assert np.all(error <= width / 4 + lowest / 32 + 63 * (15 + 1) * 2.0**-25)


def test_q4_k_keeps_what_it_can_hold() -> None:
    """Numbers that lie on the lines of a block come back: minima, scales and nibbles are all found."""
    generator = np.random.default_rng(7)
    scales, minima = generator.integers(20, 64, (8, 1)), generator.integers(0, 64, (8, 1))
    scales[0], minima[0] = 63, 63
    quants = generator.integers(0, 16, (8, 32))
    quants[:, 0], quants[:, 1] = 0, 15
    x = (quants * scales * 0.0078125 - minima * 0.03125).astype(np.float32).reshape(1, 256)
    assert np.abs(decode("Q4_K", quantize_rows("Q4_K", x)) - x).max() < 0.02


def test_q4_k_is_closer_than_q4_0() -> None:
    x = np.random.default_rng(6).standard_normal((64, 512)).astype(np.float32)
    errors = {name: np.square(decode(name, quantize_rows(name, x)) - x.reshape(-1)).mean() for name in ("Q8_0", "Q4_0", "Q4_K")}
    assert errors["Q8_0"] < errors["Q4_K"] / 50
    assert errors["Q4_K"] < 0.75 * errors["Q4_0"]


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30, 5e-8, -3.0, 65504.0, -65504.0])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_K"])
def test_equal_numbers_quantise_to_nearly_themselves(name: str, value: float) -> None:
    decoded = decode(name, quantize_rows(name, np.full((1, 256), value, np.float32)))
    assert np.all(np.abs(decoded - value) <= abs(value) * 0.01 + 1e-6)


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("Q6_K", np.zeros((1, 256), np.float32), "cannot be quantised to 'Q6_K', expected one of Q8_0, Q4_0, Q4_K"),
        ("Q4_K", np.zeros((1, 255), np.float32), "rows of 255 numbers, expected a multiple of 256"),
        ("Q4_K", np.zeros(256, np.float32), "2-dimensional array of float32, got 1"),
        ("Q4_K", np.full((1, 256), np.nan, np.float32), "beyond 65504 or a NaN"),
        ("Q4_0", np.full((1, 32), 65505, np.float32), "beyond 65504 or a NaN"),
    ],
)
def test_quantize_rows_refuses(name: str, x: NDArray[np.float32], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_rows(name, x)


@pytest.mark.parametrize("quantize", [quantize_q8_0, quantize_q4_0])
def test_partial_blocks_are_refused(quantize: Callable[[NDArray[np.float32]], bytes]) -> None:
    with pytest.raises(ValueError, match="x has 33 numbers, expected a multiple of 32"):
        quantize(np.zeros(33, np.float32))
    assert quantize(np.zeros(0, np.float32)) == b""


def test_q4_0_refuses_what_no_scale_can_hold() -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        quantize_q4_0(np.full(32, np.inf, np.float32))


@pytest.mark.parametrize(
    ("name", "size", "count", "message"),
    [
        ("Q4_0", 18, 31, "count is 31, expected a multiple of 32"),
        ("Q4_0", 17, 32, "data has 17 bytes, expected 18 for 32 numbers in Q4_0"),
        ("Q8_0", 0, 32, "data has 0 bytes, expected 34"),
        ("F16", 5, 2, "data has 5 bytes, expected 4"),
        ("F32", 4, -1, "count is -1"),
        ("IQ2_S", 4, 1, "unknown block format 'IQ2_S'"),
    ],
)
def test_dequantize_refuses_wrong_sizes(name: str, size: int, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dequantize(name, bytes(size), count)
