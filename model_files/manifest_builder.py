"""Building a file's manifest, and keeping it so that the file is hashed once and not at every start."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dairllm.model_files.architectures import find_architecture
from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.gguf_file import GgufFile, GgufTensor, read_gguf
from dairllm.model_files.manifest import Manifest, TensorInfo, Unit, compute_model_digest, unit_name
from dairllm.model_files.progress import ProgressCallback
from dairllm.model_files.reader import FileSource, chunks_of
from dairllm.model_files.spec import ModelSpec

# Part of the cache key: raised whenever the same file would give another manifest.
MANIFEST_VERSION = 1


def build_manifest(path: Path, progress: ProgressCallback | None = None) -> Manifest:
    """The manifest of a GGUF file, from the cache if the file has not changed since (by path, size and time of change).

    Otherwise every unit is read once, in order, so that a tied embedding is read twice: it is part of two units. Raises
    CorruptModelFile or UnsupportedModel. A cache that cannot be read or written costs time, never correctness.
    """
    path = Path(os.path.realpath(path))
    before = _fingerprint(path)
    cached = _load_cached(before)
    if cached is not None:
        return cached
    manifest = _read_manifest(read_gguf(path), progress)
    if _fingerprint(path) != before:
        raise CorruptModelFile(f"{path} was changed while it was read; wait until it is complete")
    _store_cached(before, manifest)
    return manifest


def read_spec(gguf: GgufFile) -> ModelSpec:
    """The spec of a parsed file; UnsupportedModel if its architecture, or a part of it, is not supported."""
    if gguf.integer("split.count", 1) > 1:
        raise UnsupportedModel(
            f"{gguf.path} is one part of a split model, which is not supported; merge the parts with llama-gguf-split --merge"
        )
    return find_architecture(gguf.text("general.architecture")).read_spec(gguf)


def _read_manifest(gguf: GgufFile, progress: ProgressCallback | None) -> Manifest:
    spec = read_spec(gguf)
    names = find_architecture(spec.architecture).tensor_names(gguf, spec)
    tensors = [tuple(_tensor_info(role, gguf.tensors[name]) for role, name in unit.items()) for unit in names]
    total_bytes = sum(tensor.size_bytes for unit in tensors for tensor in unit)
    with FileSource(gguf.path) as source:
        read = _Reading(source, progress, f"Hashing {gguf.path.name}", total_bytes)
        units = tuple(_hash_unit(read, index, unit_name(spec, index), unit) for index, unit in enumerate(tensors))
    return Manifest(spec, units, compute_model_digest(spec, units), gguf.size_bytes)


def _tensor_info(role: str, tensor: GgufTensor) -> TensorInfo:
    shape = tuple(reversed(tensor.dimensions))
    return TensorInfo(tensor.name, role, tensor.block_format.name, shape, tensor.offset, tensor.size_bytes)


class _Reading:
    """Reads tensors in chunks and reports the progress."""

    def __init__(self, source: FileSource, progress: ProgressCallback | None, description: str, total_bytes: int) -> None:
        self._source, self._progress, self._description, self._total_bytes = source, progress, description, total_bytes
        self._done_bytes = 0

    def chunks(self, tensor: TensorInfo) -> Iterator[bytes]:
        for offset, size in chunks_of(tensor.offset, tensor.size_bytes):
            yield self._source.read(offset, size)
            self._done_bytes += size
            if self._progress is not None:
                self._progress(self._description, self._done_bytes, self._total_bytes)


def _hash_unit(reading: _Reading, index: int, name: str, tensors: tuple[TensorInfo, ...]) -> Unit:
    digest = hashlib.sha256()
    for tensor in tensors:
        for chunk in reading.chunks(tensor):
            digest.update(chunk)
    return Unit(index, name, tensors, sum(tensor.size_bytes for tensor in tensors), digest.hexdigest())


def _fingerprint(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise CorruptModelFile(f"{path} cannot be read: {error.strerror or error}") from error
    return json.dumps([MANIFEST_VERSION, str(path), status.st_size, status.st_mtime_ns])


def _cache_path(fingerprint: str) -> Path:
    return cache_folder() / "manifests" / f"{hashlib.sha256(fingerprint.encode()).hexdigest()}.json"


def _load_cached(fingerprint: str) -> Manifest | None:
    try:
        return Manifest.from_json(_cache_path(fingerprint).read_bytes())
    except (OSError, ModelFileError):
        return None


def _store_cached(fingerprint: str, manifest: Manifest) -> None:
    """Written beside its place and renamed, so that nobody ever reads half a manifest."""
    path = _cache_path(fingerprint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            partial.write_text(manifest.to_json(), encoding="utf-8")
            os.replace(partial, path)
    except OSError:
        return
