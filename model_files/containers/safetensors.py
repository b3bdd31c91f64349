"""A strict reader of safetensors headers (https://github.com/huggingface/safetensors#format).

Why not the `safetensors` package: it gives tensors, not where they lie, while a shard reads ranges of a file and serves them to others. The
header is eight bytes and a JSON object, which takes less code to check than to work around a library.

Layout: u64 size of the header, the header (name → dtype, shape, data_offsets from the end of the header), the tensors' bytes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dairllm.model_files.block_formats import BlockFormat
from dairllm.model_files.containers.bounded_json import MAX_JSON_BYTES, parse_json_object
from dairllm.model_files.containers.container import ContainerFile, StoredTensor, check_no_overlap
from dairllm.model_files.containers.regular_files import opened
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel

MAX_DIMENSIONS = 8
MAX_FILE_BYTES = 1 << 46
_SIZE_BYTES = 8
_ELEMENT_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}


def read_safetensors(path: Path) -> tuple[ContainerFile, dict[str, StoredTensor]]:
    """The file and the tensors in it, as file 0. Those without elements are left out.

    Raises CorruptModelFile for a damaged or truncated file, UnsupportedModel for a type that is not known.
    """
    with opened(path) as (file, size_bytes):
        size = int.from_bytes(file.read(_SIZE_BYTES), "little")
        limit = min(size_bytes - _SIZE_BYTES, MAX_JSON_BYTES)
        if not 0 < size <= limit:
            raise _corrupt(path, f"its header has {size} bytes; expected 1 to {max(limit, 0)} in a file of {size_bytes}")
        header = parse_json_object(file.read(size), f"the header of {path}")
    reader = _Tensors(path, _SIZE_BYTES + size, size_bytes)
    header.pop("__metadata__", None)
    tensors: dict[str, StoredTensor] = {}
    while header:  # what was read is freed: a header may have a hundred thousand entries
        name, entry = header.popitem()
        tensor = reader.read(name, entry)
        if tensor.size_bytes:
            tensors[name] = tensor
    check_no_overlap(tensors.values(), lambda sentence: _corrupt(path, sentence))
    return ContainerFile(path, size_bytes), tensors


class _Tensors:
    """Entries of one header. data_start: where offsets count from."""

    def __init__(self, path: Path, data_start: int, size_bytes: int) -> None:
        self._path, self._data_start, self._size_bytes = path, data_start, size_bytes

    def read(self, name: str, entry: Any) -> StoredTensor:
        if not isinstance(entry, Mapping):
            raise _corrupt(self._path, f"tensor {name[:80]!r} is described by {str(entry)[:40]}; expected an object")
        shape = self._integers(name, entry, "shape", MAX_DIMENSIONS)
        offsets = self._integers(name, entry, "data_offsets", 2)
        block_format = self._format(name, entry.get("dtype"))
        size_bytes = math.prod(shape) * block_format.block_bytes
        if len(offsets) != 2 or offsets[1] - offsets[0] != size_bytes:
            described = f"{block_format.name} of shape {list(shape)} with data_offsets {list(offsets)}"
            raise _corrupt(self._path, f"tensor {name[:80]!r} is {described}; expected {size_bytes} bytes")
        offset = self._data_start + offsets[0]
        if offset + size_bytes > self._size_bytes:
            ends = f"tensor {name[:80]!r} ends at byte {offset + size_bytes}"
            raise _corrupt(self._path, f"{ends}, but the file ends at byte {self._size_bytes}; it may not be complete")
        return StoredTensor(name, block_format, shape, 0, offset, size_bytes)

    def _format(self, name: str, dtype: object) -> BlockFormat:
        size = _ELEMENT_BYTES.get(dtype) if isinstance(dtype, str) else None
        if size is None:
            raise UnsupportedModel(
                f"tensor {name[:80]!r} of {self._path} is stored as {str(dtype)[:40]}, which is not known; expected F32, F16 or BF16"
            )
        return BlockFormat(str(dtype), 1, size)

    def _integers(self, name: str, entry: Mapping[str, Any], key: str, most: int) -> tuple[int, ...]:
        values = entry.get(key)
        if not isinstance(values, list) or len(values) > most or not all(type(one) is int and 0 <= one <= MAX_FILE_BYTES for one in values):
            raise _corrupt(self._path, f"tensor {name[:80]!r} has {str(values)[:60]} as {key}; expected at most {most} numbers from 0 on")
        return tuple(values)


def _corrupt(path: Path, sentence: str) -> CorruptModelFile:
    return CorruptModelFile(f"{path} is not a sound safetensors file: {sentence}")
