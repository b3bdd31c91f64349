import pytest

from dairllm.kernels_pyx import WIRE_ENCODINGS
from dairllm.mesh.encodings import ENCODING_NAMES, encoding_name, parse_encoding
from dairllm.mesh.errors import InvalidSetting, MalformedFrame
from dairllm.v1 import model_pb2


def test_every_encoding_of_the_protocol_has_a_kernel() -> None:
    known = {value for value in model_pb2.Encoding.values() if value != model_pb2.ENCODING_UNSPECIFIED}
    assert set(ENCODING_NAMES) == known
    assert [ENCODING_NAMES[index + 1] for index in range(len(WIRE_ENCODINGS))] == list(WIRE_ENCODINGS)


@pytest.mark.parametrize("encoding", [model_pb2.ENCODING_UNSPECIFIED, 5, -1, 1000])
def test_an_unknown_encoding_is_refused(encoding: int) -> None:
    with pytest.raises(MalformedFrame, match=f"encoding {encoding} .* unknown"):
        encoding_name(encoding)


def test_names_are_read_in_any_case() -> None:
    assert parse_encoding("q8_0_outliers") == model_pb2.ENCODING_Q8_0_OUTLIERS
    assert [parse_encoding(name) for name in WIRE_ENCODINGS] == sorted(ENCODING_NAMES)
    with pytest.raises(InvalidSetting, match=r"'q4' is unknown; expected one of F32, F16, Q8_0, Q8_0_OUTLIERS"):
        parse_encoding("q4")
