"""The sequences that run on a shard, and the check of a frame against them.

A frame is checked whole before anything is computed or changed, so that one that is refused leaves no trace.

Sequences outlive plans: after a change of plan a sequence that is known begins once more, and slices may go back behind its end. Every
shard follows its length, its tokens and its block table, also through slices that are not computed here.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dairllm.mesh.errors import MalformedFrame
from dairllm.mesh.ring.frames import MicroBatch, RingId, SequenceBegin, SequenceSlice
from dairllm.model_files.spec import ModelSpec
from dairllm.shard_service.assignment import CacheGeometry
from dairllm.shard_service.forward.sampler import TokenHistory

BlockTable = npt.NDArray[np.int32]
_NO_BLOCKS: BlockTable = np.empty(0, np.int32)


class NextToken(NamedTuple):
    """What was sampled last of a sequence, and where it belongs."""

    position: int
    token_id: int


@dataclass(slots=True)
class RunningSequence:
    """What a shard keeps of a sequence, besides its part of the KV cache. next_token: None until this shard has sampled one."""

    begin: SequenceBegin
    history: TokenHistory
    block_table: BlockTable
    length: int
    next_token: NextToken | None = None

    def rests_on_wrong_guess(self, slice_: SequenceSlice) -> bool:
        """Whether another token was sampled at the slice's first position, or it follows one that rests on such a guess."""
        if self.next_token is None or not slice_.num_samples:
            return False
        first, next_ = slice_.first_position, self.next_token
        return first > next_.position or (first == next_.position and slice_.token_ids[0] != next_.token_id)


class CheckedSlice(NamedTuple):
    """block_table: the sequence's as it is with the slice."""

    slice: SequenceSlice
    sequence: RunningSequence
    block_table: BlockTable


class CheckedFrame(NamedTuple):
    """What a frame will change, if it is computed."""

    begun: dict[RingId, RunningSequence]
    slices: tuple[CheckedSlice, ...]
    ends: tuple[RingId, ...]


