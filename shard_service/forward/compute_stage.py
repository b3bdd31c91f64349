"""The compute side of a shard: one micro-batch in, the next member's micro-batch (or the result) out.

Runs in the compute thread only.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import Stage, StageSlice, decode_rows, encode_rows, encoded_row_bytes, round_rows
from dairllm.mesh.errors import DairllmError, MalformedFrame
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, SequenceResult, SequenceSlice, StageTiming
from dairllm.shard_service.assignment import AssignmentFacts
from dairllm.shard_service.forward.building import StageParts
from dairllm.shard_service.forward.head import Head, Projection, StreamedProjection, WholeProjection, wants_logits
from dairllm.shard_service.forward.sent_rows import SentRows
from dairllm.shard_service.forward.sequences import CheckedFrame, CheckedSlice, SequenceTable
from dairllm.shard_service.forward.stage_states import StageStates
from dairllm.shard_service.forward.sub_runs import PASSED_ON, Origin, SubRun, SubRunPlanner
from dairllm.shard_service.kv_cache.layers import LayerCache, memory_of
from dairllm.shard_service.weights.streams import NO_STREAMS, Streams

ANY_ENCODING_HOLDS = 60000.0
"""Numbers of this size, and half precision a few more."""

Rows = npt.NDArray[np.float32]
Inputs = npt.NDArray[np.int32] | Rows


class _SliceRun(NamedTuple):
    """A slice, the number-th of its frame, and what this shard does with it. encoded: its rows as they came or were sent, if any."""

    number: int
    checked: CheckedSlice
    sub_run: SubRun
    encoded: bytes


@dataclass(slots=True)
class _Group:
    """Slices that the same units compute, in one call of the kernels."""

    runs: list[_SliceRun]
    inputs: Inputs


class ComputeStage:
    """Computes frames of one epoch, in order. A frame that is refused changes nothing. kv: one cache per layer of the assignment.

    sequences, sent_rows: what outlives the epoch. streams: weights that do not stay in memory.
    """

    def __init__(
        self,
        assignment: AssignmentFacts,
        parts: StageParts,
        kv: Sequence[LayerCache],
        sequences: SequenceTable,
        sent_rows: SentRows,
        shard_name: str,
        streams: Streams = NO_STREAMS,
    ) -> None:
        self._streams = streams
        self._stalled_s = 0.0
        self._width, self._carried = assignment.model.row_width, assignment.model.carried_width
        self._row_bytes = encoded_row_bytes(assignment.wire, self._width, self._carried)
        self._boundary = assignment.outgoing_boundary
        self._body = parts.body
        self._body_units = range(assignment.span.start, min(assignment.span.stop, assignment.model.num_layers + 1))
        self._encoding = assignment.wire
        self._head = self._head_of(assignment, parts)
        self._head_unit = assignment.model.head_index
        self._planner = SubRunPlanner(assignment.span, assignment.model.num_layers + 2, shard_name)
        self._kv = [memory_of(cache) for cache in kv]
        self._states = StageStates(kv, assignment.layer_units)
        self._shard_name = shard_name
        self.sequences = sequences
        self.sent_rows = sent_rows

    def _head_of(self, assignment: AssignmentFacts, parts: StageParts) -> Head | None:
        if parts.head is None:
            return None
        unit, stream = assignment.model.head_index, self._streams.layers
        projection: Projection = WholeProjection(parts.head)
        if stream is not None and unit in stream:
            projection = StreamedProjection(parts.head, stream, unit)
        return Head(projection, assignment.model.num_tokens, self._encoding if parts.body else None, self._carried)

    def compute(self, frame: MicroBatch, queue_us: int) -> MicroBatch | MicroBatchResult:
        """The frame for the next member. Raises MalformedFrame, nothing computed; any other DairllmError if computing failed."""
        watch = _Stopwatch()
        if frame.encoding != self._encoding:
            raise MalformedFrame(f"frame {frame.batch_id} is encoded in {frame.encoding}; expected {self._encoding}, as the plan says")
        checked = self.sequences.check(frame)
        runs = [self._with_states(self._run_of(number, one)) for number, one in enumerate(checked.slices)]
        groups = self._groups(runs)
        self._leave_out_what_is_not_wanted(runs)
        watch.stop("codec")
        hidden = [self._run_body(units, group) for units, group in groups.items()]
        self.sequences.advance(checked)
        results = self._results(groups, hidden) if self._head is not None else {}
        watch.stop("compute")
        outgoing = self._outgoing(runs, groups, hidden)
        self._drop(checked)
        watch.stop("codec")
        compute_us = max(0, watch.us("compute") - self._waited_us())
        timing = StageTiming(self._shard_name, queue_us, compute_us, frame.received_bytes, frame.num_rows, watch.us("codec"))
        timings = (*frame.timings, timing)
        if self._head is None:
            return MicroBatch(frame.epoch, frame.batch_id, frame.encoding, frame.begins, outgoing, frame.ends, timings)
        lost = [slice_ for slice_ in outgoing if slice_.has_failed or slice_.failure]
        failed = {one.sequence_id: SequenceResult(one.sequence_id, (), (), one.has_failed, one.failure) for one in lost}
        return MicroBatchResult(frame.epoch, frame.batch_id, tuple((results | failed).values()), timings)

    # What comes in.

    def _run_of(self, number: int, checked: CheckedSlice) -> _SliceRun:
        slice_ = checked.slice
        if self._head is not None and checked.sequence.rests_on_wrong_guess(slice_):
            return _SliceRun(number, checked, PASSED_ON, b"")
        sub_run = PASSED_ON if slice_.failure else self._planner.plan(slice_)
        if sub_run.origin is Origin.ACTIVATIONS:
            self._require_activations(checked)
            return _SliceRun(number, checked, sub_run, slice_.activations)
        if slice_.activations:
            raise MalformedFrame(f"sequence {slice_.sequence_id} has activations; {self._expects(sub_run)}")
        if sub_run.origin is Origin.SENT_ROWS:
            return self._sent_before(number, checked, sub_run)
        return _SliceRun(number, checked, sub_run, b"")

    def _sent_before(self, number: int, checked: CheckedSlice, sub_run: SubRun) -> _SliceRun:
        slice_ = checked.slice
        assert slice_.replay is not None
        rows = self.sent_rows.get(slice_.sequence_id, slice_.replay.first_unit, range(slice_.first_position, slice_.end_position))
        if rows is None:
            return _lost(number, checked)
        return _SliceRun(number, checked, sub_run, rows)

    def _with_states(self, run: _SliceRun) -> _SliceRun:
        """It cannot be computed by layers that lack the state which it goes on from."""
        first_position, block_table = run.checked.slice.first_position, run.checked.block_table
        return run if self._states.has(run.sub_run.units, block_table, first_position) else _lost(run.number, run.checked)

    @staticmethod
    def _expects(sub_run: SubRun) -> str:
        return "the shard with the embedding takes token ids only" if sub_run.origin is Origin.TOKENS else "this shard expects none for it"

    def _require_activations(self, checked: CheckedSlice) -> None:
        slice_ = checked.slice
        size_bytes = slice_.num_rows * self._row_bytes
        if len(slice_.activations) != size_bytes:
            raise MalformedFrame(f"sequence {slice_.sequence_id} has {len(slice_.activations)} bytes of activations; expected {size_bytes}")

    def _groups(self, runs: Sequence[_SliceRun]) -> dict[range, _Group]:
        """By the units that compute them; what is only passed on is in no group."""
        by_units: dict[range, list[_SliceRun]] = {}
        for run in runs:
            if run.sub_run.units:
                by_units.setdefault(run.sub_run.units, []).append(run)
        return {units: _Group(group, self._inputs(group)) for units, group in by_units.items()}

    def _inputs(self, runs: Sequence[_SliceRun]) -> Inputs:
        if runs[0].sub_run.origin is Origin.TOKENS:
            return np.fromiter(chain.from_iterable(run.checked.slice.token_ids for run in runs), np.int32)
        return np.concatenate([self._decode(run) for run in runs])

    def _decode(self, run: _SliceRun) -> Rows:
        slice_ = run.checked.slice
        try:
            rows = decode_rows(run.encoded, slice_.num_rows, self._width, self._encoding, self._carried)
        except ValueError as error:
            raise MalformedFrame(f"sequence {slice_.sequence_id}: {error}") from error
        if not np.isfinite(rows).all():
            raise MalformedFrame(f"sequence {slice_.sequence_id} has activations that are no numbers")
        return rows

    # Computing.

    def _run_body(self, units: range, group: _Group) -> Rows:
        body_units = range(units.start, min(units.stop, self._body_units.stop))
        if self._body is None or not body_units:
            return np.asarray(group.inputs, np.float32)
        slices = [
            StageSlice(slice_.num_rows, slice_.first_position, block_table)
            for slice_, _, block_table in (run.checked for run in group.runs)
        ]
        try:
            with self._states.used_by(slices, body_units) as slices_with_states:
                return self._run_units(self._body, body_units, group.inputs, slices_with_states)
        except (ValueError, LookupError) as error:
            raise DairllmError(f"the kernels refused the frame: {error}") from error

    def _run_units(self, body: Stage, units: range, inputs: Inputs, slices: Sequence[StageSlice]) -> Rows:
        """A unit that is streamed is computed by itself, while its matrices are in memory. Between two runs rows are rounded as in one."""
        rows: Rows | None = None
        if units.start == 0 and self._streams.embedding is not None:
            inputs = self._streams.embedding.read(inputs.astype(np.int32, copy=False))
        for part in self._runs_in_memory(units):
            if rows is not None:
                inputs = round_rows(rows, self._encoding, self._carried)
            with self._in_memory(part.start):
                rows = body.run(self._kv, inputs, slices, units=part)
        assert rows is not None, "there are units"
        return rows

    def _runs_in_memory(self, units: range) -> Iterator[range]:
        start = units.start
        for unit in units:
            if self._is_streamed(unit):
                yield from [range(start, unit)] if start < unit else []
                yield range(unit, unit + 1)
                start = unit + 1
        yield from [range(start, units.stop)] if start < units.stop else []

    def _leave_out_what_is_not_wanted(self, runs: Sequence[_SliceRun]) -> None:
        """The head, where nobody asks for logits: it would be read ahead for nothing."""
        if self._streams.layers is not None:
            checked = [run.checked for run in runs if run.sub_run.units.stop == self._boundary]
            self._streams.layers.leave_out(frozenset() if wants_logits(checked) else {self._head_unit})

    def _is_streamed(self, unit: int) -> bool:
        return self._streams.layers is not None and unit in self._streams.layers

    def _in_memory(self, unit: int) -> contextlib.AbstractContextManager[None]:
        if self._streams.layers is None or unit not in self._streams.layers:
            return contextlib.nullcontext()
        return self._streams.layers.in_memory(unit)

    def _waited_us(self) -> int:
        """Since it was asked last, for weights: that says nothing of how fast the machine computes."""
        before_s, self._stalled_s = self._stalled_s, self._streams.meter.stalled_s
        return round((self._stalled_s - before_s) * 1e6)

    @property
    def read_bytes(self) -> int:
        """Of weights that do not stay in memory, by this process."""
        return self._streams.meter.read_bytes

    def _results(self, groups: dict[range, _Group], hidden: Sequence[Rows]) -> dict[int, SequenceResult]:
        assert self._head is not None
        results: dict[int, SequenceResult] = {}
        for (units, group), rows in zip(groups.items(), hidden, strict=True):
            if units.stop == self._boundary:
                results |= {result.sequence_id: result for result in self._head.results([run.checked for run in group.runs], rows)}
        return results

    # What goes out.

    def _outgoing(self, runs: Sequence[_SliceRun], groups: dict[range, _Group], hidden: Sequence[Rows]) -> tuple[SequenceSlice, ...]:
        """In the order of the frame. Keeps on the way what is sent."""
        outgoing = [self._passed_on(run) for run in runs]
        if self._head is None:
            for group, rows in zip(groups.values(), hidden, strict=True):
                for run, own_rows in _rows_of_each(group.runs, rows):
                    outgoing[run.number] = self._encoded(run, own_rows)
        return tuple(outgoing)

    def _passed_on(self, run: _SliceRun) -> SequenceSlice:
        """As it goes on if nothing is computed here: with rows only if they were sent over the outgoing boundary before."""
        slice_ = run.checked.slice
        if run.sub_run.origin is Origin.SENT_ROWS and not run.sub_run.units:
            return slice_.with_activations(run.encoded)
        return slice_.without_activations()

    def _encoded(self, run: _SliceRun, rows: Rows) -> SequenceSlice:
        slice_ = run.checked.slice
        if not run.sub_run.keeps:
            return slice_.without_activations()
        activations = encode_rows(rows, self._encoding, self._carried)
        if not self._are_numbers(rows, activations):
            return slice_.with_failure(f"its rows are no numbers behind shard {self._shard_name}: weights or activations are broken")
        self.sent_rows.put(slice_.sequence_id, self._boundary, slice_.first_position, activations)
        if slice_.replay is None:
            self.sent_rows.drop_behind(slice_.sequence_id, self._boundary, slice_.first_position)
        return slice_.with_activations(activations) if run.sub_run.sends else slice_.without_activations()

    def _are_numbers(self, rows: Rows, activations: bytes) -> bool:
        """As the next member reads them: an encoding may hold less than a float."""
        if np.abs(rows).max() < ANY_ENCODING_HOLDS:
            return True
        return bool(np.isfinite(decode_rows(activations, len(rows), self._width, self._encoding, self._carried)).all())

    def _drop(self, checked: CheckedFrame) -> None:
        self._states.drop_blocks(self.sequences.drop(checked.ends))
        for sequence_id in checked.ends:
            self.sent_rows.forget(sequence_id)


def _lost(number: int, checked: CheckedSlice) -> _SliceRun:
    return _SliceRun(number, checked._replace(slice=checked.slice.with_lost_past()), PASSED_ON, b"")


def _rows_of_each(runs: Iterable[_SliceRun], rows: Rows) -> Iterator[tuple[_SliceRun, Rows]]:
    first_row = 0
    for run in runs:
        end_row = first_row + run.checked.slice.num_rows
        yield run, rows[first_row:end_row]
        first_row = end_row


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
