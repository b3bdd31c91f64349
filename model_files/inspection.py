"""What would run of a model: from its headers, without reading weights, and of a model that is elsewhere without fetching it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dairllm.model_files.containers import Container, open_container
from dairllm.model_files.errors import CorruptModelFile, ModelFetchError, UnsupportedModel
from dairllm.model_files.getting.headers import RemoteHeaders
from dairllm.model_files.getting.locating import Located, locate
from dairllm.model_files.manifest import Unit
from dairllm.model_files.manifest_builder import outline
from dairllm.model_files.memory import cache_bytes_per_token, scratch_of, weights_bytes
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.tokenizer_sources import load_tokenizer

_ARCHITECTURE_KEYS = ("general.architecture", "model_type")


@dataclass(frozen=True, slots=True)
class StoredShare:
    """Of one element type in the files."""

    parameters: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What the files say. kind: of container. licence: None if it is not known. by_type: the largest first. tokenizer: in words."""

    kind: str
    name: str
    architecture: str
    licence: str | None
    num_files: int
    size_bytes: int
    by_type: Mapping[str, StoredShare]
    tokenizer: str
    has_chat_template: bool

    @property
    def parameters(self) -> int:
        return sum(share.parameters for share in self.by_type.values())


@dataclass(frozen=True, slots=True)
class Running:
    """What it is to run it. context_length: that the model was made for. unit_bytes: of embedding, layers and head, as stored; tied_bytes
    of them are in two units. sequence_tokens: of one sequence, for which cache_bytes are taken; weights_bytes and scratch_bytes are taken,
    too.
    """

    context_length: int
    num_layers: int
    features: tuple[str, ...]
    unit_bytes: tuple[int, ...]
    bytes_read_per_token: int
    weights_bytes: int
    sequence_tokens: int
    cache_bytes: int
    scratch_bytes: int

    @property
    def memory_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.scratch_bytes


@dataclass(frozen=True, slots=True)
class Inspection:
    """path: what is opened, or would be. is_here: whether all of it is on this machine. running: None if it cannot run, as `problem`
    says."""

    path: Path
    is_here: bool
    stored: StoredModel
    running: Running | None
    problem: str = ""
    notes: tuple[str, ...] = ()


def inspect(written: str, sequence_tokens: int, kv_cache: str, max_rows: int) -> Inspection:
    """Of the model that is meant behind --model. sequence_tokens: at most; no more than the model was made for. kv_cache: element type of
    keys and values. max_rows: of one frame.

    Raises UnknownModelName, ModelFetchError, and CorruptModelFile or UnsupportedModel for files that cannot even be read; a model that can
    be read but cannot run is told as such.
    """
    located = locate(written)
    with _opened(located) as container:
        stored = _stored(container, located.licence)
        try:
            spec, units = outline(container)
        except (UnsupportedModel, CorruptModelFile) as error:
            return Inspection(located.path, not located.missing, stored, None, str(error), located.notes)
    running = _running(spec, units, min(sequence_tokens, spec.context_length), kv_cache, max_rows)
    return Inspection(located.path, not located.missing, stored, running, "", located.notes)


@contextmanager
def _opened(located: Located) -> Iterator[Container]:
    if not located.missing:
        yield open_container(located.path)
        return
    with RemoteHeaders(located.missing) as headers:
        yield _open_headers(headers, located.entry)


def _open_headers(headers: RemoteHeaders, entry: str) -> Container:
    """A header that is cut off looks damaged: then more of it is fetched."""
    problem: CorruptModelFile | None = None
    while headers.fetch_more():
        try:
            return open_container(headers.folder / entry)
        except CorruptModelFile as error:
            problem = error
    raise problem or ModelFetchError(f"nothing of {entry or 'the model'} could be fetched")


def _stored(container: Container, licence: str | None) -> StoredModel:
    by_type: dict[str, StoredShare] = {}
    for tensor in container.tensors.values():
        so_far = by_type.get(tensor.block_format.name, StoredShare(0, 0))
        share = StoredShare(so_far.parameters + math.prod(tensor.shape), so_far.size_bytes + tensor.size_bytes)
        by_type[tensor.block_format.name] = share
    return StoredModel(
        kind=container.kind,
        name=_text_at(container, "general.name") or container.name,
        architecture=next((found for key in _ARCHITECTURE_KEYS if (found := _text_at(container, key))), "not known"),
        licence=_text_at(container, "general.license") or licence,
        num_files=len(container.files),
        size_bytes=sum(file.size_bytes for file in container.files),
        by_type=dict(sorted(by_type.items(), key=lambda item: -item[1].size_bytes)),
        tokenizer=_describe_tokenizer(container),
        has_chat_template=bool(_text_at(container, "tokenizer.chat_template")) or any("template" in name for name in container.companions),
    )


def _text_at(container: Container, key: str) -> str:
    value = container.metadata.get(key)
    return value if isinstance(value, str) else ""


def _describe_tokenizer(container: Container) -> str:
    try:
        tokenizer = load_tokenizer(container)
    except (UnsupportedModel, CorruptModelFile) as error:
        return f"none: {error}"
    return f"{_text_at(container, 'tokenizer.ggml.model') or 'tokenizer.json'}, {tokenizer.vocab_size} tokens"


def _running(spec: ModelSpec, units: tuple[Unit, ...], tokens: int, kv_cache: str, max_rows: int) -> Running:
    scratch = scratch_of(spec, units, max_rows=max_rows, context_length=tokens)
    return Running(
        context_length=spec.context_length,
        num_layers=spec.num_layers,
        features=tuple(sorted(spec.needed_features())),
        unit_bytes=tuple(unit.size_bytes for unit in units),
        bytes_read_per_token=sum(unit.bytes_read_per_step(spec) for unit in units),
        weights_bytes=weights_bytes(units),
        sequence_tokens=tokens,
        cache_bytes=tokens * sum(cache_bytes_per_token(spec, unit.index, kv_cache, tokens) for unit in units),
        scratch_bytes=scratch.body_bytes + scratch.thread_bytes + scratch.head_bytes,
    )
