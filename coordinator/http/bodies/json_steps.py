"""JSON of megabytes, read in steps.

json.loads keeps the GIL until it is done, for seconds where 16 MiB are brackets, and nothing else of the process goes on. Here the
library's scanner in Python is used, in a thread: others run between its steps. A long string is one value, and is read in pieces. How many
values there may be is bounded, since to free millions of them is one step, too.
"""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Callable
from json.decoder import JSONArray, JSONObject, scanstring  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any

from dairllm.mesh.errors import InvalidRequest

MAX_VALUES = 1 << 20
MAX_CONTAINERS = 1 << 16
PIECE = 1 << 18
"""Bytes, or characters."""
_PIECE = re.compile(r'(?>[^"\\]{1,256}|\\u[0-9a-fA-F]{4}|\\.){1,1024}', re.DOTALL)
_HIGH, _LOW = range(0xD800, 0xDC00), range(0xDC00, 0xE000)


def loads_in_steps(data: bytes, parse_constant: Callable[[str], object]) -> object:
    """As json.loads of UTF-8, and with its errors; InvalidRequest for more values and keys, or objects and lists, than there may be."""
    text = _decode(data)
    num_values = num_containers = 0

    def count_container() -> None:
        nonlocal num_containers
        num_containers += 1
        if num_containers > MAX_CONTAINERS:
            raise InvalidRequest(f"the body has over {MAX_CONTAINERS} objects and lists; expected fewer")

    def scan_value(string: str, index: int, weight: int = 1) -> tuple[Any, int]:
        nonlocal num_values
        num_values += weight
        if num_values > MAX_VALUES:
            raise InvalidRequest(f"the body has over {MAX_VALUES} values and keys; expected fewer")
        found: tuple[Any, int] = scan_once(string, index)
        return found

    def scan_member(string: str, index: int) -> tuple[Any, int]:
        return scan_value(string, index, weight=2)

    def parse_array(state: tuple[str, int], _scan: object) -> object:
        count_container()
        return JSONArray(state, scan_value)

    def parse_object(state: tuple[str, int], strict: bool, _scan: object, *hooks: object) -> object:
        count_container()
        return JSONObject(state, strict, scan_member, *hooks)

    decoder: Any = json.JSONDecoder(parse_constant=parse_constant)
    decoder.parse_array, decoder.parse_object, decoder.parse_string = parse_array, parse_object, _read_string
    scan_once = decoder.scan_once = py_make_scanner(decoder)
    value: object = decoder.decode(text)
    return value


def _decode(data: bytes) -> str:
    decoder = getincrementaldecoder("utf-8")()
    pieces: list[str] = []
    for start in range(0, len(data), PIECE):
        try:
            pieces.append(decoder.decode(data[start : start + PIECE]))
        except UnicodeDecodeError:
            data.decode()  # which says where in the whole
            raise
    try:
        pieces.append(decoder.decode(b"", final=True))
    except UnicodeDecodeError:
        data.decode()
        raise
    return "".join(pieces)


def _read_string(text: str, begin: int, strict: bool = True) -> tuple[str, int]:
    """The string whose first character is at `begin`, and the place behind its closing quote."""
    pieces: list[str] = []
    position = begin
    while (found := _PIECE.match(text, position)) is not None and text[found.end() : found.end() + 1] != '"':
        _append(pieces, _piece(text, found, strict))
        position = found.end()
    try:
        last, end = scanstring(text, position, strict)
    except json.JSONDecodeError as error:
        begins_at = begin - 1 if error.pos == position - 1 else error.pos
        raise json.JSONDecodeError(error.msg, text, begins_at) from None
    _append(pieces, last)
    return "".join(pieces), end


def _piece(text: str, found: re.Match[str], strict: bool) -> str:
    try:
        piece: str = scanstring(found[0] + '"', 0, strict)[0]
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(error.msg, text, found.start() + error.pos) from None
    return piece


def _append(pieces: list[str], piece: str) -> None:
    """Halves of a character that stand on both sides of a seam become one."""
    if pieces and piece and ord(pieces[-1][-1]) in _HIGH and ord(piece[0]) in _LOW:
        high, low = ord(pieces[-1][-1]) - _HIGH.start, ord(piece[0]) - _LOW.start
        pieces[-1], piece = pieces[-1][:-1], chr(0x10000 + (high << 10) + low) + piece[1:]
    pieces.append(piece)
