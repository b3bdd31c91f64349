import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.kernels_pyx import WIRE_ENCODINGS, encoded_row_bytes
from dairllm.mesh.encodings import ENCODING_NAMES, decode, encode, encoding_name, parse_encoding
from dairllm.mesh.errors import InvalidSetting, MalformedFrame
from dairllm.v1 import model_pb2

ENCODINGS = st.sampled_from(sorted(ENCODING_NAMES))


def rows_of(num_rows: int, width: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((num_rows, width)).astype(np.float32)


def test_every_encoding_of_the_protocol_has_a_kernel() -> None:
    known = {value for value in model_pb2.Encoding.values() if value != model_pb2.ENCODING_UNSPECIFIED}
    assert set(ENCODING_NAMES) == known
    assert [ENCODING_NAMES[index + 1] for index in range(len(WIRE_ENCODINGS))] == list(WIRE_ENCODINGS)


@given(ENCODINGS, st.integers(0, 4), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_rows_survive_the_wire(encoding: int, num_rows: int, width: int, seed: int) -> None:
    rows = rows_of(num_rows, width, seed)
    decoded = decode(encode(rows, encoding), num_rows, width, encoding)
    assert decoded.shape == rows.shape
    largest = float(np.abs(rows).max(initial=0))
    tolerance = {"F32": 0.0, "F16": largest / 1024}.get(encoding_name(encoding), largest / 100)
    np.testing.assert_allclose(decoded, rows, rtol=0, atol=tolerance)


@given(ENCODINGS, st.integers(1, 3), st.integers(1, 70), st.integers(-40, 40).filter(bool))
def test_a_wrong_size_is_refused_with_both_numbers(encoding: int, num_rows: int, width: int, wrong_by: int) -> None:
    data = encode(rows_of(num_rows, width, 1), encoding)
    wrong = data[:wrong_by] if wrong_by < 0 else data + bytes(wrong_by)
    with pytest.raises(MalformedFrame, match=rf"{num_rows} rows of width {width} .* are {len(data)} bytes; got {len(wrong)}"):
        decode(wrong, num_rows, width, encoding)


@given(ENCODINGS, st.integers(1, 3), st.integers(1, 40), st.data())
def test_any_bytes_of_the_right_size_are_rows_or_malformed(encoding: int, num_rows: int, width: int, data: st.DataObject) -> None:
    size = num_rows * encoded_row_bytes(encoding_name(encoding), width)
    try:
        decoded = decode(data.draw(st.binary(min_size=size, max_size=size)), num_rows, width, encoding)
    except MalformedFrame:
        assert encoding == model_pb2.ENCODING_Q8_0_OUTLIERS  # only its indices can contradict each other
    else:
        assert decoded.shape == (num_rows, width)


def test_outliers_outside_of_the_row_are_malformed() -> None:
    data = encode(rows_of(1, 40, 1), model_pb2.ENCODING_Q8_0_OUTLIERS)
    with pytest.raises(MalformedFrame, match="Q8_0_OUTLIERS"):
        decode(b"\x28\x00" + data[2:], 1, 40, model_pb2.ENCODING_Q8_0_OUTLIERS)


@pytest.mark.parametrize("encoding", [model_pb2.ENCODING_UNSPECIFIED, 5, -1, 1000])
def test_an_unknown_encoding_is_refused(encoding: int) -> None:
    with pytest.raises(MalformedFrame, match=f"encoding {encoding} .* unknown"):
        decode(b"", 0, 4, encoding)
    with pytest.raises(MalformedFrame, match="unknown"):
        encode(rows_of(1, 4, 1), encoding)


def test_names_are_read_in_any_case() -> None:
    assert parse_encoding("q8_0_outliers") == model_pb2.ENCODING_Q8_0_OUTLIERS
    assert [parse_encoding(name) for name in WIRE_ENCODINGS] == sorted(ENCODING_NAMES)
    with pytest.raises(InvalidSetting, match=r"'q4' is unknown; expected one of F32, F16, Q8_0, Q8_0_OUTLIERS"):
        parse_encoding("q4")
