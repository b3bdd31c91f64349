"""What travels along the ring, as facts. Protobuf objects stop here: `…_from_proto` validates what a single message can tell,
`ComputeStage` validates what depends on the plan and on the frames before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NewType

import numpy as np
import numpy.typing as npt

from dairllm.mesh.encodings import encoding_name, parse_encoding
from dairllm.mesh.errors import InvalidRequest, MalformedFrame
from dairllm.mesh.sampling import SamplingParams
from dairllm.v1 import ring_pb2

SequenceId = NewType("SequenceId", int)
TokenIds = npt.NDArray[np.int32]


def no_ids() -> TokenIds:
    return np.empty(0, np.int32)


class StageTiming(NamedTuple):
    """What one shard spent on one frame; `codec_us` is decoding the frame and encoding the output."""

    shard: str
    queue_us: int
    compute_us: int
    received_bytes: int
    num_rows: int
    codec_us: int


class TokenLogprob(NamedTuple):
    token_id: int
    logprob: float


class TokenScore(NamedTuple):
    """A token, its log-probability (NaN where it was not asked for) and the most probable tokens at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceBegin:
    """block_ids, token_ids: of a sequence that goes on after a change of plan, its cache blocks and its tokens before the next slice."""

    sequence_id: SequenceId
    prompt_length: int
    sampling: SamplingParams
    block_ids: TokenIds = field(default_factory=no_ids)
    token_ids: TokenIds = field(default_factory=no_ids)


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """Consecutive rows of one sequence, one per token. activations: its rows in the frame's encoding; empty where none travel.

    first_unit, end_unit, replay_at, replay_failed: as in ring.proto; 0, 0 for a slice that all units compute.
    """

    sequence_id: SequenceId
    first_position: int
    token_ids: TokenIds
    new_block_ids: TokenIds
    activations: bytes
    sample: bool
    score_targets: TokenIds
    first_unit: int = 0
    end_unit: int = 0
    replay_at: str = ""
    replay_failed: bool = False

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)

    @property
    def end_position(self) -> int:
        return self.first_position + self.num_rows

    @property
    def is_replay(self) -> bool:
        return self.end_unit > 0

    def with_activations(self, activations: bytes) -> "SequenceSlice":
        return replace(self, activations=activations)

    def without_activations(self) -> "SequenceSlice":
        return replace(self, activations=b"") if self.activations else self

    def with_failed_replay(self) -> "SequenceSlice":
        return replace(self, replay_failed=True)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """encoding: of all activations in it."""

    epoch: int
    batch_id: int
    encoding: str
    begins: tuple[SequenceBegin, ...]
    slices: tuple[SequenceSlice, ...]
    ends: tuple[SequenceId, ...]
    timings: tuple[StageTiming, ...]

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.slices)

    @property
    def received_bytes(self) -> int:
        return sum(len(part.activations) for part in self.slices)


class SequenceResult(NamedTuple):
    """failure: why this sequence cannot go on, for people; empty if it can."""

    sequence_id: SequenceId
    sampled: TokenScore | None
    scores: tuple[TokenScore, ...]
    replay_failed: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class MicroBatchResult:
    epoch: int
    batch_id: int
    results: tuple[SequenceResult, ...]
    timings: tuple[StageTiming, ...]


def micro_batch_from_proto(message: ring_pb2.MicroBatch) -> MicroBatch:
    """Raises MalformedFrame for unknown encodings, sampling parameters out of range and ids over 31 bits."""
    return MicroBatch(
        epoch=message.epoch,
        batch_id=message.batch_id,
        encoding=encoding_name(message.encoding),
        begins=tuple(_begin_from_proto(begin) for begin in message.begins),
        slices=tuple(_slice_from_proto(part) for part in message.slices),
        ends=tuple(SequenceId(sequence_id) for sequence_id in message.ends),
        timings=tuple(_timing_from_proto(timing) for timing in message.timings),
    )


def forward_request(frame: MicroBatch | MicroBatchResult) -> ring_pb2.ForwardRequest:
    if isinstance(frame, MicroBatch):
        return ring_pb2.ForwardRequest(micro_batch=micro_batch_to_proto(frame))
    return ring_pb2.ForwardRequest(result=result_to_proto(frame))


