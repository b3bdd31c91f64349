"""Models in Ollama's store (https://github.com/ollama/ollama, server/modelpath.go and types/model/name.go).

Layout: manifests/HOST/NAMESPACE/MODEL/TAG is a JSON object with `layers`, of which each has a mediaType and the digest that names its file,
blobs/sha256-…. The layer of the model is a GGUF file. Its tokenizer and chat template are used; Ollama's own template, which is
written in another language, and its parameters are not.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dairllm.model_files.containers.bounded_json import parse_json_object
from dairllm.model_files.containers.container import Container
from dairllm.model_files.containers.regular_files import read_whole
from dairllm.model_files.containers.split_gguf import read_all_parts
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnknownModelName, UnsupportedModel

MODEL_LAYER = "application/vnd.ollama.image.model"
ADAPTER_LAYER = "application/vnd.ollama.image.adapter"
TENSOR_LAYER = "application/vnd.ollama.image.tensor"
MAX_MANIFEST_BYTES = 1 << 20
_MOST_MANIFESTS = 4096
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_NAME_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_NAME = re.compile(rf"(?:(?:({_NAME_PART}(?::[0-9]{{1,5}})?)/)?({_NAME_PART})/)?({_NAME_PART})(?::({_NAME_PART}))?")


def ollama_store() -> Path:
    """Where Ollama keeps models of this user; it need not exist."""
    configured = os.environ.get("OLLAMA_MODELS", "")
    return Path(configured) if configured else Path(os.path.expanduser("~")) / ".ollama" / "models"


def find_in_ollama(name: str, store: Path | None = None) -> Path | None:
    """The manifest of a model such as llama3.2:1b in this user's store, for `open_container`; None if there is none of that name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    host, namespace, model, tag = match.groups()
    path = (store or ollama_store()) / "manifests" / (host or _HOST) / (namespace or _NAMESPACE) / model / (tag or _TAG)
    return path if os.path.isfile(path) else None


def is_ollama_manifest(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("layers"), list) and "schemaVersion" in value


def read_ollama_manifest(path: Path) -> Container:
    """The model whose manifest this is. Raises CorruptModelFile, UnsupportedModel for what Ollama would compute and this would not."""
    if len(path.parents) < 5 or path.parents[3].name != "manifests":
        raise UnknownModelName(f"{path} is a manifest of Ollama, but not in its store; expected …/manifests/HOST/NAMESPACE/MODEL/TAG")
    store = path.parents[4]
    blobs = [_blob_of(path, store, layer) for layer in _layers(path, MODEL_LAYER)]
    for kind, what in {ADAPTER_LAYER: "an adapter", TENSOR_LAYER: "tensors as separate files"}.items():
        if _layers(path, kind):
            raise UnsupportedModel(f"{_name_of(path)} of Ollama has {what}, which is not supported; expected one GGUF file")
    if len(blobs) != 1:
        raise UnsupportedModel(f"{_name_of(path)} of Ollama has {len(blobs)} files with weights; expected one GGUF file")
    return replace(read_all_parts(blobs[0]), name=_name_of(path), kind="Ollama model")


def name_of_blob(path: Path) -> str | None:
    """What Ollama calls the model whose file this is; None for any other file."""
    if path.parent.name != "blobs" or not _DIGEST.fullmatch(path.name):
        return None
    for manifest in _manifests(path.parent.parent):
        try:
            digests = {_digest_of(manifest, layer) for layer in _layers(manifest, MODEL_LAYER)}
        except ModelFileError:
            continue
        if path.name.replace(":", "-") in digests:
            return _name_of(manifest)
    return None


def _layers(path: Path, kind: str) -> list[Mapping[str, Any]]:
    layers = parse_json_object(read_whole(path, MAX_MANIFEST_BYTES), str(path)).get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise CorruptModelFile(f"{path} has no list of layers; expected a manifest of Ollama")
    return [layer for layer in layers if str(layer.get("mediaType")).partition(";")[0] == kind]


def _digest_of(path: Path, layer: Mapping[str, Any]) -> str:
    """As a file's name. Nothing but a digest leads anywhere."""
    match = _DIGEST.fullmatch(str(layer.get("digest"))[:100])
    if match is None:
        raise CorruptModelFile(f"{path} has a layer with the digest {str(layer.get('digest'))[:80]!r}; expected sha256: and 64 digits")
    return f"sha256-{match[1]}"


def _blob_of(path: Path, store: Path, layer: Mapping[str, Any]) -> Path:
    name = _digest_of(path, layer)
    for blob in (store / "blobs" / name, store / "blobs" / name.replace("-", ":", 1)):
        if os.path.exists(blob):
            return blob
    raise CorruptModelFile(f"{_name_of(path)} of Ollama lacks its file {store / 'blobs' / name}; expected it there: 'ollama pull' gets it")


def _name_of(path: Path) -> str:
    """Of a manifest, without what is usual."""
    host, namespace, model, tag = path.parts[-4:]
    before = [] if (host, namespace) == (_HOST, _NAMESPACE) else [namespace] if host == _HOST else [host, namespace]
    return "/".join([*before, f"{model}:{tag}"])


def _manifests(store: Path) -> Iterator[Path]:
    number = 0
    for parent, folders, names in os.walk(store / "manifests"):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            number += 1
            if number > _MOST_MANIFESTS:
                return
            if len(path.relative_to(store).parts) == 5:
                yield path
