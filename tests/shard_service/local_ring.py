"""Stages of a model in this process, one behind the other, without a network."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

from dairllm.kernels_pyx import encoded_row_bytes
from dairllm.mesh.encodings import parse_encoding
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult
from dairllm.model_files.containers import open_container
from dairllm.model_files.manifest import Unit
from dairllm.model_files.memory import streamed_size_of
from dairllm.model_files.reader import ModelSource, ranges_of
from dairllm.shard_service.assignment import AssignmentFacts, assignment_from_proto
from dairllm.shard_service.forward.building import build_stage
from dairllm.shard_service.forward.compute_stage import ComputeStage
from dairllm.shard_service.forward.sent_rows import SentRows
from dairllm.shard_service.forward.sequences import SequenceTable
from dairllm.shard_service.kv_cache.layers import KvCaches
from dairllm.shard_service.weights.assembler import FindMatrix, LoadedUnit, UnitAssembler
from dairllm.shard_service.weights.embedding_rows import EmbeddingRows
from dairllm.shard_service.weights.experts import ExpertStore
from dairllm.shard_service.weights.reading import StreamMeter
from dairllm.shard_service.weights.sources import place_in
from dairllm.shard_service.weights.streaming import WeightStream
from dairllm.shard_service.weights.streams import NO_STREAMS, Streams
from tests.shard_service.fake_coordinator import FakeCoordinator


class LocalRing(NamedTuple):
    """width: of the residual stream."""

    stages: tuple[ComputeStage, ...]
    width: int

    @property
    def first(self) -> ComputeStage:
        return self.stages[0]

    @property
    def last(self) -> ComputeStage:
        return self.stages[-1]

    def compute(self, frame: MicroBatch) -> MicroBatchResult:
        """Through all stages."""
        passed: MicroBatch | MicroBatchResult = frame
        for stage in self.stages:
            assert isinstance(passed, MicroBatch)
            passed = stage.compute(passed, 0)
        assert isinstance(passed, MicroBatchResult)
        return passed


def ring_over(path: Path, wire: str, cuts: Sequence[int] = (2,), readers: Executor | None = None, **changes: Any) -> LocalRing:
    """cuts: the units that a stage begins with, but for the first one. readers: threads by which all units are streamed that can be, or the
    experts of layers where `expert_places` is among the changes; None: they stay in memory. changes: of the assignments."""
    coordinator = FakeCoordinator(path)
    assert coordinator.manifest is not None
    spec = coordinator.manifest.spec
    spans = [range(begin, end) for begin, end in zip((0, *cuts), (*cuts, spec.num_units), strict=True)]
    stages = tuple(_stage(coordinator, f"{number}", units, wire, readers, changes) for number, units in enumerate(spans))
    return LocalRing(stages, spec.hidden_size)


def _stage(
    coordinator: FakeCoordinator, name: str, units: range, wire: str, readers: Executor | None, changes: Mapping[str, Any]
) -> ComputeStage:
    assert coordinator.manifest is not None
    layers = range(max(units.start, 1), min(units.stop, coordinator.manifest.spec.head_index))
    expert_places = changes.get("expert_places", 0) if layers else 0
    message = coordinator.assignment(1, units, wire=parse_encoding(wire), **{**changes, "expert_places": expert_places})
    message.streamed_units.extend(_streamable(coordinator, units) if readers and not expert_places else ())
    assignment = assignment_from_proto(message)
    streams = NO_STREAMS if readers is None else _streams(assignment, readers)
    sequences = SequenceTable(assignment.model, assignment.geometry)
    sent_rows = SentRows(encoded_row_bytes(wire, assignment.model.row_width, assignment.model.carried_width), 1 << 20)
    stage = build_stage(assignment, _loaded(coordinator, assignment, streams))
    return ComputeStage(assignment, stage, KvCaches().arrange(assignment), sequences, sent_rows, name, streams)


def _streamable(coordinator: FakeCoordinator, units: range) -> list[int]:
    assert coordinator.manifest is not None
    return [unit for unit in units if streamed_size_of(coordinator.manifest.units[unit], 1) is not None]


def _streams(assignment: AssignmentFacts, readers: Executor) -> Streams:
    meter, experts = StreamMeter(), assignment.expert_units
    return Streams(
        meter,
        WeightStream(streamed, readers, meter) if (streamed := assignment.streamed_units) else None,
        ExpertStore(experts, assignment.experts_used, assignment.expert_places, readers, meter) if experts else None,
        EmbeddingRows(assignment.units[0], assignment.geometry.max_batch_rows, meter) if assignment.has_embedding_rows else None,
    )


def _loaded(coordinator: FakeCoordinator, assignment: AssignmentFacts, streams: Streams) -> list[LoadedUnit]:
    assert coordinator.model is not None
    found = []
    paths = open_container(coordinator.model).paths
    with ModelSource(paths) as source:
        for unit in assignment.units:
            assembler = UnitAssembler(unit, assignment.model_digest, _streamed(unit, streams, paths))
            for place in ranges_of(unit):
                piece = source.read(place)
                assembler.hash(piece)
                assembler.pack(piece)
            found.append(assembler.finish())
    return found


def _streamed(unit: Unit, streams: Streams, paths: tuple[Path, ...]) -> FindMatrix:
    """The matrices that a unit has already, if they do not stay; they are read from these files then."""
    if streams.has(unit.index):
        streams.place(unit.index, place_in(paths, unit))
    return lambda tensor: streams.matrix_of(unit.index, tensor.role)
