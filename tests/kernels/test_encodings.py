"""Activations on the wire: what they lose, that all instruction sets agree, and that damaged bytes are refused."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dairllm.kernels_pyx import (
    WIRE_ENCODINGS,
    decode_rows,
    encode_rows,
    encoded_row_bytes,
    quantize_q8_0,
    round_rows,
)
from tests.kernels.computing import AVAILABLE_ISAS, instruction_set

LOSSY = [name for name in WIRE_ENCODINGS if name != "F32"]
SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 100))
FINITE = hnp.arrays(np.float32, SHAPES, elements=st.floats(-6e4, 6e4, width=32))
ANYTHING = hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32))


def round_trip(x: NDArray[np.float32], encoding: str) -> NDArray[np.float32]:
    return decode_rows(encode_rows(x, encoding), x.shape[0], x.shape[1], encoding)


def test_sizes() -> None:
    assert [encoded_row_bytes(name, 576) for name in WIRE_ENCODINGS] == [2304, 1152, 612, 644]
    assert [encoded_row_bytes(name, 33) for name in WIRE_ENCODINGS] == [132, 66, 68, 100]


@given(ANYTHING, st.sampled_from(WIRE_ENCODINGS))
def test_every_isa_gives_the_bytes_of_scalar(x: NDArray[np.float32], encoding: str) -> None:
    seen = set()
    for isa in AVAILABLE_ISAS:
        with instruction_set(isa):
            encoded = encode_rows(x, encoding)
            seen.add((encoded, decode_rows(encoded, x.shape[0], x.shape[1], encoding).tobytes()))
    assert len(seen) == 1
    assert len(encoded) == x.shape[0] * encoded_row_bytes(encoding, x.shape[1])


@given(FINITE, st.sampled_from(WIRE_ENCODINGS), st.data())
def test_what_rows_carry_along_is_rounded_once(x: NDArray[np.float32], encoding: str, data: st.DataObject) -> None:
    """It takes nothing from the row's own numbers, and the second rounding finds it as the first has left it."""
    width = x.shape[1]
    carried = data.draw(st.integers(0, width - 1))
    own = width - carried
    encoded = encode_rows(x, encoding, carried)
    assert len(encoded) == len(x) * encoded_row_bytes(encoding, width, carried)
    decoded = decode_rows(encoded, len(x), width, encoding, carried)
    exact = x[:, own:] if encoding == "F32" else x[:, own:].astype(np.float16).astype(np.float32)
    assert np.array_equal(decoded[:, own:], exact)
    assert np.array_equal(decoded[:, :own], round_trip(np.ascontiguousarray(x[:, :own]), encoding))
    assert round_rows(x, encoding, carried).tobytes() == decoded.tobytes()
    again = decode_rows(encode_rows(decoded, encoding, carried), len(x), width, encoding, carried)
    assert np.array_equal(again[:, own:], decoded[:, own:])


def test_carrying_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="carried is 4, expected 0 to 3, less than the width"):
        encode_rows(np.zeros((1, 4), np.float32), "F16", 4)


@given(ANYTHING)
def test_f32_is_lossless(x: NDArray[np.float32]) -> None:
    assert round_trip(x, "F32").tobytes() == x.tobytes()


@given(ANYTHING, st.sampled_from(LOSSY))
def test_numbers_stay_finite_and_what_is_broken_stays_broken(x: NDArray[np.float32], encoding: str) -> None:
    decoded = round_trip(x, encoding)
    broken_rows = np.isnan(x).any(axis=1)
    assert np.isfinite(decoded[~broken_rows]).all()
    assert np.isnan(decoded[np.isnan(x)]).all()


@given(ANYTHING, st.sampled_from(WIRE_ENCODINGS))
def test_rounding_in_place_gives_the_bits_of_the_wire(x: NDArray[np.float32], encoding: str) -> None:
    for isa in AVAILABLE_ISAS:
        with instruction_set(isa):
            rounded, sent = round_rows(x, encoding), round_trip(x, encoding)
        numbers = ~np.isnan(sent)
        assert rounded[numbers].tobytes() == sent[numbers].tobytes()
        assert np.isnan(rounded[~numbers]).all()


@given(FINITE)
def test_f16_error_is_half_a_bit(x: NDArray[np.float32]) -> None:
    assert np.all(np.abs(round_trip(x, "F16") - x) <= np.abs(x) * 2.0**-11 + 2.0**-25)


def test_f16_saturates(isa: str) -> None:
    x = np.array([[7e4, -7e4, np.inf, -np.inf, 65519, 65520]], np.float32)
    assert round_trip(x, "F16").tolist() == [[65504, -65504, 65504, -65504, 65504, 65504]]


