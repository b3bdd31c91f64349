"""From any container to one GGUF file.

The header is written first and read back: a description that comes out otherwise is refused, and how GGUF orders rows is found out from it.
Then every tensor is written at its place, one at a time, so that memory holds the largest one as float32 and no more.
"""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import QUANTIZED_FORMATS, dequantize
from dairllm.model_files.architectures import architecture_of, architectures
from dairllm.model_files.block_formats import BLOCK_FORMATS, VALUE_FORMATS
from dairllm.model_files.checkpoints.architecture import Architecture
from dairllm.model_files.checkpoints.tensor_names import GGUF_NAMES
from dairllm.model_files.containers import Container, Conventions, StoredTensor, open_container
from dairllm.model_files.containers.gguf import read_gguf
from dairllm.model_files.converting.gguf_layout import IN_F32, Output, RolePart, column_order, differences, factor_of, outputs_of, row_order
from dairllm.model_files.converting.gguf_metadata import ROPE_TENSORS, Keys, Value, details, gguf_metadata, rope_tensors
from dairllm.model_files.converting.tokenizer_keys import tokenizer_keys
from dairllm.model_files.converting.values import FloatArray, encoded, rows_of, values_of
from dairllm.model_files.errors import ModelFileError, UnsupportedModel
from dairllm.model_files.manifest import TensorInfo
from dairllm.model_files.progress import ProgressCallback
from dairllm.model_files.quantizing import quantized_format
from dairllm.model_files.reader import FileRange, ModelSource, chunks_of
from dairllm.model_files.spec import ModelSpec

FORMATS = (*VALUE_FORMATS, *QUANTIZED_FORMATS)
"""That matrices can be written in."""
_GGUF_NAMES_OF = {"mistral": "llama", "mixtral": "llama"}
"""Architectures that GGUF calls otherwise."""
Array = npt.NDArray[Any]
_ALIGNMENT = 32
_KINDS: Mapping[type, gguf.GGUFValueType] = {
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
}
_QUANTIZATION_VERSION = 2


class _Entry(NamedTuple):
    """Of the metadata."""

    value: object
    kind: gguf.GGUFValueType
    inner: gguf.GGUFValueType | None = None


class _Planned(NamedTuple):
    """Of the directory."""

    name: str
    shape: tuple[int, ...]
    block_format: str

    @property
    def in_f32(self) -> "_Planned":
        """What values are written in that are not the stored ones any more, unless they are quantised anyway."""
        return self._replace(block_format="F32") if self.block_format in VALUE_FORMATS else self

    @property
    def size_bytes(self) -> int:
        _, block_size, block_bytes = BLOCK_FORMATS[self.block_format]
        return int(np.prod(self.shape)) // block_size * block_bytes


def convert_model(path: Path, output: Path, block_format: str | None = None, progress: ProgressCallback | None = None) -> list[str]:
    """Write the model as a GGUF file, which must not exist. Returns what is otherwise than one might expect, as sentences.

    block_format: of its matrices, one of FORMATS; None: as they are stored.

    Raises a ModelFileError for a model that cannot be read, or that GGUF cannot say, and if the file cannot be written.
    """
    if block_format is not None and block_format not in FORMATS:
        raise UnsupportedModel(f"matrices cannot be written as {block_format[:40]!r}; expected one of {', '.join(FORMATS)}")
    container = open_container(path)
    if output.exists():
        raise UnsupportedModel(f"{output} exists already; expected the path of a new file")
    try:
        with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".converting-") as folder:
            partial = Path(folder) / "model.gguf"
            write = _write_gguf if container.conventions is Conventions.GGUF else _write_checkpoint
            notes = write(container, partial, block_format, progress)
            os.replace(partial, output)
            return notes
    except OSError as error:
        raise UnsupportedModel(f"{output} cannot be written: {error.strerror or error}") from error


def _write_checkpoint(container: Container, partial: Path, asked: str | None, progress: ProgressCallback | None) -> list[str]:
    architecture = architecture_of(container)
    spec = architecture.read_spec(container)
    target = architectures()[_GGUF_NAMES_OF.get(architecture.name, architecture.name)]
    outputs = outputs_of(spec, architecture.unit_tensors(container, spec), {**GGUF_NAMES, **target.gguf})
    factors = rope_tensors(spec, container)
    tensors = [*(_Planned(name, values.shape, "F32") for name, values in factors.items()), *(_stored(output, asked) for output in outputs)]
    tokenizer, notes = _tokenizer_of(container, spec)
    header = _Header(container, spec, target, tensors, tokenizer)
    read_as = target.read_spec(_write_header(header, factors, partial))
    exact = {output.name for output in outputs if _is_scaled(output, spec, read_as)}
    tensors = [tensor.in_f32 if tensor.name in exact else tensor for tensor in tensors]
    written = _write_header(header._replace(tensors=tensors), factors, partial)
    with ModelSource(container.paths) as source, _TensorWriting(written, progress) as writing:
        for output in outputs:
            block_format = written.tensors[output.name].block_format.name
            writing.write(output.name, [_bytes_of(output, source, block_format, spec, read_as)])
    return notes + _kept(asked, [(one.parts[0].tensor.block_format, written.tensors[one.name].block_format.name) for one in outputs])


