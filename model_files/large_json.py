"""tokenizer.json, which can have 30 MB, as Python objects of a bounded size.

As `containers.bounded_json` does it for small files; but the text is not made a string first, which takes four bytes a character if there
is an emoji among them, and keys that come twice, of which the last counts, are not looked for.
"""

from pathlib import Path
from typing import Any

import pydantic_core

from dairllm.model_files.containers.regular_files import read_whole
from dairllm.model_files.errors import CorruptModelFile

MAX_JSON_BYTES = 128 << 20
SPARE_BYTES = 64 << 20
"""What the objects of a file may take beyond three times its size."""
_CONTAINER_BYTES, _STRING_BYTES, _VALUE_BYTES = 72, 56, 40


def read_large_json(path: Path) -> tuple[dict[str, Any], int]:
    """An object, and the size of its file. CorruptModelFile in one sentence that names the file."""
    data = read_whole(path, MAX_JSON_BYTES)
    containers = data.count(b"[") + data.count(b"{")
    weight = containers * _CONTAINER_BYTES + data.count(b'"') // 2 * _STRING_BYTES + data.count(b",") * _VALUE_BYTES
    most = 3 * len(data) + SPARE_BYTES
    if weight > most:
        raise CorruptModelFile(f"{path} has so many values that they would take {weight >> 20} MiB; expected at most {most >> 20} MiB")
    try:
        value = pydantic_core.from_json(data, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise CorruptModelFile(f"{path} is not sound JSON: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise CorruptModelFile(f"{path} is JSON, but not an object")
    return value, len(data)
