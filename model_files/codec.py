"""Descriptions of models as messages of model.proto, and back; the only place where one becomes the other.

A message has the name of its dataclass, and its fields theirs; which kind a part is, is told by the member of a oneof. What is at its
default is not written. What comes in is checked by the dataclasses themselves. A field that this version does not know is refused: it may
change the arithmetic.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, get_origin, get_type_hints

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from dairllm.model_files.attention import LatentAttention, LinearAttention, Rope, SelfAttention
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.feed_forward import Activation, DenseFeedForward, ExpertFeedForward, Router
from dairllm.model_files.manifest import Manifest, ModelFile, TensorInfo, TensorPiece, Unit
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import LayerSpec, ModelSpec, PerLayerEmbedding, PerLayerInput
from dairllm.v1 import model_pb2

MAX_MANIFEST_BYTES = 64 << 20

T = TypeVar("T")

DESCRIPTIONS: Mapping[str, type] = {
    cls.__name__: cls
    for cls in (
        *(Norm, Rope, SelfAttention, LatentAttention, LinearAttention),
        *(Activation, Router, DenseFeedForward, ExpertFeedForward),
        *(PerLayerEmbedding, PerLayerInput, LayerSpec, ModelSpec),
        *(ModelFile, TensorPiece, TensorInfo, Unit, Manifest),
    )
}


def spec_to_proto(spec: ModelSpec) -> model_pb2.ModelSpec:
    message = model_pb2.ModelSpec()
    _write(spec, message)
    return message


def spec_from_proto(message: model_pb2.ModelSpec) -> ModelSpec:
    """Raises CorruptModelFile, or UnsupportedModel for what only another version knows; so do all of these."""
    return _read(message, ModelSpec)


def unit_to_proto(unit: Unit) -> model_pb2.Unit:
    message = model_pb2.Unit()
    _write(unit, message)
    return message


def unit_from_proto(message: model_pb2.Unit) -> Unit:
    return _read(message, Unit)


def file_to_proto(file: ModelFile) -> model_pb2.ModelFile:
    message = model_pb2.ModelFile()
    _write(file, message)
    return message


def file_from_proto(message: model_pb2.ModelFile) -> ModelFile:
    return _read(message, ModelFile)


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """A serialised Manifest of model.proto."""
    message = model_pb2.Manifest()
    _write(manifest, message)
    return message.SerializeToString(deterministic=True)


def manifest_from_bytes(data: bytes) -> Manifest:
    """The manifest of bytes that may come from anywhere."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptModelFile(f"the manifest has {len(data)} bytes; expected at most {MAX_MANIFEST_BYTES}")
    message = model_pb2.Manifest()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise CorruptModelFile(f"the manifest is no message: {str(error)[:120]}") from error
    return _read(message, Manifest)


def _write(value: Any, message: Any) -> None:
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        if held == field.default:
            continue
        if isinstance(held, tuple):
            _write_all(held, getattr(message, field.name))
        elif dataclasses.is_dataclass(held):
            part = getattr(message, _member(message, field.name, type(held).__name__))
            part.SetInParent()
            _write(held, part)
        else:
            setattr(message, field.name, held)


def _write_all(values: tuple[Any, ...], repeated: Any) -> None:
    for value in values:
        if dataclasses.is_dataclass(value):
            _write(value, repeated.add())
        else:
            repeated.append(value)


def _member(message: Message, name: str, kind: str) -> str:
    """The field of a part: of a oneof, the one whose message is this kind."""
    choices = message.DESCRIPTOR.oneofs_by_name.get(name)
    return name if choices is None else next(field.name for field in choices.fields if _kind_of(field) == kind)


def _kind_of(field: Any) -> str:
    return str(field.message_type.name)


def _read(message: Any, cls: type[T]) -> T:
    kind: Any = cls
    if len(UnknownFieldSet(message)):
        raise UnsupportedModel(f"the {cls.__name__} has fields that this version does not know; expected the same version on all machines")
    values = {name: _read_field(message, name, is_list) for name, is_list in _fields_of(kind).items() if _is_given(message, kind, name)}
    return cls(**values)


def _is_given(message: Any, cls: type, name: str) -> bool:
    """Whether there is something to read; what may be absent is at its default then."""
    choices = message.DESCRIPTOR.oneofs_by_name.get(name)
    is_given = message.WhichOneof(name) is not None if choices is not None else _is_set(message, name)
    if not is_given and name not in _defaults_of(cls):
        raise CorruptModelFile(f"the {cls.__name__} lacks its {name}")
    return is_given


def _is_set(message: Any, name: str) -> bool:
    return not message.DESCRIPTOR.fields_by_name[name].has_presence or message.HasField(name)


def _read_field(message: Any, name: str, is_list: bool) -> Any:
    choices = message.DESCRIPTOR.oneofs_by_name.get(name)
    held = getattr(message, name if choices is None else message.WhichOneof(name))
    if is_list:
        return tuple(_read_item(name, index, item) for index, item in enumerate(held))
    return _read_value(held)


def _read_item(name: str, index: int, item: Any) -> Any:
    try:
        return _read_value(item)
    except ModelFileError as error:
        raise type(error)(f"{name}[{index}]: {error}") from error


def _read_value(value: Any) -> Any:
    return _read(value, DESCRIPTIONS[value.DESCRIPTOR.name]) if isinstance(value, Message) else value


@cache
def _fields_of(cls: Any) -> Mapping[str, bool]:
    """By name, whether it is a list."""
    hints = get_type_hints(cls)
    return {field.name: get_origin(hints[field.name]) is tuple for field in dataclasses.fields(cls)}


@cache
def _defaults_of(cls: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING)
