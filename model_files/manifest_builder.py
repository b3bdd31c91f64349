"""Building a file's manifest, and keeping it so that the file is hashed once and not at every start."""

import hashlib
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dairllm.kernels_pyx import STAGE_FEATURES
from dairllm.model_files.architectures import find_architecture
from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.codec import manifest_from_bytes, manifest_to_bytes
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.file_identity import FileIdentity, identity_of, is_certain
from dairllm.model_files.gguf_file import GgufFile, GgufTensor, read_gguf
from dairllm.model_files.manifest import Manifest, ModelFile, TensorInfo, Unit, compute_model_digest
from dairllm.model_files.progress import ProgressCallback
from dairllm.model_files.reader import ModelSource, ranges_of
from dairllm.model_files.spec import ModelSpec, require_features

# Part of the cache key: raised whenever the same file would give another manifest.
MANIFEST_VERSION = 4


def build_manifest(path: Path, progress: ProgressCallback | None = None) -> Manifest:
    """The manifest of a GGUF file, from the cache if the file has certainly not changed since (`file_identity`).

    Otherwise every unit is read once, in order, so that a tied embedding is read twice: it is part of two units. Raises
    CorruptModelFile or UnsupportedModel. A cache that cannot be read or written costs time, never correctness.
    """
    path = Path(os.path.realpath(path))
    before, began_ns = _identity(path), time.time_ns()
    cached = _load_cached(path, before)
    if cached is not None:
        return cached
    manifest = _read_manifest(read_gguf(path), progress)
    if _identity(path) != before:
        raise CorruptModelFile(f"{path} was changed while it was read; wait until it is complete")
    if is_certain(before, began_ns):
        _store_cached(path, before, manifest)
    return manifest


def read_spec(gguf: GgufFile) -> ModelSpec:
    """The spec of a parsed file; UnsupportedModel if its architecture, or something that it asks of the kernels, is not supported."""
    if gguf.integer("split.count", 1) > 1:
        raise UnsupportedModel(
            f"{gguf.path} is one part of a split model, which is not supported; merge the parts with llama-gguf-split --merge"
        )
    spec = find_architecture(gguf.text("general.architecture")).read_spec(gguf)
    require_features(spec, STAGE_FEATURES)
    return spec


def _read_manifest(gguf: GgufFile, progress: ProgressCallback | None) -> Manifest:
    spec = read_spec(gguf)
    names = find_architecture(spec.architecture).tensor_names(gguf, spec)
    tensors = [tuple(_tensor_info(role, gguf.tensors[name]) for role, name in unit.items()) for unit in names]
    name = os.fsencode(gguf.path.name).decode(errors="backslashreplace")
    files = (ModelFile(name=name, size_bytes=gguf.size_bytes),)
    total_bytes = sum(tensor.size_bytes for unit in tensors for tensor in unit)
    with ModelSource([gguf.path]) as source:
        hashing = _Hashing(source, progress, f"Hashing {name}", total_bytes)
        units = tuple(hashing.unit(index, unit) for index, unit in enumerate(tensors))
    return Manifest(spec=spec, units=units, files=files, model_digest=compute_model_digest(spec, units))


def _tensor_info(role: str, tensor: GgufTensor) -> TensorInfo:
    return TensorInfo(
        name=tensor.name,
        role=role,
        block_format=tensor.block_format.name,
        shape=tuple(reversed(tensor.dimensions)),
        offset_bytes=tensor.offset,
        size_bytes=tensor.size_bytes,
    )


class _Hashing:
    """Reads units and reports the progress."""

    def __init__(self, source: ModelSource, progress: ProgressCallback | None, description: str, total_bytes: int) -> None:
        self._source, self._progress, self._description, self._total_bytes = source, progress, description, total_bytes
        self._done_bytes = 0

    def unit(self, index: int, tensors: tuple[TensorInfo, ...]) -> Unit:
        digest = hashlib.sha256()
        unit = Unit(index=index, tensors=tensors, size_bytes=sum(tensor.size_bytes for tensor in tensors), digest=b"")
        for place in ranges_of(unit):
            digest.update(self._source.read(place))
            self._done_bytes += place.size_bytes
            if self._progress is not None:
                self._progress(self._description, self._done_bytes, self._total_bytes)
        return replace(unit, digest=digest.digest())


def _identity(path: Path) -> FileIdentity:
    try:
        return identity_of(path.stat())
    except OSError as error:
        raise CorruptModelFile(f"{path} cannot be read: {error.strerror or error}") from error


def _cache_path(model: Path, identity: FileIdentity) -> Path:
    key = json.dumps([MANIFEST_VERSION, os.fsencode(model).hex(), *identity])
    return cache_folder() / "manifests" / f"{hashlib.sha256(key.encode()).hexdigest()}.manifest"


def _load_cached(model: Path, identity: FileIdentity) -> Manifest | None:
    try:
        return manifest_from_bytes(_cache_path(model, identity).read_bytes())
    except (OSError, ModelFileError):
        return None


def _store_cached(model: Path, identity: FileIdentity, manifest: Manifest) -> None:
    """Written beside its place and renamed, so that nobody ever reads half a manifest."""
    path = _cache_path(model, identity)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            partial.write_bytes(manifest_to_bytes(manifest))
            os.replace(partial, path)
    except OSError:
        return
