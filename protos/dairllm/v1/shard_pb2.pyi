from dairllm.v1 import cluster_pb2 as _cluster_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("name", "software_version", "epoch", "first_unit", "end_unit", "capabilities", "usage", "coordinator")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIT_FIELD_NUMBER: _ClassVar[int]
    END_UNIT_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    software_version: str
    epoch: int
    first_unit: int
    end_unit: int
    capabilities: _cluster_pb2.ShardCapabilities
    usage: _cluster_pb2.ShardUsage
    coordinator: str
    def __init__(self, name: _Optional[str] = ..., software_version: _Optional[str] = ..., epoch: _Optional[int] = ..., first_unit: _Optional[int] = ..., end_unit: _Optional[int] = ..., capabilities: _Optional[_Union[_cluster_pb2.ShardCapabilities, _Mapping]] = ..., usage: _Optional[_Union[_cluster_pb2.ShardUsage, _Mapping]] = ..., coordinator: _Optional[str] = ...) -> None: ...

class EchoRequest(_message.Message):
    __slots__ = ("payload", "reply_size_bytes")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REPLY_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    reply_size_bytes: int
    def __init__(self, payload: _Optional[bytes] = ..., reply_size_bytes: _Optional[int] = ...) -> None: ...

class EchoResponse(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("cluster_hash", "protocol_major", "protocol_minor", "coordinator_id", "addresses")
    CLUSTER_HASH_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    cluster_hash: str
    protocol_major: int
    protocol_minor: int
    coordinator_id: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cluster_hash: _Optional[str] = ..., protocol_major: _Optional[int] = ..., protocol_minor: _Optional[int] = ..., coordinator_id: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class InviteResponse(_message.Message):
    __slots__ = ("is_member",)
    IS_MEMBER_FIELD_NUMBER: _ClassVar[int]
    is_member: bool
    def __init__(self, is_member: bool = ...) -> None: ...

class FetchKvRequest(_message.Message):
    __slots__ = ("model_digest", "first_unit", "end_unit", "block_ids", "block_bytes", "kv_key")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIT_FIELD_NUMBER: _ClassVar[int]
    END_UNIT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_KEY_FIELD_NUMBER: _ClassVar[int]
    model_digest: bytes
    first_unit: int
    end_unit: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    block_bytes: int
    kv_key: bytes
    def __init__(self, model_digest: _Optional[bytes] = ..., first_unit: _Optional[int] = ..., end_unit: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ..., block_bytes: _Optional[int] = ..., kv_key: _Optional[bytes] = ...) -> None: ...

class FetchKvResponse(_message.Message):
    __slots__ = ("unit", "block_ids", "data", "position", "offset_bytes")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    unit: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    position: int
    offset_bytes: int
    def __init__(self, unit: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., position: _Optional[int] = ..., offset_bytes: _Optional[int] = ...) -> None: ...
