"""Bodies that were compressed on their way: the codings of `Content-Encoding` that need no library (RFC 9110, 8.4.1)."""

import zlib
from collections.abc import Sequence

from dairllm.mesh.errors import InvalidRequest

GZIP_BITS, ZLIB_BITS, RAW_BITS = 31, 15, -15
STEP_BYTES = 1 << 18
ACCEPTED = "gzip, deflate"
_MAX_CODINGS = 2


class BodyTooLarge(Exception):
    pass


class UnknownCoding(Exception):
    """Its text is the coding's name."""


def unpack(data: bytes, codings: Sequence[str], limit_bytes: int) -> bytes:
    """codings: as they were applied. BodyTooLarge as soon as there are more than limit_bytes; UnknownCoding; InvalidRequest."""
    applied = [name for name in codings if name != "identity"]
    for name in applied[_MAX_CODINGS:]:
        raise UnknownCoding(name)
    for name in reversed(applied):
        match name:
            case "gzip" | "x-gzip":
                data = _inflate_members(data, limit_bytes)
            case "deflate":
                data = _inflate(data, _deflate_bits(data), limit_bytes)[0]
            case _:
                raise UnknownCoding(name)
    return data


def _deflate_bits(data: bytes) -> int:
    """With zlib's two bytes in front, as HTTP says, or without, as many do it."""
    is_zlib = len(data) >= 2 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return ZLIB_BITS if is_zlib else RAW_BITS


def _inflate_members(data: bytes, limit_bytes: int) -> bytes:
    """gzip may consist of several members, one behind the other."""
    parts: list[bytes] = []
    while data or not parts:
        part, data = _inflate(data, GZIP_BITS, limit_bytes)
        parts.append(part)
        limit_bytes -= len(part)
    return b"".join(parts)


def _inflate(data: bytes, bits: int, limit_bytes: int) -> tuple[bytes, bytes]:
    """What it unpacks to, and what stands behind it."""
    stream = zlib.decompressobj(bits)
    parts: list[bytes] = []
    size_bytes, rest = 0, data
    try:
        while not stream.eof and (rest or not parts):
            part = stream.decompress(rest, STEP_BYTES)
            if not part and not stream.unconsumed_tail and not stream.eof:
                break
            parts.append(part)
            size_bytes, rest = size_bytes + len(part), stream.unconsumed_tail
            if size_bytes > limit_bytes:
                raise BodyTooLarge
    except zlib.error as error:
        raise InvalidRequest(f"the body cannot be unpacked ({error}); expected what its content-encoding says") from error
    if not stream.eof:
        raise InvalidRequest("the body ends too early to be unpacked; expected what its content-encoding says")
    return b"".join(parts), stream.unused_data
