from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class FetchUnitRequest(_message.Message):
    __slots__ = ("model_digest", "unit_index", "offset_bytes", "unit_digest")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    UNIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNIT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model_digest: bytes
    unit_index: int
    offset_bytes: int
    unit_digest: bytes
    def __init__(self, model_digest: _Optional[bytes] = ..., unit_index: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., unit_digest: _Optional[bytes] = ...) -> None: ...

class FetchUnitResponse(_message.Message):
    __slots__ = ("offset_bytes", "data")
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset_bytes: int
    data: bytes
    def __init__(self, offset_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
