"""The model that the coordinator serves: its file, its manifest, and what the planner must know of it."""

import time
from dataclasses import dataclass
from pathlib import Path

from dairllm.coordinator.planner import ModelDemand
from dairllm.coordinator.text import ServedModel
from dairllm.mesh.errors import InvalidModel, UnknownModel
from dairllm.model_files.errors import ModelFileError, UnknownModelName
from dairllm.model_files.manifest import Manifest, Unit
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.model_files.progress import ProgressCallback

KV_ELEMENT_BYTES = 2
"""Keys and values are cached in half precision."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    path: Path
    manifest: Manifest
    served: ServedModel

    def demand(self, context_length: int) -> ModelDemand:
        spec, units = self.manifest.spec, self.manifest.units
        return ModelDemand(
            name=self.served.name,
            digest=bytes.fromhex(self.manifest.model_digest),
            unit_sizes_bytes=tuple(unit.size_bytes for unit in units),
            tied_bytes=_tied_bytes(units[0], units[-1]),
            kv_bytes_per_token_per_layer=2 * spec.num_kv_heads * spec.head_dim * KV_ELEMENT_BYTES,
            num_layers=spec.num_layers,
            architecture=spec.architecture,
            block_formats=frozenset(tensor.block_format for unit in units for tensor in unit.tensors),
            context_length=context_length,
        )


def _tied_bytes(embedding: Unit, head: Unit) -> int:
    places = {(tensor.offset, tensor.size_bytes) for tensor in embedding.tensors}
    return sum(tensor.size_bytes for tensor in head.tensors if (tensor.offset, tensor.size_bytes) in places)