def _tokenizer_of(container: Container, spec: ModelSpec) -> tuple[Keys, list[str]]:
    try:
        return tokenizer_keys(container, spec.vocab_size), []
    except UnsupportedModel as error:
        return {"tokenizer.ggml.model": "none"}, [f"the file has no tokenizer, and takes and gives token ids: {error}"]


def _write_gguf(container: Container, partial: Path, asked: str | None, progress: ProgressCallback | None) -> list[str]:
    """The parts of a split file in one; matrices as asked."""
    architecture = architecture_of(container)
    roles = {tensor.name: tensor for unit in architecture.unit_tensors(container, architecture.read_spec(container)) for tensor in unit}
    tensors = [_Planned(name, tensor.shape, _asked_format(asked, roles.get(name), tensor)) for name, tensor in container.tensors.items()]
    written = _write_directory(partial, container.text("general.architecture"), _entries_of(container, tensors), tensors)
    with ModelSource(container.paths) as source, _TensorWriting(written, progress) as writing:
        for stored in tensors:
            tensor = container.tensors[stored.name]
            chunks = (source.read(FileRange(tensor.file_index, *chunk)) for chunk in chunks_of(tensor.offset_bytes, tensor.size_bytes))
            if stored.block_format == tensor.block_format.name:
                writing.write(stored.name, chunks)
                continue
            values = dequantize(tensor.block_format.name, b"".join(chunks), math.prod(tensor.shape))
            writing.write(stored.name, [encoded(values.reshape(-1, tensor.shape[-1]), stored.block_format)])
    return _kept(asked, [(container.tensors[one.name].block_format.name, one.block_format) for one in tensors])


def _asked_format(asked: str | None, role: TensorInfo | None, tensor: StoredTensor) -> str:
    stored = tensor.block_format.name
    if asked is None or role is None or role.is_numbers or role.role in IN_F32:
        return stored
    return asked if asked in VALUE_FORMATS else quantized_format(asked, role.role, tensor.shape, stored, numbers=False)


