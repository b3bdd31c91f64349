"""Building a model's manifest, and keeping it so that its files are hashed once and not at every start."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dairllm.kernels_pyx import STAGE_FEATURES
from dairllm.model_files.architectures import architecture_of
from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.codec import manifest_from_bytes, manifest_to_bytes
from dairllm.model_files.containers import Container, open_container
from dairllm.model_files.errors import CorruptModelFile, ModelFileError
from dairllm.model_files.file_identity import FileIdentity, identity_of, is_certain
from dairllm.model_files.manifest import Manifest, ModelFile, Unit, compute_model_digest
from dairllm.model_files.progress import ProgressCallback
from dairllm.model_files.reader import ModelSource, ranges_of
from dairllm.model_files.spec import ModelSpec, require_features

# Part of the cache key: raised whenever the same file would give another manifest.
MANIFEST_VERSION = 6


def build_manifest(path: Path, progress: ProgressCallback | None = None) -> Manifest:
    """The manifest of a file or folder, from the cache if no file of it has changed since, which must be certain (`file_identity`).

    Otherwise every unit is read once, in order, so that a tied embedding is read twice: it is part of two units. Raises
    UnknownModelName, CorruptModelFile or UnsupportedModel. A cache that cannot be read or written costs time, never correctness.
    """
    container = open_container(path)
    before, began_ns = _identities(container), time.time_ns()
    cached = _load_cached(before)
    if cached is not None:
        return cached
    container = open_container(path)  # its headers were read before it was known which files to look at
    manifest = _read_manifest(container, progress)
    if _identities(container) != before:
        raise CorruptModelFile(f"{path} was changed while it was read; wait until it is complete")
    if all(is_certain(identity, began_ns) for identity in before.values()):
        _store_cached(before, manifest)
    return manifest


def read_spec(container: Container) -> ModelSpec:
    """Its description; UnsupportedModel if its architecture, or something that it asks of the kernels, is not supported."""
    spec = architecture_of(container).read_spec(container)
    require_features(spec, STAGE_FEATURES)
    return spec


def outline(container: Container) -> tuple[ModelSpec, tuple[Unit, ...]]:
    """What would run, as far as headers tell: the units have no digests yet. Raises as `read_spec`."""
    spec = read_spec(container)
    tensors = architecture_of(container).unit_tensors(container, spec)
    sizes = [sum(tensor.size_bytes for tensor in unit) for unit in tensors]
    return spec, tuple(Unit(index=index, tensors=unit, size_bytes=sizes[index], digest=b"") for index, unit in enumerate(tensors))


def _read_manifest(container: Container, progress: ProgressCallback | None) -> Manifest:
    spec, outlines = outline(container)
    files = tuple(ModelFile(name=_text_of(file.path.name), size_bytes=file.size_bytes) for file in container.files)
    total_bytes = sum(unit.size_bytes for unit in outlines)
    with ModelSource(container.paths) as source:
        hashing = _Hashing(source, progress, f"Hashing {_text_of(container.path.name)}", total_bytes)
        units = tuple(hashing.unit(unit) for unit in outlines)
    return Manifest(spec=spec, units=units, files=files, model_digest=compute_model_digest(spec, units))


def _text_of(name: str) -> str:
    """Of a file's name whatever bytes it has."""
    return os.fsencode(name).decode(errors="backslashreplace")


class _Hashing:
    """Reads units and reports the progress."""

    def __init__(self, source: ModelSource, progress: ProgressCallback | None, description: str, total_bytes: int) -> None:
        self._source, self._progress, self._description, self._total_bytes = source, progress, description, total_bytes
        self._done_bytes = 0

    def unit(self, unit: Unit) -> Unit:
        """With its digest."""
        digest = hashlib.sha256()
        for place in ranges_of(unit):
            digest.update(self._source.read(place))
            self._done_bytes += place.size_bytes
            if self._progress is not None:
                self._progress(self._description, self._done_bytes, self._total_bytes)
        return replace(unit, digest=digest.digest())


def _identities(container: Container) -> dict[str, FileIdentity]:
    """Of all files that the manifest depends on, by their paths."""
    paths = (*container.paths, *container.descriptions)
    return {os.fsencode(path).hex(): _identity(path) for path in paths}


def _identity(path: Path) -> FileIdentity:
    try:
        return identity_of(path.stat())
    except OSError as error:
        raise CorruptModelFile(f"{path} cannot be read: {error.strerror or error}") from error


def _cache_path(identities: Mapping[str, FileIdentity]) -> Path:
    key = json.dumps([MANIFEST_VERSION, sorted(identities.items())])
    return cache_folder() / "manifests" / f"{hashlib.sha256(key.encode()).hexdigest()}.manifest"


def _load_cached(identities: Mapping[str, FileIdentity]) -> Manifest | None:
    try:
        return manifest_from_bytes(_cache_path(identities).read_bytes())
    except (OSError, ModelFileError):
        return None


def _store_cached(identities: Mapping[str, FileIdentity], manifest: Manifest) -> None:
    """Written beside its place and renamed, so that nobody ever reads half a manifest."""
    path = _cache_path(identities)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            partial.write_bytes(manifest_to_bytes(manifest))
            os.replace(partial, path)
    except OSError:
        return
