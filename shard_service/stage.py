"""The compute side of a shard: one micro-batch in, the next member's micro-batch (or the result) out.

Runs in the compute thread only.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import KvCache, PackedMatrix, Stage, StageSlice, StageSpec, decode_rows, encode_rows, encoded_row_bytes
from dairllm.mesh.errors import DairllmError, InvalidModel, MalformedFrame
from dairllm.shard_service import head
from dairllm.shard_service.assignment import AssignmentFacts, ModelFacts
from dairllm.shard_service.frames import MicroBatch, MicroBatchResult, SequenceSlice, StageTiming
from dairllm.shard_service.sequences import CheckedFrame, CheckedSlice, SequenceTable
from dairllm.shard_service.unit_assembler import LoadedUnit, Weights

Rows = npt.NDArray[np.float32]
Inputs = npt.NDArray[np.int32] | Rows


class StageParts(NamedTuple):
    """body: embedding and layers, as far as they are here; head: final norm and output. At least one of them."""

    body: Stage | None
    head: Stage | None

    @property
    def scratch_bytes(self) -> int:
        return sum(part.scratch_bytes for part in self if part is not None)


def build_stage(assignment: AssignmentFacts, units: Sequence[LoadedUnit]) -> StageParts:
    """The kernels' stages over these weights, one per unit of the assignment. Raises InvalidModel if they do not fit the model."""
    parts = empty_stage(assignment)
    try:
        for facts, unit in zip(assignment.units, units, strict=True):
            _add_unit(parts, facts.index, unit.weights, assignment.model)
    except ValueError as error:
        raise InvalidModel(f"the weights do not fit the model: {error}") from error
    return parts


def empty_stage(assignment: AssignmentFacts) -> StageParts:
    """The same without weights, to know its `scratch_bytes` before anything is loaded."""
    spec, geometry = _stage_spec(assignment.model), assignment.geometry
    has_body = assignment.has_embedding or bool(assignment.layers)
    try:
        body = Stage(spec, max_rows=geometry.max_batch_rows, max_context=geometry.context_length) if has_body else None
        output = Stage(spec, max_rows=head.MAX_ROWS, max_context=head.MAX_ROWS) if assignment.has_head else None
    except ValueError as error:
        raise InvalidModel(f"the model can't be run: {error}") from error
    return StageParts(body, output)


def scratch_bytes(assignment: AssignmentFacts, parts: StageParts) -> int:
    """Memory for activations and logits while a frame is computed, in the kernels and outside."""
    logits = 3 * 4 * head.MAX_ROWS * assignment.model.vocab_size if assignment.has_head else 0
    rows = 3 * 4 * assignment.geometry.max_batch_rows * assignment.model.hidden_size
    return parts.scratch_bytes + logits + rows


