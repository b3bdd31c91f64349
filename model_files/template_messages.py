"""What passes between `template_process` and `template_child`: a length, then JSON one way, an outcome and a text the other way."""

import json
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, BinaryIO

MEMORY_BYTES = 256 << 20
"""What one request may take, beside the interpreter itself."""
MAX_REQUEST_BYTES = 128 << 20
MAX_ANSWER_BYTES = 128 << 20

HEADER = struct.Struct("<I")


class RenderOutcome(IntEnum):
    """DONE: with the prompt. FAILED: with a sentence. OUT_OF_MEMORY: the process has no sound state any more."""

    DONE = 0
    FAILED = 1
    OUT_OF_MEMORY = 2


def request_bytes(request: Mapping[str, Any]) -> bytes:
    """TypeError or ValueError for what is not JSON."""
    data = json.dumps(request, ensure_ascii=False).encode(errors="surrogatepass")
    return HEADER.pack(len(data)) + data


def read_message(stream: BinaryIO) -> Mapping[str, Any] | None:
    """The next request; None at the end."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    request: Mapping[str, Any] = json.loads(stream.read(HEADER.unpack(header)[0]).decode(errors="surrogatepass"))
    return request


def write_message(stream: BinaryIO, outcome: RenderOutcome, text: str) -> None:
    data = text.encode(errors="surrogatepass")
    stream.write(HEADER.pack(1 + len(data)))
    stream.write(bytes([outcome]))
    stream.write(data)
    stream.flush()


def parse_answer(data: bytes) -> tuple[RenderOutcome, str]:
    return RenderOutcome(data[0]), data[1:].decode(errors="surrogatepass")
