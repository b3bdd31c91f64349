"""A model in this process, cut into stages as shards would hold it, and texts to run through it."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from dairllm.kernels_pyx import KvCache, PackedMatrix
from dairllm.mesh.cache_types import DEFAULT_CACHE_TYPE
from dairllm.mesh.errors import InvalidSetting
from dairllm.model_files.containers import open_container
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.model_files.progress import progress_bar
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.tokenizer_sources import load_tokenizer
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry
from dairllm.shard_service.bench.measurement import whole_model
from dairllm.shard_service.forward.building import StageParts, build_stage
from dairllm.shard_service.kv_cache.layers import make_cache
from dairllm.shard_service.weights.assembler import LoadedUnit
from dairllm.shard_service.weights.sources import LocalFiles
from dairllm.shard_service.weights.store import LayerStore
from dairllm.shard_service.weights.writers import Weights

ROOT = Path(__file__).resolve().parent.parent
GOLDEN_FILE = ROOT / "tests" / "data" / "smollm2.json"
BLOCK_TOKENS = 32
CHUNK_ROWS = 512
PACKED_ROWS = 4096

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """All units of a model; the stages made of them share the weights. At most CHUNK_ROWS rows a run."""

    path: Path
    spec: ModelSpec
    assignment: AssignmentFacts
    units: tuple[LoadedUnit, ...]

    def stage(self, span: range) -> StageParts:
        """The units of `span`, as a shard with this part of a plan holds them."""
        part = replace(self.assignment, units=self.assignment.units[span.start : span.stop])
        return build_stage(part, self.units[span.start : span.stop])

    def kv_caches(self, span: range, num_tokens: int, element_type: str = DEFAULT_CACHE_TYPE) -> list[KvCache]:
        """One for each layer of `span`, with room for one sequence of this length: see `block_table`.

        InvalidSetting if one of them keeps a state instead.
        """
        layers = range(max(span.start - 1, 0), min(span.stop - 1, self.spec.num_layers))
        geometry = replace(self.assignment.geometry, num_blocks=len(block_table(num_tokens)), element_type=element_type)
        caches = [make_cache(self.spec.layers[layer], geometry) for layer in layers]
        blocks = [cache for cache in caches if isinstance(cache, KvCache)]
        if len(blocks) < len(caches):
            raise InvalidSetting(f"{self.path} has layers with a state in place of keys and values; expected a model without")
        return blocks


def block_table(num_tokens: int) -> npt.NDArray[np.int32]:
    """Of the only sequence in a cache."""
    return np.arange(-(-num_tokens // BLOCK_TOKENS), dtype=np.int32)


def load(name_or_path: str, context_length: int, wire: str = "F32") -> LoadedModel:
    """Find or fetch a model and load all of it. wire: what its stages round by between units; F32 not at all.

    Raises what `resolve_model` and `build_manifest` raise.
    """
    with progress_bar(Console(stderr=True)) as progress:
        path = resolve_model(name_or_path, progress)
        manifest = build_manifest(path, progress)
    geometry = CacheGeometry(-(-context_length // BLOCK_TOKENS), BLOCK_TOKENS, context_length, CHUNK_ROWS)
    assignment = whole_model(path, manifest, geometry, wire)
    return LoadedModel(path, manifest.spec, assignment, asyncio.run(_load_units(path, assignment)))


async def _load_units(path: Path, assignment: AssignmentFacts) -> tuple[LoadedUnit, ...]:
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="load") as executor:
        return tuple(await LayerStore(executor).load(assignment, [LocalFiles(open_container(path).paths, executor)], lambda _: None))


def with_float_weights(model: LoadedModel) -> LoadedModel:
    """The same values as float32: the kernels then leave activations as they are, where quantised weights have them quantised."""
    units = [replace(unit, weights={role: _as_float(weights) for role, weights in unit.weights.items()}) for unit in model.units]
    return replace(model, units=tuple(units))


def _as_float(weights: Weights) -> Weights:
    if not isinstance(weights, PackedMatrix):
        return weights
    matrix = PackedMatrix("F32", weights.outputs, weights.inputs)
    for first in range(0, weights.outputs, PACKED_ROWS):
        ids = np.arange(first, min(first + PACKED_ROWS, weights.outputs))
        matrix.pack_rows(first, weights.dequantize_rows(ids).tobytes())
    return matrix


@dataclass(frozen=True, slots=True)
class Text:
    """kind: what it is a sample of."""

    kind: str
    name: str
    token_ids: TokenIds


def conversations() -> list[Text]:
    """Prompts and answers of the golden file. Its ids are SmolLM2's."""
    cases = json.loads(GOLDEN_FILE.read_text())["cases"]
    return [Text("conversations", case["name"], np.array(case["prompt_ids"] + case["generated_ids_64"], np.int32)) for case in cases]


def documents(model_path: Path, num_tokens: int, window: int, files: Sequence[Path] = ()) -> list[Text]:
    """The first `num_tokens` tokens of these files, by default of the project's own documents, in pieces of at most `window`.

    Raises InvalidSetting if there is less text.
    """
    paths = list(files) or [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")), *sorted((ROOT / "deploy").glob("*.md"))]
    text = "\n\n".join(path.read_text() for path in paths)
    ids = load_tokenizer(open_container(model_path)).encode(text, add_special=False, parse_special=False)[:num_tokens]
    if len(ids) < num_tokens:
        raise InvalidSetting(f"{', '.join(path.name for path in paths)} have {len(ids)} tokens; expected {num_tokens} or more")
    pieces = [ids[first : first + window] for first in range(0, len(ids), window)]
    return [
        Text("documents", f"tokens from {i * window} on", np.array(piece, np.int32)) for i, piece in enumerate(pieces) if len(piece) > 1
    ]