class ComputeStage:
    """Computes frames of one epoch, in order. A frame that is refused changes nothing. kv: one cache per layer of the assignment."""

    def __init__(self, assignment: AssignmentFacts, parts: StageParts, kv: Sequence[KvCache], shard_name: str) -> None:
        self._assignment = assignment
        self._body = parts.body
        boundary = assignment.model.num_layers + 1
        self._head = head.Head(parts.head, boundary if parts.body else None) if parts.head else None
        self._kv = kv
        self._shard_name = shard_name
        self.sequences = SequenceTable(assignment.model, assignment.geometry)

    def compute(self, frame: MicroBatch, queue_us: int) -> MicroBatch | MicroBatchResult:
        """The frame for the next member. Raises MalformedFrame, nothing computed; any other DairllmError if computing failed."""
        watch = _Stopwatch()
        checked = self.sequences.check(frame)
        inputs = self._inputs(checked)
        watch.stop("codec")
        hidden = self._run_body(checked, inputs)
        self.sequences.advance(checked)
        results = None if self._head is None else self._head.results(checked.slices, hidden)
        watch.stop("compute")
        slices = self._outgoing_slices(checked, hidden) if results is None else ()
        watch.stop("codec")
        self.sequences.drop(checked.ends)
        timing = StageTiming(self._shard_name, queue_us, watch.us("compute"), frame.received_bytes, frame.num_rows, watch.us("codec"))
        if results is None:
            return MicroBatch(frame.epoch, frame.batch_id, frame.begins, slices, frame.ends, (*frame.timings, timing))
        return MicroBatchResult(frame.epoch, frame.batch_id, results, (*frame.timings, timing))

    def _inputs(self, checked: CheckedFrame) -> Inputs:
        if self._assignment.has_embedding:
            ids = [_tokens_only(part) for part, _, _ in checked.slices]
            return np.concatenate(ids) if ids else np.empty(0, np.int32)
        rows = [self._decode(one) for one in checked.slices]
        return np.concatenate(rows) if rows else np.empty((0, self._assignment.model.hidden_size), np.float32)

    def _decode(self, checked: CheckedSlice) -> Rows:
        part, width = checked.part, self._assignment.model.hidden_size
        expected = checked.sequence.encoding_at(self._assignment.span.start)
        if part.encoding != expected:
            raise MalformedFrame(f"sequence {part.sequence_id} comes in {part.encoding or 'no encoding'}; expected {expected}")
        size_bytes = part.num_rows * encoded_row_bytes(expected, width)
        if len(part.activations) != size_bytes:
            raise MalformedFrame(f"sequence {part.sequence_id} has {len(part.activations)} bytes of activations; expected {size_bytes}")
        try:
            return decode_rows(part.activations, part.num_rows, width, expected)
        except ValueError as error:
            raise MalformedFrame(f"sequence {part.sequence_id}: {error}") from error

    def _run_body(self, checked: CheckedFrame, inputs: Inputs) -> Rows:
        if self._body is None or not checked.slices:
            return np.asarray(inputs, np.float32)
        slices = [
            StageSlice(part.num_rows, part.first_position, block_table, sequence.boundary_encodings)
            for part, sequence, block_table in checked.slices
        ]
        try:
            return self._body.run(self._kv, inputs, slices)
        except ValueError as error:
            raise DairllmError(f"the kernels refused the frame: {error}") from error

    def _outgoing_slices(self, checked: CheckedFrame, hidden: Rows) -> tuple[SequenceSlice, ...]:
        slices, row = [], 0
        for part, sequence, _ in checked.slices:
            encoding = sequence.encoding_at(self._assignment.outgoing_boundary)
            activations = encode_rows(hidden[row : row + part.num_rows], encoding)
            slices.append(part.with_activations(encoding, activations))
            row += part.num_rows
        return tuple(slices)


def _tokens_only(part: SequenceSlice) -> npt.NDArray[np.int32]:
    if part.activations or part.encoding is not None:
        raise MalformedFrame(f"sequence {part.sequence_id} has activations; the shard with the embedding takes token ids only")
    return part.token_ids


def _stage_spec(model: ModelFacts) -> StageSpec:
    return StageSpec(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        rope_dim=model.rope_dim,
        rope_theta=model.rope_theta,
        rope_interleaved=model.rope_interleaved,
        rope_freq_factors=model.rope_freq_factors or None,
        rms_norm_eps=model.rms_norm_eps,
        attention_scale=model.attention_scale,
        num_layers=model.num_layers,
        activation="silu",
    )


def _add_unit(parts: StageParts, index: int, weights: Mapping[str, Weights], model: ModelFacts) -> None:
    if index == model.num_layers + 1:
        assert parts.head is not None
        norm, output = weights["output_norm"], weights["output"]
        assert isinstance(norm, np.ndarray)
        assert isinstance(output, PackedMatrix)
        _require_outputs(output, model, "output")
        parts.head.set_head(norm, output)
        return
    assert parts.body is not None
    if index == 0:
        table = weights["token_embedding"]
        assert isinstance(table, PackedMatrix)
        _require_outputs(table, model, "token_embedding")
        parts.body.set_embedding(table)
    else:
        parts.body.add_layer(index - 1, weights)


def _require_outputs(matrix: PackedMatrix, model: ModelFacts, role: str) -> None:
    """The kernels know the vocabulary by these matrices only; frames are checked against the model's."""
    if matrix.outputs != model.vocab_size:
        raise InvalidModel(f"{role} has {matrix.outputs} rows; expected the vocabulary's {model.vocab_size}")


class _Stopwatch:
    """Adds up the time since the last stop by what it was spent on."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()
        self._spent_s: dict[str, float] = {}

    def stop(self, what: str) -> None:
        now_s = time.perf_counter()
        self._spent_s[what] = self._spent_s.get(what, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def us(self, what: str) -> int:
        return round(self._spent_s.get(what, 0.0) * 1e6)
