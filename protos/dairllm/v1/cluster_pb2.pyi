from dairllm.v1 import model_pb2 as _model_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CacheType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_TYPE_UNSPECIFIED: _ClassVar[CacheType]
    CACHE_TYPE_F16: _ClassVar[CacheType]
    CACHE_TYPE_F32: _ClassVar[CacheType]
    CACHE_TYPE_Q8_0: _ClassVar[CacheType]

class ClusterPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLUSTER_PHASE_UNSPECIFIED: _ClassVar[ClusterPhase]
    CLUSTER_PHASE_WAITING: _ClassVar[ClusterPhase]
    CLUSTER_PHASE_LOADING: _ClassVar[ClusterPhase]
    CLUSTER_PHASE_SERVING: _ClassVar[ClusterPhase]

class SeenShardPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEEN_SHARD_PHASE_UNSPECIFIED: _ClassVar[SeenShardPhase]
    SEEN_SHARD_PHASE_INVITED: _ClassVar[SeenShardPhase]
    SEEN_SHARD_PHASE_UNREACHABLE: _ClassVar[SeenShardPhase]
    SEEN_SHARD_PHASE_REFUSED: _ClassVar[SeenShardPhase]
    SEEN_SHARD_PHASE_OTHER_CLUSTER: _ClassVar[SeenShardPhase]
    SEEN_SHARD_PHASE_OTHER_PROTOCOL: _ClassVar[SeenShardPhase]

class ShardPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHARD_PHASE_UNSPECIFIED: _ClassVar[ShardPhase]
    SHARD_PHASE_JOINED: _ClassVar[ShardPhase]
    SHARD_PHASE_LOADING: _ClassVar[ShardPhase]
    SHARD_PHASE_READY: _ClassVar[ShardPhase]
    SHARD_PHASE_FAILED: _ClassVar[ShardPhase]
CACHE_TYPE_UNSPECIFIED: CacheType
CACHE_TYPE_F16: CacheType
CACHE_TYPE_F32: CacheType
CACHE_TYPE_Q8_0: CacheType
CLUSTER_PHASE_UNSPECIFIED: ClusterPhase
CLUSTER_PHASE_WAITING: ClusterPhase
CLUSTER_PHASE_LOADING: ClusterPhase
CLUSTER_PHASE_SERVING: ClusterPhase
SEEN_SHARD_PHASE_UNSPECIFIED: SeenShardPhase
SEEN_SHARD_PHASE_INVITED: SeenShardPhase
SEEN_SHARD_PHASE_UNREACHABLE: SeenShardPhase
SEEN_SHARD_PHASE_REFUSED: SeenShardPhase
SEEN_SHARD_PHASE_OTHER_CLUSTER: SeenShardPhase
SEEN_SHARD_PHASE_OTHER_PROTOCOL: SeenShardPhase
SHARD_PHASE_UNSPECIFIED: ShardPhase
SHARD_PHASE_JOINED: ShardPhase
SHARD_PHASE_LOADING: ShardPhase
SHARD_PHASE_READY: ShardPhase
SHARD_PHASE_FAILED: ShardPhase

