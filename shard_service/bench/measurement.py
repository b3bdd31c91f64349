"""Speed of one stage that holds a whole model, without network, batching or sampling: what the kernels give on this machine.

As llama.cpp's llama-bench: random token ids, prefill of a prompt into an empty cache, then decoding one row of every sequence at a
time; logits are computed wherever a token would be sampled. Reading the memory is measured between the runs, since other programs
on the machine slow down both alike.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import StageSlice, get_num_threads, memory_read_bandwidth, optimization_info, set_num_threads
from dairllm.mesh.arithmetic import DEFAULT_ARITHMETIC
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.peers import Peer
from dairllm.mesh.system_memory import resident_bytes
from dairllm.model_files.manifest import Manifest
from dairllm.model_files.memory import HEAD_ROWS
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry
from dairllm.shard_service.forward.building import StageParts, build_stage
from dairllm.shard_service.forward.head import Head, WholeProjection
from dairllm.shard_service.forward.stage_states import StageStates
from dairllm.shard_service.kv_cache.layers import make_cache, memory_of
from dairllm.shard_service.weights.sources import LocalFiles
from dairllm.shard_service.weights.store import LayerStore

BLOCK_TOKENS = 32
MAX_BATCH_ROWS = 512
BANDWIDTH_BUFFER_BYTES = 256 << 20
BANDWIDTH_PASSES = 3
RANDOM_SEED = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """prompt, generate, depth: tokens of each sequence; decoding begins with `depth` tokens in the cache."""

    prompt: int
    generate: int
    sequences: int
    depth: int
    repeat: int

    @property
    def context_length(self) -> int:
        return max(self.prompt, self.depth + self.generate)


class Spread(NamedTuple):
    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class StageSpeed:
    """Speeds in tokens per second, decoding over all sequences together. bytes_per_token: weights that a decode step reads."""

    prefill_tok_s: Spread
    decode_tok_s: Spread
    memory_bytes_per_s: Spread
    bytes_per_token: int
    share_of_bandwidth: float
    weights_bytes: int
    load_s: float
    resident_bytes: int
    threads: int
    isa: str

    def to_json(self) -> dict[str, Any]:
        """One flat object; every spread becomes its median and `…_spread`: [lowest, highest]."""
        flat: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if isinstance(value, tuple):
                flat[name], flat[f"{name}_spread"] = value[0], list(value[1:])
            else:
                flat[name] = value
        return flat


def measure_stage(paths: tuple[Path, ...], manifest: Manifest, workload: Workload, threads: int | None) -> StageSpeed:
    """Load the model and measure. Raises InvalidSetting if the workload is longer than the context or the threads are out of range."""
    if workload.context_length > manifest.spec.context_length:
        raise InvalidSetting(
            f"the workload needs a context of {workload.context_length} tokens; {manifest.spec.name} has {manifest.spec.context_length}"
        )
    if threads is not None:
        try:
            set_num_threads(threads)
        except ValueError as error:
            raise InvalidSetting(str(error)) from error
    began_s = time.perf_counter()
    stage = _LoadedStage(paths, manifest, workload)
    load_s = time.perf_counter() - began_s
    stage.run_prefill()
    stage.run_decode()
    prefill, decode, bandwidth = [], [], []
    for _ in range(workload.repeat):
        bandwidth.append(memory_read_bandwidth(BANDWIDTH_BUFFER_BYTES, BANDWIDTH_PASSES))
        prefill.append(workload.prompt / stage.run_prefill())
        decode.append(workload.generate * workload.sequences / stage.run_decode())
    bytes_per_token = sum(unit.bytes_read_per_step(manifest.spec, workload.sequences) for unit in manifest.units)
    steps_s = median(decode) / workload.sequences
    return StageSpeed(
        prefill_tok_s=_spread(prefill),
        decode_tok_s=_spread(decode),
        memory_bytes_per_s=_spread(bandwidth),
        bytes_per_token=bytes_per_token,
        share_of_bandwidth=bytes_per_token * steps_s / median(bandwidth),
        weights_bytes=stage.weights_bytes,
        load_s=load_s,
        resident_bytes=resident_bytes(),
        threads=get_num_threads(),
        isa=str(optimization_info()["isa"]),
    )


class _LoadedStage:
    """A model in memory with room in its cache for the workload; `run_…` give the seconds that a run took."""

    def __init__(self, paths: tuple[Path, ...], manifest: Manifest, workload: Workload) -> None:
        self._workload = workload
        self._blocks_per_sequence = math.ceil(workload.context_length / BLOCK_TOKENS)
        geometry = CacheGeometry(
            num_blocks=self._blocks_per_sequence * workload.sequences,
            block_tokens=BLOCK_TOKENS,
            context_length=workload.context_length,
            max_batch_rows=max(MAX_BATCH_ROWS, workload.sequences),
        )
        assignment = whole_model(paths[0], manifest, geometry)
        self.weights_bytes, (body, head) = asyncio.run(_load(paths, assignment))
        assert body is not None, "a whole model has layers"
        assert head is not None, "a whole model has a head"
        self._body, self._head = body, Head(WholeProjection(head), manifest.spec.num_tokens, assignment.wire)
        self._kv = [make_cache(layer, geometry, assignment.num_places) for layer in manifest.spec.layers]
        self._states = StageStates(self._kv, assignment.layer_units)
        numbers = np.random.default_rng(RANDOM_SEED)
        shape = (workload.sequences, workload.context_length)
        self._token_ids = numbers.integers(0, manifest.spec.num_tokens, shape, dtype=np.int32)

    def run_prefill(self) -> float:
        began_s = time.perf_counter()
        self._fill(0, self._workload.prompt)
        return time.perf_counter() - began_s

    def run_decode(self) -> float:
        for sequence in range(self._workload.sequences):
            self._fill(sequence, self._workload.depth)
        began_s = time.perf_counter()
        for position in range(self._workload.depth, self._workload.depth + self._workload.generate):
            slices = [self._slice(sequence, position, 1) for sequence in range(self._workload.sequences)]
            self._compute(self._token_ids[:, position], slices, np.arange(self._workload.sequences, dtype=np.int32))
        return time.perf_counter() - began_s

    def _fill(self, sequence: int, num_tokens: int) -> None:
        """The first tokens of a sequence, in chunks; logits after the last."""
        for first in range(0, num_tokens, MAX_BATCH_ROWS):
            rows = min(MAX_BATCH_ROWS, num_tokens - first)
            wanted = np.array([rows - 1] if first + rows == num_tokens else [], np.int32)
            self._compute(self._token_ids[sequence, first : first + rows], [self._slice(sequence, first, rows)], wanted)

    def _slice(self, sequence: int, first_position: int, num_rows: int) -> StageSlice:
        first_block = sequence * self._blocks_per_sequence
        needed = math.ceil((first_position + num_rows) / BLOCK_TOKENS)
        table = np.arange(first_block, first_block + needed, dtype=np.int32)
        return StageSlice(num_rows, first_position, table)

    def _compute(self, token_ids: npt.NDArray[np.int32], slices: list[StageSlice], logits_rows: npt.NDArray[np.int32]) -> None:
        with self._states.used_by(slices, self._body.units_held) as slices_with_states:
            hidden = self._body.run([memory_of(cache) for cache in self._kv], np.ascontiguousarray(token_ids), slices_with_states)
        for first in range(0, len(logits_rows), HEAD_ROWS):
            self._head.logits(hidden[logits_rows[first : first + HEAD_ROWS]])


async def _load(paths: tuple[Path, ...], assignment: AssignmentFacts) -> tuple[int, StageParts]:
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="load") as executor:
        store = LayerStore(executor)
        units = await store.load(assignment, [LocalFiles(paths, executor)], lambda _: None)
        return store.weights_bytes, build_stage(assignment, units)


def whole_model(path: Path, manifest: Manifest, geometry: CacheGeometry, wire: str = DEFAULT_ARITHMETIC.wire) -> AssignmentFacts:
    """An assignment of every unit of a model whose first file this is, as a cluster of one machine would make it."""
    return AssignmentFacts(
        epoch=1,
        model_digest=manifest.model_digest,
        model=manifest.spec,
        units=manifest.units,
        model_folder=str(path.parent),
        files=manifest.files,
        next=Peer("nobody", ()),
        geometry=geometry,
        wire=wire,
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))
