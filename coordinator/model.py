"""The model that the coordinator serves: its file, its manifest, and what the planner must know of it."""

import logging
from dataclasses import dataclass
from pathlib import Path

from dairllm.coordinator.planner import ModelDemand, UnitDemand
from dairllm.coordinator.text import ServedModel
from dairllm.kernels_pyx import BLOCK_FORMATS
from dairllm.mesh.arithmetic import ARITHMETIC_FEATURE
from dairllm.mesh.errors import InvalidModel
from dairllm.model_files.chat_template import ChatTemplate, load_chat_template
from dairllm.model_files.errors import InvalidTemplate, ModelFileError, UnsupportedModel
from dairllm.model_files.fetch import resolve_model
from dairllm.model_files.gguf_file import GgufFile, read_gguf
from dairllm.model_files.manifest import Manifest, Unit
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.model_files.progress import ProgressCallback
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    path: Path
    manifest: Manifest
    served: ServedModel

    def demand(self, context_length: int, kv_cache: str) -> ModelDemand:
        """kv_cache: element type of keys and values in the cache."""
        spec, units, element_bytes = self.manifest.spec, self.manifest.units, BLOCK_FORMATS[kv_cache].block_bytes
        return ModelDemand(
            name=self.served.name,
            digest=self.manifest.model_digest,
            units=tuple(_unit_demand(spec, unit, element_bytes) for unit in units),
            tied_bytes=self.manifest.tied_bytes,
            features=spec.needed_features() | {ARITHMETIC_FEATURE},
            block_formats=frozenset(tensor.block_format for unit in units for tensor in unit.tensors),
            context_length=context_length,
        )


def load_model(name_or_path: str, served_name: str | None, arithmetic: str, progress: ProgressCallback | None) -> LoadedModel:
    """Find or fetch the file, check it whole and read what people talk to the model with.

    served_name: what clients call it; None for the name that it was asked for by, or its file's name. arithmetic: as in ServedModel.
    Blocks. Raises InvalidModel.
    """
    try:
        path = resolve_model(name_or_path, progress)
        gguf = read_gguf(path)
        manifest = build_manifest(path, progress)
        tokenizer = _tokenizer_of(gguf)
        template = _template_of(gguf, tokenizer)
    except ModelFileError as error:
        raise InvalidModel(str(error)) from error
    name = served_name or (path.stem if Path(name_or_path).name == path.name else name_or_path)
    return LoadedModel(path, manifest, ServedModel(name, manifest.model_digest.hex(), arithmetic, manifest.spec, tokenizer, template))


def _tokenizer_of(gguf: GgufFile) -> Tokenizer | None:
    """A model without a tokenizer that is known exactly is served for token ids: better than with one that is nearly right."""
    try:
        return load_tokenizer(gguf)
    except UnsupportedModel as error:
        logger.warning("the model is served for token ids only: %s", error)
        return None


def _template_of(gguf: GgufFile, tokenizer: Tokenizer | None) -> ChatTemplate | None:
    if tokenizer is None:
        return None
    try:
        return load_chat_template(gguf, tokenizer)
    except (UnsupportedModel, InvalidTemplate) as error:
        logger.warning("/v1/chat/completions is not available: %s", error)
        return None


def _unit_demand(spec: ModelSpec, unit: Unit, element_bytes: int) -> UnitDemand:
    state_bytes = spec.state_bytes_per_token(unit.index, element_bytes)
    return UnitDemand(unit.size_bytes, unit.bytes_read_per_step(spec), state_bytes)
