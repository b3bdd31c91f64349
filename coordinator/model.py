"""The model that the coordinator serves: its file, its manifest, and what the planner must know of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dairllm.coordinator.planner import ModelDemand, UnitDemand
from dairllm.coordinator.text import ServedModel
from dairllm.mesh.arithmetic import ARITHMETIC_FEATURE
from dairllm.mesh.cache_types import cache_features
from dairllm.mesh.errors import InvalidModel
from dairllm.mesh.foreign_text import on_one_line
from dairllm.model_files.chat_template import ChatTemplate
from dairllm.model_files.containers import Container, open_container
from dairllm.model_files.errors import InvalidTemplate, ModelFileError, UnsupportedModel
from dairllm.model_files.feed_forward import ExpertFeedForward
from dairllm.model_files.getting.locating import urls_of
from dairllm.model_files.getting.references import HubModel, WebFile, parse_reference
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.manifest import Manifest, Unit
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.model_files.memory import cache_bytes_per_token, experts_size_of, scratch_of, streamed_size_of, weights_bytes
from dairllm.model_files.progress import ProgressCallback
from dairllm.model_files.quantizing import quantized_manifest
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.template_process import TemplateProcesses
from dairllm.model_files.template_sources import load_chat_template
from dairllm.model_files.tokenizer import Tokenizer
from dairllm.model_files.tokenizer_sources import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """paths: of its files with weights, in the order of the manifest. urls: where shards may fetch these, too; none if they may not."""

    paths: tuple[Path, ...]
    manifest: Manifest
    served: ServedModel
    urls: tuple[str, ...] = ()

    def close(self) -> None:
        """Ends the processes that render its chat template."""
        if self.served.chat_template is not None:
            self.served.chat_template.close()

    def demand(self, context_length: int, kv_cache: str, max_batch_rows: int) -> ModelDemand:
        """kv_cache: element type of keys and values in the cache. max_batch_rows: of one frame."""
        return demand_of(self.manifest, self.served.name, context_length, kv_cache, max_batch_rows)


def demand_of(manifest: Manifest, name: str, context_length: int, kv_cache: str, max_batch_rows: int) -> ModelDemand:
    """What the planner must know of a model."""
    spec, units = manifest.spec, manifest.units
    return ModelDemand(
        name=name,
        digest=manifest.model_digest,
        units=tuple(_unit_demand(spec, unit, kv_cache, context_length, max_batch_rows) for unit in units),
        tied_bytes=_tied_bytes(units),
        features=spec.needed_features() | {ARITHMETIC_FEATURE} | cache_features(kv_cache),
        block_formats=frozenset(tensor.packed_format for unit in units for tensor in unit.tensors),
        context_length=context_length,
        scratch=scratch_of(spec, units, max_rows=max_batch_rows, context_length=context_length),
        kv_cache=kv_cache,
        file_bytes=sum(unit.size_bytes for unit in units) - manifest.tied_bytes,
    )


def load_model(
    name_or_path: str,
    served_name: str | None,
    arithmetic: str,
    progress: ProgressCallback | None,
    assumed_pretokenizer: str | None = None,
    quantize: str | None = None,
    *,
    direct: bool = False,
) -> LoadedModel:
    """Find or fetch the file, check it whole and read what people talk to the model with.

    served_name: what clients call it; None for the name that it was asked for by, or its file's name. arithmetic: as in ServedModel.
    quantize: what matrices are made while they are loaded; None for what they are stored as. assumed_pretokenizer: as in `load_tokenizer`.
    direct: whether shards may fetch it from where it is from. Blocks. Raises InvalidModel.
    """
    try:
        path = resolve_model(name_or_path, progress)
        container = open_container(path)
        manifest = build_manifest(path, progress)
        if quantize is not None:
            manifest = quantized_manifest(manifest, quantize)
        tokenizer = _tokenizer_of(container, assumed_pretokenizer)
        template = _template_of(container, tokenizer)
        urls = urls_of(name_or_path, container.paths) if direct else ()
    except ModelFileError as error:
        raise InvalidModel(str(error)) from error
    name, aliases = names_of(name_or_path, path, served_name, container.name)
    served = ServedModel(name, manifest.model_digest.hex(), arithmetic, manifest.spec, tokenizer, template, aliases=aliases)
    if direct and not urls:
        logger.warning("--direct-weights has no effect: %s is a file of this machine, and nobody knows where else it is", path)
    return LoadedModel(container.paths, manifest, served, urls)


def names_of(name_or_path: str, path: Path, served_name: str | None, own_name: str | None = None) -> tuple[str, frozenset[str]]:
    """What clients call the model, and what else they may: as it was asked for, the file's name with or without ending, its path. Of a
    hub's also OWNER/NAME; URLs are told to nobody, since some have a secret in them. own_name: what a folder, or a store, calls it."""
    own_name = own_name or path.stem
    of_file = frozenset({path.name, path.stem, str(path), own_name})
    match parse_reference(name_or_path):
        case WebFile():
            return served_name or on_one_line(path.stem), of_file
        case HubModel() as model:
            return served_name or on_one_line(name_or_path), of_file | {name_or_path, model.repository}
    name = served_name or on_one_line(own_name if Path(name_or_path).name == path.name else name_or_path)
    return name, of_file | {name_or_path}


def _tokenizer_of(container: Container, assumed_pretokenizer: str | None) -> Tokenizer | None:
    """A model without a tokenizer that is known exactly is served for token ids: better than with one that is nearly right."""
    try:
        tokenizer = load_tokenizer(container, assumed_pretokenizer)
    except UnsupportedModel as error:
        logger.warning("the model is served for token ids only: %s", error)
        return None
    for doubt in tokenizer.doubts:
        logger.warning("%s", doubt)
    return tokenizer


def _template_of(container: Container, tokenizer: Tokenizer | None) -> ChatTemplate | None:
    if tokenizer is None:
        return None
    processes = TemplateProcesses()
    try:
        return load_chat_template(container, tokenizer, processes)
    except (UnsupportedModel, InvalidTemplate) as error:
        processes.close()
        logger.warning("/v1/chat/completions is not available: %s", error)
        return None


def _unit_demand(spec: ModelSpec, unit: Unit, kv_cache: str, context_length: int, max_rows: int) -> UnitDemand:
    state_bytes = cache_bytes_per_token(spec, unit.index, kv_cache, context_length)
    layer = spec.layer_of(unit.index)
    experts = layer.feed_forward if layer is not None and isinstance(layer.feed_forward, ExpertFeedForward) else None
    share = 0.0 if experts is None else experts.num_experts_used / experts.num_experts
    streamed = streamed_size_of(unit, max_rows)
    size_of_experts = None if experts is None else experts_size_of(unit, experts.num_experts_used)
    sizes = weights_bytes([unit]), unit.bytes_read_per_step(spec), state_bytes, unit.expert_bytes
    return UnitDemand(*sizes, share, streamed, size_of_experts)


def _tied_bytes(units: Sequence[Unit]) -> int:
    """In memory, of what embedding and head have in common."""
    first, last = units[0], units[-1]
    return weights_bytes([first]) + weights_bytes([last]) - weights_bytes([first, last])