def micro_batch_to_proto(frame: MicroBatch) -> ring_pb2.MicroBatch:
    return ring_pb2.MicroBatch(
        epoch=frame.epoch,
        batch_id=frame.batch_id,
        encoding=parse_encoding(frame.encoding),
        begins=[_begin_to_proto(begin) for begin in frame.begins],
        slices=[_slice_to_proto(part) for part in frame.slices],
        ends=frame.ends,
        timings=[_timing_to_proto(timing) for timing in frame.timings],
    )


def result_to_proto(frame: MicroBatchResult) -> ring_pb2.MicroBatchResult:
    return ring_pb2.MicroBatchResult(
        epoch=frame.epoch,
        batch_id=frame.batch_id,
        results=[_sequence_result_to_proto(result) for result in frame.results],
        timings=[_timing_to_proto(timing) for timing in frame.timings],
    )


def _begin_from_proto(message: ring_pb2.SequenceBegin) -> SequenceBegin:
    try:
        sampling = SamplingParams.from_proto(message.sampling)
    except InvalidRequest as error:
        raise MalformedFrame(f"sequence {message.sequence_id} has wrong sampling parameters: {error}") from error
    return SequenceBegin(
        sequence_id=SequenceId(message.sequence_id),
        prompt_length=message.prompt_length,
        sampling=sampling,
        block_ids=_ids(message.sequence_id, "block id", message.block_ids),
        token_ids=_ids(message.sequence_id, "token id", message.token_ids),
    )


def _slice_from_proto(message: ring_pb2.SequenceSlice) -> SequenceSlice:
    sequence_id = message.sequence_id
    return SequenceSlice(
        sequence_id=SequenceId(sequence_id),
        first_position=message.first_position,
        token_ids=_ids(sequence_id, "token id", message.token_ids),
        new_block_ids=_ids(sequence_id, "block id", message.new_block_ids),
        activations=message.activations,
        sample=message.sample,
        score_targets=_ids(sequence_id, "score target", message.score_targets),
        first_unit=message.first_unit,
        end_unit=message.end_unit,
        replay_at=message.replay_at,
        replay_failed=message.replay_failed,
    )


def _ids(sequence_id: int, what: str, values: Sequence[int]) -> TokenIds:
    if not values:
        return no_ids()
    ids = np.array(values, dtype=np.uint32)
    if int(ids.max()) >= 2**31:
        raise MalformedFrame(f"sequence {sequence_id} has {what} {int(ids.max())}; expected less than 2^31")
    return ids.astype(np.int32)


def _begin_to_proto(begin: SequenceBegin) -> ring_pb2.SequenceBegin:
    return ring_pb2.SequenceBegin(
        sequence_id=begin.sequence_id,
        prompt_length=begin.prompt_length,
        sampling=begin.sampling.to_proto(),
        block_ids=begin.block_ids.tolist(),
        token_ids=begin.token_ids.tolist(),
    )


def _slice_to_proto(part: SequenceSlice) -> ring_pb2.SequenceSlice:
    return ring_pb2.SequenceSlice(
        sequence_id=part.sequence_id,
        first_position=part.first_position,
        token_ids=part.token_ids.tolist(),
        new_block_ids=part.new_block_ids.tolist(),
        activations=part.activations,
        sample=part.sample,
        score_targets=part.score_targets.tolist(),
        first_unit=part.first_unit,
        end_unit=part.end_unit,
        replay_at=part.replay_at,
        replay_failed=part.replay_failed,
    )


def _timing_from_proto(message: ring_pb2.StageTiming) -> StageTiming:
    return StageTiming(message.shard, message.queue_us, message.compute_us, message.received_bytes, message.num_rows, message.codec_us)


def _timing_to_proto(timing: StageTiming) -> ring_pb2.StageTiming:
    return ring_pb2.StageTiming(**timing._asdict())


def _sequence_result_to_proto(result: SequenceResult) -> ring_pb2.SequenceResult:
    return ring_pb2.SequenceResult(
        sequence_id=result.sequence_id,
        sampled=None if result.sampled is None else _score_to_proto(result.sampled),
        scores=[_score_to_proto(score) for score in result.scores],
        replay_failed=result.replay_failed,
        failure=result.failure,
    )


def _score_to_proto(score: TokenScore) -> ring_pb2.TokenLogprobs:
    return ring_pb2.TokenLogprobs(
        token_id=score.token_id,
        logprob=score.logprob,
        top=[ring_pb2.TopLogprob(token_id=top.token_id, logprob=top.logprob) for top in score.top],
    )