class JoinRequest(_message.Message):
    __slots__ = ("hello", "heartbeat", "load_progress", "stage_ready", "stage_failed", "edge_lost", "leaving", "stage_activated", "capabilities_changed", "proof")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LOAD_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STAGE_READY_FIELD_NUMBER: _ClassVar[int]
    STAGE_FAILED_FIELD_NUMBER: _ClassVar[int]
    EDGE_LOST_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    STAGE_ACTIVATED_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_CHANGED_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    load_progress: LoadProgress
    stage_ready: StageReady
    stage_failed: StageFailed
    edge_lost: EdgeLost
    leaving: Leaving
    stage_activated: StageActivated
    capabilities_changed: CapabilitiesChanged
    proof: Proof
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., load_progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., stage_ready: _Optional[_Union[StageReady, _Mapping]] = ..., stage_failed: _Optional[_Union[StageFailed, _Mapping]] = ..., edge_lost: _Optional[_Union[EdgeLost, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ..., stage_activated: _Optional[_Union[StageActivated, _Mapping]] = ..., capabilities_changed: _Optional[_Union[CapabilitiesChanged, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("welcome", "heartbeat_ack", "assignment", "release", "activate_stage", "drain", "configure", "prove")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_ACK_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_STAGE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    CONFIGURE_FIELD_NUMBER: _ClassVar[int]
    PROVE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    heartbeat_ack: HeartbeatAck
    assignment: Assignment
    release: Release
    activate_stage: ActivateStage
    drain: Drain
    configure: Configure
    prove: Prove
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., heartbeat_ack: _Optional[_Union[HeartbeatAck, _Mapping]] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., activate_stage: _Optional[_Union[ActivateStage, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., configure: _Optional[_Union[Configure, _Mapping]] = ..., prove: _Optional[_Union[Prove, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_major", "protocol_minor", "software_version", "cluster_hash", "name", "boot_id", "addresses", "capabilities", "held", "last_epoch", "announced_id")
    PROTOCOL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LAST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCED_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_major: int
    protocol_minor: int
    software_version: str
    cluster_hash: str
    name: str
    boot_id: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    capabilities: ShardCapabilities
    held: HeldUnits
    last_epoch: int
    announced_id: str
    def __init__(self, protocol_major: _Optional[int] = ..., protocol_minor: _Optional[int] = ..., software_version: _Optional[str] = ..., cluster_hash: _Optional[str] = ..., name: _Optional[str] = ..., boot_id: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., capabilities: _Optional[_Union[ShardCapabilities, _Mapping]] = ..., held: _Optional[_Union[HeldUnits, _Mapping]] = ..., last_epoch: _Optional[int] = ..., announced_id: _Optional[str] = ...) -> None: ...

class HeldUnits(_message.Message):
    __slots__ = ("model_digest", "unit_indexes")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    UNIT_INDEXES_FIELD_NUMBER: _ClassVar[int]
    model_digest: bytes
    unit_indexes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model_digest: _Optional[bytes] = ..., unit_indexes: _Optional[_Iterable[int]] = ...) -> None: ...

class ShardCapabilities(_message.Message):
    __slots__ = ("memory_budget_bytes", "reserved_bytes", "num_threads", "isa", "cpu_model", "decode_s_per_byte", "block_formats", "features", "process_bytes")
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    ISA_FIELD_NUMBER: _ClassVar[int]
    CPU_MODEL_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FORMATS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PROCESS_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory_budget_bytes: int
    reserved_bytes: int
    num_threads: int
    isa: str
    cpu_model: str
    decode_s_per_byte: float
    block_formats: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedScalarFieldContainer[str]
    process_bytes: int
    def __init__(self, memory_budget_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., num_threads: _Optional[int] = ..., isa: _Optional[str] = ..., cpu_model: _Optional[str] = ..., decode_s_per_byte: _Optional[float] = ..., block_formats: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[str]] = ..., process_bytes: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("number", "round_trip_us", "usage", "work")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_US_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    number: int
    round_trip_us: int
    usage: ShardUsage
    work: ShardWork
    def __init__(self, number: _Optional[int] = ..., round_trip_us: _Optional[int] = ..., usage: _Optional[_Union[ShardUsage, _Mapping]] = ..., work: _Optional[_Union[ShardWork, _Mapping]] = ...) -> None: ...

class ShardWork(_message.Message):
    __slots__ = ("given", "done", "cpu_us", "epoch", "received_frames", "computed_frames", "sent_frames")
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    CPU_US_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SENT_FRAMES_FIELD_NUMBER: _ClassVar[int]
    given: int
    done: int
    cpu_us: int
    epoch: int
    received_frames: int
    computed_frames: int
    sent_frames: int
    def __init__(self, given: _Optional[int] = ..., done: _Optional[int] = ..., cpu_us: _Optional[int] = ..., epoch: _Optional[int] = ..., received_frames: _Optional[int] = ..., computed_frames: _Optional[int] = ..., sent_frames: _Optional[int] = ...) -> None: ...

class ShardUsage(_message.Message):
    __slots__ = ("weights_bytes", "kv_cache_bytes", "scratch_bytes", "resident_bytes", "frames", "rows", "compute_us", "sent_bytes", "received_bytes", "streamed_bytes", "streaming_us", "stalled_us", "experts_found", "experts_missed")
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAMING_US_FIELD_NUMBER: _ClassVar[int]
    STALLED_US_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FOUND_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_MISSED_FIELD_NUMBER: _ClassVar[int]
    weights_bytes: int
    kv_cache_bytes: int
    scratch_bytes: int
    resident_bytes: int
    frames: int
    rows: int
    compute_us: int
    sent_bytes: int
    received_bytes: int
    streamed_bytes: int
    streaming_us: int
    stalled_us: int
    experts_found: int
    experts_missed: int
    def __init__(self, weights_bytes: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., scratch_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., frames: _Optional[int] = ..., rows: _Optional[int] = ..., compute_us: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ..., streamed_bytes: _Optional[int] = ..., streaming_us: _Optional[int] = ..., stalled_us: _Optional[int] = ..., experts_found: _Optional[int] = ..., experts_missed: _Optional[int] = ...) -> None: ...

class HeartbeatAck(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("coordinator_id", "software_version", "heartbeat_interval_ms", "lease_timeout_ms", "observed_host")
    COORDINATOR_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_HOST_FIELD_NUMBER: _ClassVar[int]
    coordinator_id: str
    software_version: str
    heartbeat_interval_ms: int
    lease_timeout_ms: int
    observed_host: str
    def __init__(self, coordinator_id: _Optional[str] = ..., software_version: _Optional[str] = ..., heartbeat_interval_ms: _Optional[int] = ..., lease_timeout_ms: _Optional[int] = ..., observed_host: _Optional[str] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("epoch", "model_digest", "spec", "units", "model_folder", "model_files", "next", "num_kv_blocks", "kv_block_tokens", "context_length", "max_batch_rows", "kv_cache_type", "ring_key", "exclusive", "weight_sources", "kv_key", "wire", "model_urls", "streamed_units", "expert_places")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FOLDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_TYPE_FIELD_NUMBER: _ClassVar[int]
    RING_KEY_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_SOURCES_FIELD_NUMBER: _ClassVar[int]
    KV_KEY_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    MODEL_URLS_FIELD_NUMBER: _ClassVar[int]
    STREAMED_UNITS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_PLACES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    model_digest: bytes
    spec: _model_pb2.ModelSpec
    units: _containers.RepeatedCompositeFieldContainer[_model_pb2.Unit]
    model_folder: str
    model_files: _containers.RepeatedCompositeFieldContainer[_model_pb2.ModelFile]
    next: Peer
    num_kv_blocks: int
    kv_block_tokens: int
    context_length: int
    max_batch_rows: int
    kv_cache_type: CacheType
    ring_key: bytes
    exclusive: bool
    weight_sources: _containers.RepeatedCompositeFieldContainer[Peer]
    kv_key: bytes
    wire: _model_pb2.Encoding
    model_urls: _containers.RepeatedScalarFieldContainer[str]
    streamed_units: _containers.RepeatedScalarFieldContainer[int]
    expert_places: int
    def __init__(self, epoch: _Optional[int] = ..., model_digest: _Optional[bytes] = ..., spec: _Optional[_Union[_model_pb2.ModelSpec, _Mapping]] = ..., units: _Optional[_Iterable[_Union[_model_pb2.Unit, _Mapping]]] = ..., model_folder: _Optional[str] = ..., model_files: _Optional[_Iterable[_Union[_model_pb2.ModelFile, _Mapping]]] = ..., next: _Optional[_Union[Peer, _Mapping]] = ..., num_kv_blocks: _Optional[int] = ..., kv_block_tokens: _Optional[int] = ..., context_length: _Optional[int] = ..., max_batch_rows: _Optional[int] = ..., kv_cache_type: _Optional[_Union[CacheType, str]] = ..., ring_key: _Optional[bytes] = ..., exclusive: bool = ..., weight_sources: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., kv_key: _Optional[bytes] = ..., wire: _Optional[_Union[_model_pb2.Encoding, str]] = ..., model_urls: _Optional[_Iterable[str]] = ..., streamed_units: _Optional[_Iterable[int]] = ..., expert_places: _Optional[int] = ...) -> None: ...

class ActivateStage(_message.Message):
    __slots__ = ("epoch", "transfers", "alive_sequences")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    ALIVE_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    transfers: _containers.RepeatedCompositeFieldContainer[KvTransfer]
    alive_sequences: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., transfers: _Optional[_Iterable[_Union[KvTransfer, _Mapping]]] = ..., alive_sequences: _Optional[_Iterable[int]] = ...) -> None: ...

class KvTransfer(_message.Message):
    __slots__ = ("first_unit", "end_unit", "block_ids", "kv_key")
    FROM_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIT_FIELD_NUMBER: _ClassVar[int]
    END_UNIT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    KV_KEY_FIELD_NUMBER: _ClassVar[int]
    first_unit: int
    end_unit: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    kv_key: bytes
    def __init__(self, first_unit: _Optional[int] = ..., end_unit: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ..., kv_key: _Optional[bytes] = ..., **kwargs) -> None: ...

class StageActivated(_message.Message):
    __slots__ = ("epoch", "transferred_units", "transferred_bytes", "seconds", "note")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_UNITS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    transferred_units: _containers.RepeatedScalarFieldContainer[int]
    transferred_bytes: int
    seconds: float
    note: str
    def __init__(self, epoch: _Optional[int] = ..., transferred_units: _Optional[_Iterable[int]] = ..., transferred_bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Prove(_message.Message):
    __slots__ = ("number", "challenge")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    number: int
    challenge: bytes
    def __init__(self, number: _Optional[int] = ..., challenge: _Optional[bytes] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("number", "digest")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    number: int
    digest: bytes
    def __init__(self, number: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Configure(_message.Message):
    __slots__ = ("memory_budget_bytes", "num_threads")
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    memory_budget_bytes: int
    num_threads: int
    def __init__(self, memory_budget_bytes: _Optional[int] = ..., num_threads: _Optional[int] = ...) -> None: ...

class CapabilitiesChanged(_message.Message):
    __slots__ = ("capabilities", "refusal")
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    capabilities: ShardCapabilities
    refusal: str
    def __init__(self, capabilities: _Optional[_Union[ShardCapabilities, _Mapping]] = ..., refusal: _Optional[str] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("name", "addresses")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("epoch", "reason", "leave")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    reason: str
    leave: bool
    def __init__(self, epoch: _Optional[int] = ..., reason: _Optional[str] = ..., leave: bool = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("epoch", "loaded_bytes", "total_bytes", "from_memory_bytes", "from_disk_bytes", "from_network_bytes", "trouble")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FROM_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FROM_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FROM_NETWORK_BYTES_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    loaded_bytes: int
    total_bytes: int
    from_memory_bytes: int
    from_disk_bytes: int
    from_network_bytes: int
    trouble: str
    def __init__(self, epoch: _Optional[int] = ..., loaded_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., from_memory_bytes: _Optional[int] = ..., from_disk_bytes: _Optional[int] = ..., from_network_bytes: _Optional[int] = ..., trouble: _Optional[str] = ...) -> None: ...

class StageReady(_message.Message):
    __slots__ = ("epoch", "weights_bytes", "kv_cache_bytes", "load_s")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    weights_bytes: int
    kv_cache_bytes: int
    load_s: float
    def __init__(self, epoch: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., load_s: _Optional[float] = ...) -> None: ...

class StageFailed(_message.Message):
    __slots__ = ("epoch", "message", "retryable", "needs_exclusive", "missing_bytes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    NEEDS_EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    message: str
    retryable: bool
    needs_exclusive: bool
    missing_bytes: int
    def __init__(self, epoch: _Optional[int] = ..., message: _Optional[str] = ..., retryable: bool = ..., needs_exclusive: bool = ..., missing_bytes: _Optional[int] = ...) -> None: ...

class EdgeLost(_message.Message):
    __slots__ = ("epoch", "peer", "message", "silent", "at_fault")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    AT_FAULT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    peer: str
    message: str
    silent: bool
    at_fault: bool
    def __init__(self, epoch: _Optional[int] = ..., peer: _Optional[str] = ..., message: _Optional[str] = ..., silent: bool = ..., at_fault: bool = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ("reason", "drain")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    reason: str
    drain: bool
    def __init__(self, reason: _Optional[str] = ..., drain: bool = ...) -> None: ...

class WatchClusterRequest(_message.Message):
    __slots__ = ("once",)
    ONCE_FIELD_NUMBER: _ClassVar[int]
    once: bool
    def __init__(self, once: bool = ...) -> None: ...

class WatchClusterResponse(_message.Message):
    __slots__ = ("state", "coordinator")
    STATE_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    state: ClusterState
    coordinator: CoordinatorIdentity
    def __init__(self, state: _Optional[_Union[ClusterState, _Mapping]] = ..., coordinator: _Optional[_Union[CoordinatorIdentity, _Mapping]] = ...) -> None: ...

class CoordinatorIdentity(_message.Message):
    __slots__ = ("protocol_major", "protocol_minor", "cluster_hash", "time_s")
    PROTOCOL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    protocol_major: int
    protocol_minor: int
    cluster_hash: str
    time_s: float
    def __init__(self, protocol_major: _Optional[int] = ..., protocol_minor: _Optional[int] = ..., cluster_hash: _Optional[str] = ..., time_s: _Optional[float] = ...) -> None: ...

class ClusterState(_message.Message):
    __slots__ = ("coordinator_id", "software_version", "model", "model_digest", "num_layers", "model_size_bytes", "wire", "phase", "reason", "epoch", "shards", "predicted_decode_tok_s", "measured_decode_tok_s", "running_sequences", "waiting_sequences", "kv_blocks_total", "kv_blocks_free", "events", "next_epoch", "missing_bytes", "seen", "arithmetic", "system_fingerprint", "lost", "can_answer", "memory_for_all_bytes", "in_memory_decode_tok_s")
    COORDINATOR_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_DECODE_TOK_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_DECODE_TOK_S_FIELD_NUMBER: _ClassVar[int]
    RUNNING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    WAITING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    CAN_ANSWER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FOR_ALL_BYTES_FIELD_NUMBER: _ClassVar[int]
    IN_MEMORY_DECODE_TOK_S_FIELD_NUMBER: _ClassVar[int]
    coordinator_id: str
    software_version: str
    model: str
    model_digest: bytes
    num_layers: int
    model_size_bytes: int
    wire: _model_pb2.Encoding
    phase: ClusterPhase
    reason: str
    epoch: int
    shards: _containers.RepeatedCompositeFieldContainer[ShardState]
    predicted_decode_tok_s: float
    measured_decode_tok_s: float
    running_sequences: int
    waiting_sequences: int
    kv_blocks_total: int
    kv_blocks_free: int
    events: _containers.RepeatedCompositeFieldContainer[ClusterEvent]
    next_epoch: int
    missing_bytes: int
    seen: _containers.RepeatedCompositeFieldContainer[SeenShard]
    arithmetic: str
    system_fingerprint: str
    lost: _containers.RepeatedCompositeFieldContainer[LostShard]
    can_answer: bool
    memory_for_all_bytes: int
    in_memory_decode_tok_s: float
    def __init__(self, coordinator_id: _Optional[str] = ..., software_version: _Optional[str] = ..., model: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., num_layers: _Optional[int] = ..., model_size_bytes: _Optional[int] = ..., wire: _Optional[_Union[_model_pb2.Encoding, str]] = ..., phase: _Optional[_Union[ClusterPhase, str]] = ..., reason: _Optional[str] = ..., epoch: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[ShardState, _Mapping]]] = ..., predicted_decode_tok_s: _Optional[float] = ..., measured_decode_tok_s: _Optional[float] = ..., running_sequences: _Optional[int] = ..., waiting_sequences: _Optional[int] = ..., kv_blocks_total: _Optional[int] = ..., kv_blocks_free: _Optional[int] = ..., events: _Optional[_Iterable[_Union[ClusterEvent, _Mapping]]] = ..., next_epoch: _Optional[int] = ..., missing_bytes: _Optional[int] = ..., seen: _Optional[_Iterable[_Union[SeenShard, _Mapping]]] = ..., arithmetic: _Optional[str] = ..., system_fingerprint: _Optional[str] = ..., lost: _Optional[_Iterable[_Union[LostShard, _Mapping]]] = ..., can_answer: bool = ..., memory_for_all_bytes: _Optional[int] = ..., in_memory_decode_tok_s: _Optional[float] = ...) -> None: ...

class SeenShard(_message.Message):
    __slots__ = ("id", "name", "addresses", "phase", "reason", "since_time_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    phase: SeenShardPhase
    reason: str
    since_time_s: float
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., phase: _Optional[_Union[SeenShardPhase, str]] = ..., reason: _Optional[str] = ..., since_time_s: _Optional[float] = ...) -> None: ...

class ClusterEvent(_message.Message):
    __slots__ = ("time_s", "kind", "shard", "text", "duration_s", "number", "times")
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    time_s: float
    kind: str
    shard: str
    text: str
    duration_s: float
    number: int
    times: int
    def __init__(self, time_s: _Optional[float] = ..., kind: _Optional[str] = ..., shard: _Optional[str] = ..., text: _Optional[str] = ..., duration_s: _Optional[float] = ..., number: _Optional[int] = ..., times: _Optional[int] = ...) -> None: ...

class LostShard(_message.Message):
    __slots__ = ("name", "addresses", "reason", "since_time_s", "first_unit", "end_unit", "capabilities", "software_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIT_FIELD_NUMBER: _ClassVar[int]
    END_UNIT_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    since_time_s: float
    first_unit: int
    end_unit: int
    capabilities: ShardCapabilities
    software_version: str
    def __init__(self, name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., since_time_s: _Optional[float] = ..., first_unit: _Optional[int] = ..., end_unit: _Optional[int] = ..., capabilities: _Optional[_Union[ShardCapabilities, _Mapping]] = ..., software_version: _Optional[str] = ...) -> None: ...

class ShardState(_message.Message):
    __slots__ = ("name", "addresses", "phase", "stage", "first_unit", "end_unit", "capabilities", "usage", "load", "round_trip_us", "last_seen_s", "predicted_step_s", "measured_step_s", "note", "software_version", "next_first_unit", "next_end_unit", "streamed_bytes", "stream_s_per_byte", "expert_places", "experts_touched")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIT_FIELD_NUMBER: _ClassVar[int]
    END_UNIT_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_US_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_STEP_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_STEP_S_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIRST_UNIT_FIELD_NUMBER: _ClassVar[int]
    NEXT_END_UNIT_FIELD_NUMBER: _ClassVar[int]
    STREAMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAM_S_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    EXPERT_PLACES_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_TOUCHED_FIELD_NUMBER: _ClassVar[int]
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    phase: ShardPhase
    stage: int
    first_unit: int
    end_unit: int
    capabilities: ShardCapabilities
    usage: ShardUsage
    load: LoadProgress
    round_trip_us: int
    last_seen_s: float
    predicted_step_s: float
    measured_step_s: float
    note: str
    software_version: str
    next_first_unit: int
    next_end_unit: int
    streamed_bytes: int
    stream_s_per_byte: float
    expert_places: int
    experts_touched: int
    def __init__(self, name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., phase: _Optional[_Union[ShardPhase, str]] = ..., stage: _Optional[int] = ..., first_unit: _Optional[int] = ..., end_unit: _Optional[int] = ..., capabilities: _Optional[_Union[ShardCapabilities, _Mapping]] = ..., usage: _Optional[_Union[ShardUsage, _Mapping]] = ..., load: _Optional[_Union[LoadProgress, _Mapping]] = ..., round_trip_us: _Optional[int] = ..., last_seen_s: _Optional[float] = ..., predicted_step_s: _Optional[float] = ..., measured_step_s: _Optional[float] = ..., note: _Optional[str] = ..., software_version: _Optional[str] = ..., next_first_unit: _Optional[int] = ..., next_end_unit: _Optional[int] = ..., streamed_bytes: _Optional[int] = ..., stream_s_per_byte: _Optional[float] = ..., expert_places: _Optional[int] = ..., experts_touched: _Optional[int] = ...) -> None: ...

class DrainShardRequest(_message.Message):
    __slots__ = ("name", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., force: bool = ...) -> None: ...

class DrainShardResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CordonShardRequest(_message.Message):
    __slots__ = ("name", "cordoned", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    cordoned: bool
    force: bool
    def __init__(self, name: _Optional[str] = ..., cordoned: bool = ..., force: bool = ...) -> None: ...

class CordonShardResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConfigureShardRequest(_message.Message):
    __slots__ = ("name", "memory_budget_bytes", "num_threads", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    memory_budget_bytes: int
    num_threads: int
    force: bool
    def __init__(self, name: _Optional[str] = ..., memory_budget_bytes: _Optional[int] = ..., num_threads: _Optional[int] = ..., force: bool = ...) -> None: ...

class ConfigureShardResponse(_message.Message):
    __slots__ = ("memory_budget_bytes", "num_threads")
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    memory_budget_bytes: int
    num_threads: int
    def __init__(self, memory_budget_bytes: _Optional[int] = ..., num_threads: _Optional[int] = ...) -> None: ...