def _entries_of(container: Container, tensors: Sequence[_Planned]) -> dict[str, _Entry]:
    """Of a GGUF file, but for what says that it is a part."""
    found = {}
    for key, field in gguf.GGUFReader(container.paths[0]).fields.items():
        is_of_this_file = key.startswith(("GGUF.", "split.")) or key in ("general.architecture", "general.alignment")
        if not is_of_this_file and (value := field.contents()) != []:
            found[key] = _Entry(value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    if any(tensor.block_format not in VALUE_FORMATS for tensor in tensors):
        found["general.quantization_version"] = _entry(_QUANTIZATION_VERSION)
    return found


def _stored(output: Output, asked: str | None) -> _Planned:
    tensor = output.parts[0].tensor
    if output.is_f32:
        return _Planned(output.name, output.shape, "F32")
    if asked is None or asked in VALUE_FORMATS:
        return _Planned(output.name, output.shape, asked or tensor.block_format)
    return _Planned(output.name, output.shape, quantized_format(asked, tensor.role, tensor.shape, tensor.block_format, numbers=False))


def _kept(asked: str | None, formats: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence if matrices are not in the format that was asked for. formats: of each what it was stored in, and is written in."""
    kept = Counter(stored for stored, written in formats if stored == written != asked and stored not in VALUE_FORMATS)
    counted = ", ".join(f"{count} in {name}" for name, count in sorted(kept.items()))
    return [f"{counted} stay as they are: what is quantised is not quantised again"] if asked is not None and kept else []


class _Header(NamedTuple):
    """What is written before the tensors."""

    container: Container
    spec: ModelSpec
    target: Architecture
    tensors: Sequence[_Planned]
    tokenizer: Keys


def _write_header(header: _Header, factors: Mapping[str, FloatArray], partial: Path) -> Container:
    """Adds what the architecture would not be taken for granted, until what is read back is the description."""
    spec, target = header.spec, header.target
    keys, found = gguf_metadata(spec, header.container, target.name), list[str]()
    for more in ({}, *details(spec)):
        keys |= more
        written = _write_directory(partial, target.name, _entries(header, keys), header.tensors)
        with _TensorWriting(written, None) as writing:
            for name, values in factors.items():
                writing.write(name, [values.tobytes()])
        before, found = found, list(_read_back(header, written))
        if not found:
            return written
        if more and found == before:
            keys = {key: value for key, value in keys.items() if key not in more}
    raise UnsupportedModel(f"{header.container.path} cannot be written as GGUF, where it would have {', '.join(found)[:300]}")


def _read_back(header: _Header, written: Container) -> Iterator[str]:
    """What is wrong with the description that the file gives."""
    try:
        names = list(differences(header.spec, header.target.read_spec(written)))
    except ModelFileError as error:
        yield str(error).replace(f"{written.path} ", "a header that ")
    else:
        yield from (f"another {name}" for name in names)


def _entries(header: _Header, keys: Keys) -> dict[str, _Entry]:
    named = {"general.name": header.spec.name, **{f"{header.target.name}.{key}": value for key, value in keys.items()}}
    if any(tensor.block_format not in VALUE_FORMATS for tensor in header.tensors):
        named["general.quantization_version"] = _QUANTIZATION_VERSION
    return {key: _entry(value) for key, value in {**named, **header.tokenizer}.items()}


def _entry(value: Value) -> _Entry:
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
    }
    if isinstance(value, list):
        return _Entry(value, gguf.GGUFValueType.ARRAY, kinds[type(value[0])])
    return _Entry(value, kinds[type(value)])


def _write_directory(path: Path, name: str, entries: Mapping[str, _Entry], tensors: Sequence[_Planned]) -> Container:
    """A file with metadata and directory, and room for the tensors. Returns it as it is read."""
    writer = gguf.GGUFWriter(path, name)
    for key, entry in entries.items():
        writer.add_key_value(key, entry.value, entry.kind, entry.inner)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.block_format]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    whole = _padded(path.stat().st_size) + sum(_padded(tensor.size_bytes) for tensor in tensors)
    if shutil.disk_usage(path.parent).free < whole:
        raise UnsupportedModel(f"{path.parent.parent} has no room for the {whole} bytes of the file; expected a disk with more free space")
    os.truncate(path, whole)
    return read_gguf(path)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class _TensorWriting:
    """Fills in the tensors of a file."""

    def __init__(self, container: Container, progress: ProgressCallback | None) -> None:
        self._container, self._progress = container, progress
        self._total_bytes = sum(tensor.size_bytes for tensor in container.tensors.values() if tensor.name not in ROPE_TENSORS)
        self._done_bytes = 0

    def __enter__(self) -> "_TensorWriting":
        self._file = open(self._container.path, "r+b")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """All of the tensor's bytes."""
        tensor = self._container.tensors[name]
        self._file.seek(tensor.offset_bytes)
        for piece in pieces:
            self._file.write(piece)
            self._done_bytes += len(piece)
            if self._progress is not None:
                self._progress("Writing", self._done_bytes, self._total_bytes)


def _is_scaled(output: Output, spec: ModelSpec, read_as: ModelSpec) -> bool:
    return any(_Ordered(part, spec, read_as).factor != 1.0 for part in output.parts)


def _bytes_of(output: Output, source: ModelSource, block_format: str, spec: ModelSpec, read_as: ModelSpec) -> bytes:
    """read_as: what the file's header says."""
    parts = [_Ordered(part, spec, read_as) for part in output.parts]
    if all(part.is_as_stored(block_format) for part in parts):
        return _fused(output, [part.rows(source) for part in parts]).tobytes()
    values = _fused(output, [part.values(source) for part in parts])
    return encoded(values.reshape(-1, values.shape[-1]), block_format)


class _Ordered:
    """One role's part of a tensor, in GGUF's order. factor: by which its values are multiplied."""

    def __init__(self, part: RolePart, spec: ModelSpec, read_as: ModelSpec) -> None:
        self._tensor = part.tensor
        self._rows = self._columns = None
        self.factor = 1.0
        if part.layer is not None:
            asked = part.tensor.role, spec.layers[part.layer], read_as.layers[part.layer]
            self._rows, self._columns, self.factor = row_order(*asked), column_order(*asked), factor_of(*asked)

    def is_as_stored(self, block_format: str) -> bool:
        """Whether its bytes can be taken row by row."""
        tensor = self._tensor
        is_moved_only = not tensor.is_numbers and not tensor.transforms and self._columns is None and self.factor == 1.0
        return tensor.block_format == block_format and is_moved_only

    def rows(self, source: ModelSource) -> Array:
        found = rows_of(source, self._tensor)
        return found if self._rows is None else found[self._rows]

    def values(self, source: ModelSource) -> Array:
        found = values_of(source, self._tensor)
        found = found if self._rows is None else found[self._rows]
        found = found if self._columns is None else found[..., self._columns]
        return found if self.factor == 1.0 else found * np.float32(self.factor)


def _fused(output: Output, parts: Sequence[Array]) -> Array:
    """Rows of all parts, in blocks, if they are rows of one tensor."""
    if output.parts[0].rows is None:
        return parts[0]
    blocks = [part.rows for part in output.parts if part.rows is not None]
    count = parts[0].shape[0] // (blocks[0].last - blocks[0].first)
    whole = np.empty((count, blocks[0].of, parts[0].shape[-1]), parts[0].dtype)
    for block, part in zip(blocks, parts, strict=True):
        whole[:, block.first : block.last] = part.reshape(count, -1, part.shape[-1])
    return whole.reshape(-1, whole.shape[-1])
