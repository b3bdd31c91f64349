"""From the bytes of a message to the message, or to why it is none.

No decoder raises: gRPC would take that for a fault of this program, and log it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from dairllm.mesh.ranges.checks import out_of_range


class Refused(NamedTuple):
    """Stands where the message would be. words: one sentence. field: the one that is out of range, if one is."""

    words: str
    field: str | None = None


def checked_decoder(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """None for who takes the bytes as they are."""
    if decode is None:
        return None

    def decode_or_refuse(data: bytes) -> Any:
        try:
            message = decode(data)
        except DecodeError:
            return Refused("is not a message of its type")
        wrong = out_of_range(message)
        return message if wrong is None else Refused(f"makes no sense: {wrong.words}", wrong.field)

    return decode_or_refuse