@given(FINITE)
def test_q8_0_is_the_gguf_block_with_zeros_at_the_end(x: NDArray[np.float32]) -> None:
    padded = np.zeros((x.shape[0], -(-x.shape[1] // 32) * 32), np.float32)
    padded[:, : x.shape[1]] = x
    assert encode_rows(x, "Q8_0") == quantize_q8_0(padded.reshape(-1))


def outlier_pairs(encoded_row: bytes) -> list[tuple[int, float]]:
    pairs = np.frombuffer(encoded_row[:32], np.dtype([("index", "<u2"), ("value", "<f2")]))
    return [(int(index), float(value)) for index, value in pairs]


def expected_outliers(row: NDArray[np.float32]) -> list[int]:
    """The indices of the eight largest magnitudes, of equals the lower ones, ascending; NaN counts as 0."""
    magnitude = np.where(np.isnan(row), 0, np.abs(row))
    return sorted(np.lexsort((np.arange(row.size), -magnitude))[:8].tolist())


@given(ANYTHING)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_outliers_are_the_eight_largest(x: NDArray[np.float32]) -> None:
    size = encoded_row_bytes("Q8_0_OUTLIERS", x.shape[1])
    encoded = encode_rows(x, "Q8_0_OUTLIERS")
    for number, row in enumerate(x):
        pairs = outlier_pairs(encoded[number * size :])
        expected = expected_outliers(row)
        assert [index for index, _ in pairs] == expected + [0xFFFF] * (8 - len(expected))
        clean = np.clip(row, -65504, 65504).astype(np.float16)
        np.testing.assert_array_equal([value for _, value in pairs[: len(expected)]], clean[expected])
        rest = row.copy()
        rest[expected] = 0
        assert encoded[number * size + 32 : (number + 1) * size] == encode_rows(rest[np.newaxis], "Q8_0")


def test_ties_go_to_the_lower_index(isa: str) -> None:
    x = np.tile(np.array([1, -1], np.float32), 50)[np.newaxis]
    assert [index for index, _ in outlier_pairs(encode_rows(x, "Q8_0_OUTLIERS"))] == list(range(8))


def test_outliers_rescue_the_other_channels(isa: str) -> None:
    """One huge channel, as residual streams have them: without outliers its whole block is lost."""
    x = np.random.default_rng(5).standard_normal((4, 576)).astype(np.float32)
    x[:, 100] = 24900
    x[:, 300] = -9000
    others = np.delete(np.arange(576), [100, 300])
    plain = np.abs(round_trip(x, "Q8_0") - x)[:, others].mean()
    rescued = np.abs(round_trip(x, "Q8_0_OUTLIERS") - x)[:, others].mean()
    assert rescued < plain / 5
    assert np.abs(round_trip(x, "Q8_0_OUTLIERS")[:, 100] - 24900).max() <= 8


def test_wide_rows(isa: str) -> None:
    x = np.random.default_rng(6).standard_normal((1, 65535)).astype(np.float32)
    x[0, 65534] = 1000
    assert outlier_pairs(encode_rows(x, "Q8_0_OUTLIERS"))[-1] == (65534, 1000.0)
    assert round_trip(x, "Q8_0_OUTLIERS")[0, 65534] == 1000


@pytest.mark.parametrize("encoding", WIRE_ENCODINGS)
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_sizes_are_refused(encoding: str, change: int) -> None:
    encoded = encode_rows(np.ones((2, 40), np.float32), encoding)
    damaged = encoded[:change] if change < 0 else encoded + b"\0"
    size = encoded_row_bytes(encoding, 40)
    with pytest.raises(ValueError, match=f"data has {len(damaged)} bytes, expected 2 rows of {size}, width 40 in {encoding}"):
        decode_rows(damaged, 2, 40, encoding)


@given(st.data(), st.sampled_from(WIRE_ENCODINGS), st.integers(1, 70), st.integers(0, 2))
def test_any_bytes_decode_or_are_refused(data: st.DataObject, encoding: str, width: int, rows: int) -> None:
    size = rows * encoded_row_bytes(encoding, width)
    received = data.draw(st.binary(min_size=size, max_size=size) | st.binary(max_size=300))
    if len(received) != size:
        with pytest.raises(ValueError, match="data has"):
            decode_rows(received, rows, width, encoding)
        return
    try:
        assert decode_rows(received, rows, width, encoding).shape == (rows, width)
    except ValueError as error:
        assert encoding == "Q8_0_OUTLIERS" and "outlier indices" in str(error)  # noqa: PT017, PT018


@pytest.mark.parametrize(
    "indices", [[40, *range(1, 8)], [0, 1, 2, 3, 4, 5, 6, 40], [0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 0xFFFF]]
)
def test_outlier_indices_are_checked(indices: list[int]) -> None:
    encoded = bytearray(encode_rows(np.ones((1, 40), np.float32), "Q8_0_OUTLIERS"))
    for place, index in enumerate(indices):
        encoded[4 * place : 4 * place + 2] = index.to_bytes(2, "little")
    with pytest.raises(ValueError, match="row 0 of 1 has outlier indices that are not ascending within its width of 40"):
        decode_rows(encoded, 1, 40, "Q8_0_OUTLIERS")


@pytest.mark.parametrize(
    ("encoding", "width", "message"),
    [
        ("Q8_0", 0, "width is 0, expected 1 to"),
        ("F32", -1, "width is -1, expected 1 to"),
        ("Q8_0_OUTLIERS", 65536, "width is 65536, expected 1 to 65535 for Q8_0_OUTLIERS"),
        ("Q4_0", 32, "unknown encoding 'Q4_0', expected one of F32, F16, Q8_0, Q8_0_OUTLIERS"),
    ],
)
def test_unknown_encodings_and_widths_are_refused(encoding: str, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoded_row_bytes(encoding, width)
    with pytest.raises(ValueError, match=message):
        decode_rows(b"", 1, width, encoding)


def test_negative_row_count_is_refused() -> None:
    with pytest.raises(ValueError, match="expected -1 rows"):
        decode_rows(b"", -1, 32, "F32")
