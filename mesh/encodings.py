"""Rows of the residual stream as bytes. The formats stand at `Encoding` in model.proto; the kernels write and read them."""

from dairllm import kernels_pyx
from dairllm.mesh.errors import InvalidSetting, MalformedFrame
from dairllm.v1 import model_pb2

_PREFIX = "ENCODING_"
ENCODING_NAMES: dict[int, str] = {int(model_pb2.Encoding.Value(_PREFIX + name)): name for name in kernels_pyx.WIRE_ENCODINGS}
"""Names as people and the kernels write them, by value of the proto's enum."""


def encoding_name(encoding: int) -> str:
    """Raises MalformedFrame for a value that the protocol does not know."""
    name = ENCODING_NAMES.get(encoding)
    if name is None:
        raise MalformedFrame(f"encoding {encoding} of activations is unknown; expected one of {_known()}")
    return name


def parse_encoding(text: str) -> model_pb2.Encoding:
    """The encoding of this name, in any case. Raises InvalidSetting."""
    name = text.upper()
    if name not in kernels_pyx.WIRE_ENCODINGS:
        raise InvalidSetting(f"encoding {text!r} is unknown; expected one of {', '.join(kernels_pyx.WIRE_ENCODINGS)}")
    encoding: model_pb2.Encoding = getattr(model_pb2, _PREFIX + name)
    return encoding


def _known() -> str:
    return ", ".join(f"{value} ({name})" for value, name in ENCODING_NAMES.items())
