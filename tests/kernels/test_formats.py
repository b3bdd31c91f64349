"""Block formats against the gguf package, and conversions of numbers against numpy."""

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dairllm.kernels_pyx import BLOCK_FORMATS, BlockFormat, decode_rows, dequantize, encode_rows, quantize_q4_0, quantize_q8_0

QUANTISED = ("Q4_0", "Q4_1", "Q8_0")
ORDINARY = st.floats(-1e4, 1e4, width=32)
BLOCKS = hnp.arrays(np.float32, st.integers(1, 4).map(lambda n: 32 * n), elements=ORDINARY)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_block_sizes_are_those_of_gguf(name: str) -> None:
    assert BLOCK_FORMATS[name] == BlockFormat(name, *GGML_QUANT_SIZES[GGMLQuantizationType[name]])


def random_blocks(name: str, num_blocks: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng(3)
    blocks = generator.integers(0, 256, (num_blocks, BLOCK_FORMATS[name].block_bytes), dtype=np.uint8)
    headers = 2 if name == "Q4_1" else 1
    blocks[:, : 2 * headers] = generator.normal(0, 0.05, (num_blocks, headers)).astype(np.float16).view(np.uint8)
    return blocks


@pytest.mark.parametrize("name", QUANTISED)
def test_dequantize_equals_gguf(name: str) -> None:
    blocks = random_blocks(name, 300)
    expected = quants.dequantize(blocks, GGMLQuantizationType[name]).reshape(-1)
    assert np.array_equal(dequantize(name, blocks.tobytes(), expected.size), expected)


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
