from dairllm.v1 import model_pb2 as _model_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_STATUS_UNSPECIFIED: _ClassVar[FrameStatus]
    FRAME_STATUS_WRONG_EPOCH: _ClassVar[FrameStatus]
    FRAME_STATUS_MALFORMED: _ClassVar[FrameStatus]
    FRAME_STATUS_FAILED: _ClassVar[FrameStatus]
FRAME_STATUS_UNSPECIFIED: FrameStatus
FRAME_STATUS_WRONG_EPOCH: FrameStatus
FRAME_STATUS_MALFORMED: FrameStatus
FRAME_STATUS_FAILED: FrameStatus

class ForwardRequest(_message.Message):
    __slots__ = ("open", "micro_batch", "result")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    open: EdgeOpen
    micro_batch: MicroBatch
    result: MicroBatchResult
    def __init__(self, open: _Optional[_Union[EdgeOpen, _Mapping]] = ..., micro_batch: _Optional[_Union[MicroBatch, _Mapping]] = ..., result: _Optional[_Union[MicroBatchResult, _Mapping]] = ...) -> None: ...

class ForwardResponse(_message.Message):
    __slots__ = ("accepted", "credit", "refused", "heartbeat")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    accepted: EdgeAccepted
    credit: Credit
    refused: FrameRefused
    heartbeat: EdgeHeartbeat
    def __init__(self, accepted: _Optional[_Union[EdgeAccepted, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., refused: _Optional[_Union[FrameRefused, _Mapping]] = ..., heartbeat: _Optional[_Union[EdgeHeartbeat, _Mapping]] = ...) -> None: ...

class EdgeOpen(_message.Message):
    __slots__ = ("cluster_hash", "epoch", "sender", "receiver", "ring_key")
    CLUSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    RING_KEY_FIELD_NUMBER: _ClassVar[int]
    cluster_hash: str
    epoch: int
    sender: str
    receiver: str
    ring_key: bytes
    def __init__(self, cluster_hash: _Optional[str] = ..., epoch: _Optional[int] = ..., sender: _Optional[str] = ..., receiver: _Optional[str] = ..., ring_key: _Optional[bytes] = ...) -> None: ...

class EdgeAccepted(_message.Message):
    __slots__ = ("credits", "heartbeat_interval_ms")
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    credits: int
    heartbeat_interval_ms: int
    def __init__(self, credits: _Optional[int] = ..., heartbeat_interval_ms: _Optional[int] = ...) -> None: ...

class EdgeHeartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Credit(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: int
    def __init__(self, frames: _Optional[int] = ...) -> None: ...

class FrameRefused(_message.Message):
    __slots__ = ("epoch", "batch_id", "status", "message")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    batch_id: int
    status: FrameStatus
    message: str
    def __init__(self, epoch: _Optional[int] = ..., batch_id: _Optional[int] = ..., status: _Optional[_Union[FrameStatus, str]] = ..., message: _Optional[str] = ...) -> None: ...

class MicroBatch(_message.Message):
    __slots__ = ("epoch", "batch_id", "begins", "slices", "ends", "timings", "encoding")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    BEGINS_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    batch_id: int
    begins: _containers.RepeatedCompositeFieldContainer[SequenceBegin]
    slices: _containers.RepeatedCompositeFieldContainer[SequenceSlice]
    ends: _containers.RepeatedScalarFieldContainer[int]
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    encoding: _model_pb2.Encoding
    def __init__(self, epoch: _Optional[int] = ..., batch_id: _Optional[int] = ..., begins: _Optional[_Iterable[_Union[SequenceBegin, _Mapping]]] = ..., slices: _Optional[_Iterable[_Union[SequenceSlice, _Mapping]]] = ..., ends: _Optional[_Iterable[int]] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ..., encoding: _Optional[_Union[_model_pb2.Encoding, str]] = ...) -> None: ...

class SequenceBegin(_message.Message):
    __slots__ = ("sequence_id", "prompt_length", "sampling", "block_ids", "token_ids")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    prompt_length: int
    sampling: SamplingParams
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_id: _Optional[int] = ..., prompt_length: _Optional[int] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., block_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SequenceSlice(_message.Message):
    __slots__ = ("sequence_id", "first_position", "token_ids", "new_block_ids", "activations", "num_samples", "score_targets", "first_unit", "end_unit", "replay_at", "replay_failed", "failure")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SCORE_TARGETS_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIT_FIELD_NUMBER: _ClassVar[int]
    END_UNIT_FIELD_NUMBER: _ClassVar[int]
    REPLAY_AT_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    first_position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    new_block_ids: _containers.RepeatedScalarFieldContainer[int]
    activations: bytes
    num_samples: int
    score_targets: _containers.RepeatedScalarFieldContainer[int]
    first_unit: int
    end_unit: int
    replay_at: str
    replay_failed: bool
    failure: str
    def __init__(self, sequence_id: _Optional[int] = ..., first_position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., new_block_ids: _Optional[_Iterable[int]] = ..., activations: _Optional[bytes] = ..., num_samples: _Optional[int] = ..., score_targets: _Optional[_Iterable[int]] = ..., first_unit: _Optional[int] = ..., end_unit: _Optional[int] = ..., replay_at: _Optional[str] = ..., replay_failed: bool = ..., failure: _Optional[str] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "logit_bias", "top_logprobs", "logprobs")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: _containers.ScalarMap[int, float]
    top_logprobs: int
    logprobs: bool
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., top_logprobs: _Optional[int] = ..., logprobs: bool = ...) -> None: ...

class MicroBatchResult(_message.Message):
    __slots__ = ("epoch", "batch_id", "results", "timings")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    batch_id: int
    results: _containers.RepeatedCompositeFieldContainer[SequenceResult]
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    def __init__(self, epoch: _Optional[int] = ..., batch_id: _Optional[int] = ..., results: _Optional[_Iterable[_Union[SequenceResult, _Mapping]]] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ...) -> None: ...

class SequenceResult(_message.Message):
    __slots__ = ("sequence_id", "sampled", "scores", "replay_failed", "failure")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    sampled: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    scores: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    replay_failed: bool
    failure: str
    def __init__(self, sequence_id: _Optional[int] = ..., sampled: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., scores: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., replay_failed: bool = ..., failure: _Optional[str] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("token_id", "logprob", "top")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class StageTiming(_message.Message):
    __slots__ = ("shard", "queue_us", "compute_us", "received_bytes", "num_rows", "codec_us")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    CODEC_US_FIELD_NUMBER: _ClassVar[int]
    shard: str
    queue_us: int
    compute_us: int
    received_bytes: int
    num_rows: int
    codec_us: int
    def __init__(self, shard: _Optional[str] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., received_bytes: _Optional[int] = ..., num_rows: _Optional[int] = ..., codec_us: _Optional[int] = ...) -> None: ...
