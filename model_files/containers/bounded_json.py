"""JSON out of files from anywhere: a bounded number of objects, no key twice, no integer over 64 bits.

A text of brackets needs some 30 times its size as Python objects. What the objects will take is therefore estimated from the number of
brackets, commas and quotes before anything is parsed.
"""

import json
from typing import Any, NoReturn

from dairllm.model_files.errors import CorruptModelFile

MAX_JSON_BYTES = 32 << 20
_OBJECTS_BYTES = 48 << 20
_PER_BYTE = 3
"""So much may be taken, and so much more for each byte of the text."""
_WEIGHTS = {b"{": 240, b"[": 90, b",": 40, b'"': 28}
"""Bytes that CPython 3.11 takes at most for what these stand for: half a string for a quote."""
_INTEGER_CHARACTERS = 20


def parse_json_object(data: bytes, thing: str) -> dict[str, Any]:
    """An object. thing: what it is called in CorruptModelFile, which is raised for everything else."""
    if len(data) > MAX_JSON_BYTES:
        raise CorruptModelFile(f"{thing} has {len(data)} bytes; expected at most {MAX_JSON_BYTES}")
    if sum(data.count(sign) * weight for sign, weight in _WEIGHTS.items()) > _OBJECTS_BYTES + _PER_BYTE * len(data):
        raise CorruptModelFile(f"{thing} has more objects, lists and values than its {len(data)} bytes should hold")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_duplicates, parse_int=_integer)
    except RecursionError as error:
        raise CorruptModelFile(f"{thing} is not sound JSON: it is nested too deeply") from error
    except ValueError as error:
        raise CorruptModelFile(f"{thing} is not sound JSON: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise CorruptModelFile(f"{thing} is JSON, but not an object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse_duplicate(pairs)
    return found


def _refuse_duplicate(pairs: list[tuple[str, Any]]) -> NoReturn:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {key[:80]!r} occurs twice")
        seen.add(key)
    raise AssertionError("fewer keys than pairs, but none twice")


def _integer(digits: str) -> int:
    if len(digits) > _INTEGER_CHARACTERS:
        raise ValueError(f"the integer {digits[:30]}… has {len(digits)} digits; expected at most {_INTEGER_CHARACTERS}")
    return int(digits)
