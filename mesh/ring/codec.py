"""Frames of the ring as protobuf messages. What comes in is checked as far as a single message can tell; `ComputeStage` checks what depends
on the plan and on the frames before.
"""

from dairllm.mesh.encodings import encoding_name, parse_encoding
from dairllm.mesh.errors import InvalidRequest, MalformedFrame
from dairllm.mesh.ring.frames import (
    MicroBatch,
    MicroBatchResult,
    Replay,
    RingId,
    SequenceBegin,
    SequenceResult,
    SequenceSlice,
    StageTiming,
    TokenLogprob,
    TokenScore,
)
from dairllm.mesh.sampling import SamplingParams
from dairllm.v1 import ring_pb2

_NO_REPLAY = Replay(0, 0, "")
_ABSENT_SAMPLING = SamplingParams(temperature=0.0)
"""Coordinators write every field; those of protocol 1.1 left out zeros, which only as a temperature meant themselves."""


def micro_batch_from_proto(message: ring_pb2.MicroBatch) -> MicroBatch:
    """Raises MalformedFrame for an unknown encoding and sampling parameters out of range."""
    return MicroBatch(
        epoch=message.epoch,
        batch_id=message.batch_id,
        encoding=encoding_name(message.encoding),
        begins=tuple(_begin_from_proto(begin) for begin in message.begins),
        slices=tuple(_slice_from_proto(slice_) for slice_ in message.slices),
        ends=tuple(RingId(sequence_id) for sequence_id in message.ends),
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
        slices=[_slice_to_proto(slice_) for slice_ in frame.slices],
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


def result_from_proto(message: ring_pb2.MicroBatchResult) -> MicroBatchResult:
    return MicroBatchResult(
        epoch=message.epoch,
        batch_id=message.batch_id,
        results=tuple(_sequence_result_from_proto(result) for result in message.results),
        timings=tuple(_timing_from_proto(timing) for timing in message.timings),
    )


def _begin_from_proto(message: ring_pb2.SequenceBegin) -> SequenceBegin:
    try:
        sampling = SamplingParams.from_proto(message.sampling, _ABSENT_SAMPLING)
    except InvalidRequest as error:
        raise MalformedFrame(f"sequence {message.sequence_id} has wrong sampling parameters: {error}") from error
    return SequenceBegin(
        sequence_id=RingId(message.sequence_id),
        prompt_length=message.prompt_length,
        sampling=sampling,
        block_ids=tuple(message.block_ids),
        token_ids=tuple(message.token_ids),
    )


def _slice_from_proto(message: ring_pb2.SequenceSlice) -> SequenceSlice:
    return SequenceSlice(
        sequence_id=RingId(message.sequence_id),
        first_position=message.first_position,
        token_ids=tuple(message.token_ids),
        new_block_ids=tuple(message.new_block_ids),
        num_samples=message.num_samples,
        score_targets=tuple(message.score_targets),
        replay=_replay_from_proto(message),
        activations=message.activations,
        failure=message.failure,
    )


def _replay_from_proto(message: ring_pb2.SequenceSlice) -> Replay | None:
    if message.first_unit == message.end_unit == 0 and not message.replay_failed:
        return None
    return Replay(message.first_unit, message.end_unit, message.replay_at, message.replay_failed)


def _begin_to_proto(begin: SequenceBegin) -> ring_pb2.SequenceBegin:
    return ring_pb2.SequenceBegin(
        sequence_id=begin.sequence_id,
        prompt_length=begin.prompt_length,
        sampling=begin.sampling.to_proto(),
        block_ids=begin.block_ids,
        token_ids=begin.token_ids,
    )


def _slice_to_proto(slice_: SequenceSlice) -> ring_pb2.SequenceSlice:
    first_unit, end_unit, replay_at, has_failed = slice_.replay or _NO_REPLAY
    return ring_pb2.SequenceSlice(
        sequence_id=slice_.sequence_id,
        first_position=slice_.first_position,
        token_ids=slice_.token_ids,
        new_block_ids=slice_.new_block_ids,
        activations=slice_.activations,
        num_samples=slice_.num_samples,
        score_targets=slice_.score_targets,
        first_unit=first_unit,
        end_unit=end_unit,
        replay_at=replay_at,
        replay_failed=has_failed,
        failure=slice_.failure,
    )


def _timing_from_proto(message: ring_pb2.StageTiming) -> StageTiming:
    return StageTiming(message.shard, message.queue_us, message.compute_us, message.received_bytes, message.num_rows, message.codec_us)


def _timing_to_proto(timing: StageTiming) -> ring_pb2.StageTiming:
    return ring_pb2.StageTiming(**timing._asdict())


def _sequence_result_to_proto(result: SequenceResult) -> ring_pb2.SequenceResult:
    return ring_pb2.SequenceResult(
        sequence_id=result.sequence_id,
        sampled=[_score_to_proto(score) for score in result.sampled],
        scores=[_score_to_proto(score) for score in result.scores],
        replay_failed=result.replay_failed,
        failure=result.failure,
    )


def _sequence_result_from_proto(message: ring_pb2.SequenceResult) -> SequenceResult:
    sampled = tuple(_score_from_proto(score) for score in message.sampled)
    scores = tuple(_score_from_proto(score) for score in message.scores)
    return SequenceResult(RingId(message.sequence_id), sampled, scores, message.replay_failed, message.failure)


def _score_from_proto(message: ring_pb2.TokenLogprobs) -> TokenScore:
    return TokenScore(message.token_id, message.logprob, tuple(TokenLogprob(top.token_id, top.logprob) for top in message.top))


def _score_to_proto(score: TokenScore) -> ring_pb2.TokenLogprobs:
    return ring_pb2.TokenLogprobs(
        token_id=score.token_id,
        logprob=score.logprob,
        top=[ring_pb2.TopLogprob(token_id=top.token_id, logprob=top.logprob) for top in score.top],
    )
