"""From the residual stream to sampled tokens and scores, on the shard that holds the head.

Only rows that somebody asked for go through the output projection, a few at a time: logits are large, 0.5 MB a row with a
vocabulary of 128k.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import PackedMatrix, Stage, StageSlice, round_rows
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.ring.frames import RingId, SequenceResult, TokenScore
from dairllm.model_files.memory import HEAD_ROWS
from dairllm.shard_service.forward.sampler import sample, score
from dairllm.shard_service.forward.sequences import CheckedSlice, NextToken
from dairllm.shard_service.weights.streaming import WeightStream

Rows = npt.NDArray[np.float32]


class _WantedRow(NamedTuple):
    """row: in the frame. slice_row: in the slice."""

    row: int
    slice_row: int
    checked: CheckedSlice

    def is_next(self, sampled: Sequence[TokenScore]) -> bool:
        """Whether a token is sampled after this row, if these were sampled after rows before it: a guess must be the last of them."""
        slice_ = self.checked.slice
        if self.slice_row != slice_.num_rows - slice_.num_samples + len(sampled):
            return False
        return not sampled or sampled[-1].token_id == slice_.token_ids[self.slice_row]


class _Answer:
    def __init__(self) -> None:
        self.sampled: list[TokenScore] = []
        self.scores: list[TokenScore] = []
        self.failure = ""

    def result(self, sequence_id: RingId) -> SequenceResult:
        if self.failure:
            return SequenceResult(sequence_id, failure=self.failure)
        return SequenceResult(sequence_id, tuple(self.sampled), tuple(self.scores))


class Projection(Protocol):
    """Logits of rows, by a stage with the head alone."""

    def run(self, rows: Rows) -> Rows:
        """[n, outputs] of rows [n, width]."""
        ...


class WholeProjection:
    """Its matrix stays in memory."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def run(self, rows: Rows) -> Rows:
        whole = StageSlice(len(rows), 0, np.empty(0, np.int32))
        return self._stage.run(None, rows, [whole], np.arange(len(rows), dtype=np.int32))


class StreamedProjection:
    """Its matrix comes in parts of its rows, each of which gives some of the logits. unit: of the head."""

    def __init__(self, stage: Stage, stream: WeightStream, unit: int) -> None:
        self._stage = stage
        self._whole = WholeProjection(stage)
        self._stream = stream
        self._parts = stream.parts_of(unit)

    def run(self, rows: Rows) -> Rows:
        logits = np.empty((len(rows), self._parts[-1].rows.stop), np.float32)
        for part in self._parts:
            (matrix,) = part.matrices.values()
            assert isinstance(matrix, PackedMatrix)
            with self._stream.part_in_memory(part):
                self._stage.set_output(matrix)
                logits[:, part.rows.start : part.rows.stop] = self._whole.run(rows)
        return logits


class Head:
    """num_tokens: of the vocabulary; the output may have more rows, which are no tokens.

    encoding: how rows are rounded in front of the head, where the layer before it is on this shard; None if they came over the wire.
    carried: how many of their last numbers they only carry along.
    """

    def __init__(self, projection: Projection, num_tokens: int, encoding: str | None, carried: int = 0) -> None:
        self._projection = projection
        self._num_tokens = num_tokens
        self._encoding = encoding
        self._carried = carried

    def results(self, slices: Sequence[CheckedSlice], hidden: Rows) -> tuple[SequenceResult, ...]:
        """One result per slice that asks for one. hidden [rows, width]: the rows of all slices.

        A sequence whose logits are broken fails alone.
        """
        wanted = list(_wanted_rows(slices))
        answers = {checked.slice.sequence_id: _Answer() for _, _, checked in wanted}
        for start in range(0, len(wanted), HEAD_ROWS):
            chunk = wanted[start : start + HEAD_ROWS]
            for row, logits in zip(chunk, self.logits(hidden[[wanted.row for wanted in chunk]]), strict=True):
                _answer_or_fail(row, logits, answers[row.checked.slice.sequence_id])
        return tuple(answer.result(sequence_id) for sequence_id, answer in answers.items())

    def logits(self, rows: Rows) -> Rows:
        """[n, num_tokens] of rows [n, width], at most HEAD_ROWS."""
        if self._encoding is not None:
            rows = round_rows(rows, self._encoding, self._carried)
        return self._projection.run(rows)[:, : self._num_tokens]


def wants_logits(slices: Sequence[CheckedSlice]) -> bool:
    return any(checked.slice.num_samples or checked.slice.score_targets for checked in slices)


def _wanted_rows(slices: Sequence[CheckedSlice]) -> Iterator[_WantedRow]:
    first_row = 0
    for checked in slices:
        slice_ = checked.slice
        num_wanted = slice_.num_rows if slice_.score_targets else slice_.num_samples
        for slice_row in range(slice_.num_rows - num_wanted, slice_.num_rows):
            yield _WantedRow(first_row + slice_row, slice_row, checked)
        first_row += slice_.num_rows


def _answer_or_fail(wanted: _WantedRow, logits: npt.NDArray[np.float32], answer: _Answer) -> None:
    if answer.failure:
        return
    try:
        _answer(wanted, logits, answer)
    except DairllmError as error:
        answer.failure = str(error)


def _answer(wanted: _WantedRow, logits: npt.NDArray[np.float32], answer: _Answer) -> None:
    slice_, sequence, _ = wanted.checked
    sampling, position = sequence.begin.sampling, slice_.first_position + wanted.slice_row + 1
    if slice_.score_targets:
        answer.scores.append(score(logits, slice_.score_targets[wanted.slice_row], sampling.top_logprobs))
    if wanted.is_next(answer.sampled):
        token = sample(logits, sampling, sequence.history.until(position), position)
        answer.sampled.append(token)
        sequence.next_token = NextToken(position, token.token_id)
