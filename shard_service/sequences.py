"""The sequences that run on a shard, and the check of a frame against them.

A frame is checked whole before anything is computed or changed, so that one that is refused leaves no trace.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import WIRE_ENCODINGS
from dairllm.mesh.errors import MalformedFrame
from dairllm.shard_service.assignment import CacheGeometry, ModelFacts
from dairllm.shard_service.frames import MicroBatch, SequenceBegin, SequenceId, SequenceSlice
from dairllm.shard_service.sampler import TokenHistory

EXACT = "F32"
BlockTable = npt.NDArray[np.int32]


@dataclass(slots=True)
class RunningSequence:
    """What a shard keeps of a sequence, besides its part of the KV cache.

    boundary_encodings: encoding id by boundary, as the kernels take it; None if all are exact.
    """

    begin: SequenceBegin
    boundary_encodings: npt.NDArray[np.uint8] | None
    history: TokenHistory
    block_table: BlockTable = field(default_factory=lambda: np.empty(0, np.int32))
    next_position: int = 0

    def encoding_at(self, boundary: int) -> str:
        return self.begin.rounding_points.get(boundary, EXACT)


class CheckedSlice(NamedTuple):
    """block_table: the sequence's, with the slice's new blocks."""

    part: SequenceSlice
    sequence: RunningSequence
    block_table: BlockTable


class CheckedFrame(NamedTuple):
    """What a frame will change, if it is computed."""

    begun: dict[SequenceId, RunningSequence]
    slices: tuple[CheckedSlice, ...]
    ends: tuple[SequenceId, ...]


class SequenceTable:
    def __init__(self, model: ModelFacts, geometry: CacheGeometry) -> None:
        self._model = model
        self._geometry = geometry
        self._running: dict[SequenceId, RunningSequence] = {}

    def __len__(self) -> int:
        return len(self._running)

    def check(self, frame: MicroBatch) -> CheckedFrame:
        """Raises MalformedFrame, with the first thing that does not fit. Changes nothing."""
        begun: dict[SequenceId, RunningSequence] = {}
        for begin in frame.begins:
            if begin.sequence_id in self._running or begin.sequence_id in begun:
                raise MalformedFrame(f"sequence {begin.sequence_id} begins, but it is running already")
            begun[begin.sequence_id] = self._begin(begin)
        _require_once((part.sequence_id for part in frame.slices), "has two slices in one frame")
        _require_once(frame.ends, "ends twice in one frame")
        if frame.num_rows > self._geometry.max_batch_rows:
            raise MalformedFrame(f"the frame has {frame.num_rows} rows; expected at most {self._geometry.max_batch_rows}")
        known = self._running | begun
        for sequence_id in (*(part.sequence_id for part in frame.slices), *frame.ends):
            if sequence_id not in known:
                raise MalformedFrame(f"sequence {sequence_id} has not begun")
        return CheckedFrame(begun, tuple(self._check_slice(part, known[part.sequence_id]) for part in frame.slices), frame.ends)

    def advance(self, checked: CheckedFrame) -> None:
        """The slices were computed: their tokens belong to the sequences."""
        self._running |= checked.begun
        for part, sequence, block_table in checked.slices:
            sequence.block_table = block_table
            sequence.next_position = part.end_position
            sequence.history.extend(part.first_position, part.token_ids)

    def drop(self, ends: Iterable[SequenceId]) -> None:
        for sequence_id in ends:
            del self._running[sequence_id]

    def _begin(self, begin: SequenceBegin) -> RunningSequence:
        last = self._model.num_layers + 1
        for boundary in begin.rounding_points:
            if not 1 <= boundary <= last:
                raise MalformedFrame(f"sequence {begin.sequence_id} rounds at boundary {boundary}; expected 1 to {last}")
        for token_id in begin.sampling.logit_bias:
            self._require_token(begin.sequence_id, "a logit bias for token", token_id)
        return RunningSequence(begin, _boundary_encodings(begin, last), TokenHistory(begin.sampling, begin.prompt_length))

    def _check_slice(self, part: SequenceSlice, sequence: RunningSequence) -> CheckedSlice:
        who = f"sequence {part.sequence_id}"
        if not part.num_rows:
            raise MalformedFrame(f"{who} has a slice without rows")
        if part.first_position != sequence.next_position:
            raise MalformedFrame(f"{who} goes on at position {part.first_position}; expected {sequence.next_position}")
        if part.end_position > self._geometry.context_length:
            raise MalformedFrame(f"{who} reaches position {part.end_position}; the context has {self._geometry.context_length}")
        if len(part.score_targets) not in (0, part.num_rows):
            raise MalformedFrame(f"{who} has {len(part.score_targets)} score targets for {part.num_rows} rows; expected as many or none")
        self._require_token(part.sequence_id, "token", int(part.token_ids.max()))
        if part.score_targets.size:
            self._require_token(part.sequence_id, "score target", int(part.score_targets.max()))
        return CheckedSlice(part, sequence, self._extended_table(part, sequence))

    def _require_token(self, sequence_id: SequenceId, what: str, token_id: int) -> None:
        if token_id >= self._model.vocab_size:
            raise MalformedFrame(f"sequence {sequence_id} has {what} {token_id}; expected less than {self._model.vocab_size}")

    def _extended_table(self, part: SequenceSlice, sequence: RunningSequence) -> BlockTable:
        who, new, table = f"sequence {part.sequence_id}", part.new_block_ids, sequence.block_table
        if new.size:
            if int(new.max()) >= self._geometry.num_blocks:
                raise MalformedFrame(f"{who} has cache block {int(new.max())}; expected less than {self._geometry.num_blocks}")
            table = np.concatenate([table, new])
            if len(np.unique(table)) < len(table):
                raise MalformedFrame(f"{who} has a cache block twice")
        if len(table) * self._geometry.block_tokens < part.end_position:
            raise MalformedFrame(f"{who} has {len(table)} cache blocks of {self._geometry.block_tokens} tokens for {part.end_position}")
        return table


def _boundary_encodings(begin: SequenceBegin, last: int) -> npt.NDArray[np.uint8] | None:
    if all(name == EXACT for name in begin.rounding_points.values()):
        return None
    encodings = np.zeros(last + 1, np.uint8)
    for boundary, name in begin.rounding_points.items():
        encodings[boundary] = WIRE_ENCODINGS.index(name)
    return encodings


def _require_once(sequence_ids: Iterable[SequenceId], what: str) -> None:
    for sequence_id, number in Counter(sequence_ids).items():
        if number > 1:
            raise MalformedFrame(f"sequence {sequence_id} {what}")
