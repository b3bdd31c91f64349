"""Messages of the protocol as JSON, for `/api/cluster` and `dairllm status --json` alike.

All fields stand under their names: numbers as numbers, since the JSON mapping of protobuf writes those of 64 bits as strings, which nobody
expects of a size in bytes; enums in lower case without their prefix, encodings as people write them; bytes in hex; absent values as null. A
field whose name ends in `time_s`, seconds since 1970 in UTC, becomes text (ISO 8601, to the millisecond) and loses the `_s`.
"""

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

_Convert = Callable[[Any], Any]


class _Field(NamedTuple):
    key: str
    name: str
    is_repeated: bool
    has_presence: bool
    convert: _Convert | None


def message_to_json(message: Message) -> dict[str, Any]:
    return {field.key: _field_to_json(message, field) for field in _fields(message.DESCRIPTOR)}


def enum_to_json(enum: EnumDescriptor, value: int) -> str:
    """'serving' for CLUSTER_PHASE_SERVING, 'Q8_0' for ENCODING_Q8_0; the number, if this version does not know it."""
    known = enum.values_by_number.get(value)
    if known is None:
        return str(value)
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_") + "_"
    name: str = known.name.removeprefix(prefix)
    return name if enum.name == "Encoding" else name.lower()


def _field_to_json(message: Message, field: _Field) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value, convert = getattr(message, field.name), field.convert
    if field.is_repeated:
        return list(value) if convert is None else [convert(item) for item in value]
    return value if convert is None else convert(value)


@functools.cache
def _fields(descriptor: Descriptor) -> tuple[_Field, ...]:
    """Looked up once, which takes most of the time: a state holds hundreds of events."""
    return tuple(_field(field) for field in descriptor.fields)


def _field(field: FieldDescriptor) -> _Field:
    key = field.name.removesuffix("_s") if _is_time(field) else field.name
    return _Field(key, field.name, field.is_repeated, field.has_presence, _conversion(field))


def _conversion(field: FieldDescriptor) -> _Convert | None:
    if field.message_type is not None:
        return message_to_json
    if field.enum_type is not None:
        return functools.partial(enum_to_json, field.enum_type)
    if _is_time(field):
        return _time_text
    return bytes.hex if field.type == FieldDescriptor.TYPE_BYTES else None


def _is_time(field: FieldDescriptor) -> bool:
    return field.name == "time_s" or field.name.endswith("_time_s")


def _time_text(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")


def message_schema(message: type[Message]) -> dict[str, Any]:
    """The JSON schema of what `message_to_json` writes of such messages."""
    return _message_schema(cast(Descriptor, message.DESCRIPTOR))


def _message_schema(descriptor: Descriptor) -> dict[str, Any]:
    properties = {field.key: _field_schema(descriptor.fields_by_name[field.name]) for field in _fields(descriptor)}
    return {"type": "object", "title": descriptor.name, "properties": properties, "required": list(properties)}


def _field_schema(field: FieldDescriptor) -> dict[str, Any]:
    schema = _value_schema(field)
    if field.is_repeated:
        return {"type": "array", "items": schema}
    return {"anyOf": [schema, {"type": "null"}]} if field.has_presence else schema


def _value_schema(field: FieldDescriptor) -> dict[str, Any]:
    if field.message_type is not None:
        return _message_schema(field.message_type)
    if field.enum_type is not None or _is_time(field) or field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING):
        return {"type": "string"}
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"type": "boolean"}
    return {"type": "number" if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT) else "integer"}