class SequenceTable:
    def __init__(self, model: ModelSpec, geometry: CacheGeometry) -> None:
        self._model = model
        self._geometry = geometry
        self._running: dict[RingId, RunningSequence] = {}

    def __len__(self) -> int:
        return len(self._running)

    def under(self, model: ModelSpec, geometry: CacheGeometry, alive: Collection[int]) -> "SequenceTable":
        """The sequences of this table that are alive, under another plan for the same model."""
        table = SequenceTable(model, geometry)
        table._running = {sequence_id: sequence for sequence_id, sequence in self._running.items() if sequence_id in alive}
        return table

    def check(self, frame: MicroBatch) -> CheckedFrame:
        """Raises MalformedFrame, with the first thing that does not fit. Changes nothing."""
        begun: dict[RingId, RunningSequence] = {}
        for begin in frame.begins:
            if begin.sequence_id in begun:
                raise MalformedFrame(f"sequence {begin.sequence_id} begins twice in one frame")
            begun[begin.sequence_id] = self._begin(begin)
        _require_once((slice_.sequence_id for slice_ in frame.slices), "has two slices in one frame")
        if frame.num_rows > self._geometry.max_batch_rows:
            raise MalformedFrame(f"the frame has {frame.num_rows} rows; expected at most {self._geometry.max_batch_rows}")
        known = self._running | begun
        for slice_ in frame.slices:
            if slice_.sequence_id not in known:
                raise MalformedFrame(f"sequence {slice_.sequence_id} has not begun")
        return CheckedFrame(begun, tuple(self._check_slice(slice_, known[slice_.sequence_id]) for slice_ in frame.slices), frame.ends)

    def advance(self, checked: CheckedFrame) -> None:
        """The slices were computed, or passed on: their tokens belong to the sequences, in place of those that were there."""
        self._running |= checked.begun
        for slice_, sequence, block_table in checked.slices:
            sequence.block_table = block_table
            sequence.length = slice_.end_position
            sequence.history.extend(slice_.first_position, slice_.token_ids)

    def drop(self, ends: Iterable[RingId]) -> frozenset[int]:
        """Unknown ones are passed over. Returns the blocks that they had."""
        dropped = [sequence for sequence_id in ends if (sequence := self._running.pop(sequence_id, None))]
        return frozenset(int(block) for sequence in dropped for block in sequence.block_table)

    @property
    def block_ids(self) -> frozenset[int]:
        """Blocks of all sequences."""
        return frozenset(int(block) for sequence in self._running.values() for block in sequence.block_table)

    def _begin(self, begin: SequenceBegin) -> RunningSequence:
        for token_id in begin.sampling.logit_bias:
            self._require_token(begin.sequence_id, "a logit bias for token", token_id)
        if len(begin.token_ids) > self._geometry.context_length:
            raise MalformedFrame(f"sequence {begin.sequence_id} begins with {len(begin.token_ids)} tokens; the context has less")
        if begin.token_ids:
            self._require_token(begin.sequence_id, "token", max(begin.token_ids))
        block_table = self._joined_table(begin.sequence_id, _NO_BLOCKS, begin.block_ids)
        history = TokenHistory(begin.sampling, begin.prompt_length)
        history.extend(0, begin.token_ids)
        return RunningSequence(begin, history, block_table, len(begin.token_ids))

    def _check_slice(self, slice_: SequenceSlice, sequence: RunningSequence) -> CheckedSlice:
        who = f"sequence {slice_.sequence_id}"
        if not slice_.num_rows:
            raise MalformedFrame(f"{who} has a slice without rows")
        if slice_.first_position > sequence.length:
            raise MalformedFrame(f"{who} goes on at position {slice_.first_position}; expected at most {sequence.length}, where it ends")
        if slice_.end_position > self._geometry.context_length:
            raise MalformedFrame(f"{who} reaches position {slice_.end_position}; the context has {self._geometry.context_length}")
        if len(slice_.score_targets) not in (0, slice_.num_rows):
            raise MalformedFrame(
                f"{who} has {len(slice_.score_targets)} score targets for {slice_.num_rows} rows; expected as many or none"
            )
        if slice_.num_samples > slice_.num_rows:
            raise MalformedFrame(
                f"{who} asks for tokens after {slice_.num_samples} rows of {slice_.num_rows}; expected no more than it has"
            )
        self._require_token(slice_.sequence_id, "token", max(slice_.token_ids))
        if slice_.score_targets:
            self._require_token(slice_.sequence_id, "score target", max(slice_.score_targets))
        return CheckedSlice(slice_, sequence, self._extended_table(slice_, sequence))

    def _require_token(self, sequence_id: RingId, what: str, token_id: int) -> None:
        if token_id >= self._model.num_tokens:
            raise MalformedFrame(f"sequence {sequence_id} has {what} {token_id}; expected less than {self._model.num_tokens}")

    def _extended_table(self, slice_: SequenceSlice, sequence: RunningSequence) -> BlockTable:
        """New blocks follow those of the rows before the slice."""
        table = sequence.block_table
        if slice_.new_block_ids:
            kept = -(-slice_.first_position // self._geometry.block_tokens)
            table = self._joined_table(slice_.sequence_id, table[:kept], slice_.new_block_ids)
        if len(table) * self._geometry.block_tokens < slice_.end_position:
            who = f"sequence {slice_.sequence_id}"
            raise MalformedFrame(f"{who} has {len(table)} cache blocks of {self._geometry.block_tokens} tokens for {slice_.end_position}")
        return table

    def _joined_table(self, sequence_id: RingId, kept: BlockTable, new: Sequence[int]) -> BlockTable:
        if new and max(new) >= self._geometry.num_blocks:
            raise MalformedFrame(f"sequence {sequence_id} has cache block {max(new)}; expected less than {self._geometry.num_blocks}")
        table = np.concatenate([kept, np.array(new, np.int32)])
        if len(np.unique(table)) < len(table):
            raise MalformedFrame(f"sequence {sequence_id} has a cache block twice")
        return table


def _require_once(sequence_ids: Iterable[RingId], what: str) -> None:
    for sequence_id, number in Counter(sequence_ids).items():
        if number > 1:
            raise MalformedFrame(f"sequence {sequence_id} {what}")
