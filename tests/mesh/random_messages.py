"""Messages of the protocol as hypothesis makes them from their descriptors: in range, and with one field that is out of it."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from dairllm.mesh.ranges.checks import rule_of
from dairllm.mesh.ranges.rules import Data, Name, Pairs, Real, Rule, Several, Text, Whole
from dairllm.v1 import cluster_pb2, inference_pb2, model_pb2, ring_pb2, shard_pb2, weights_pb2

MODULES = (model_pb2, ring_pb2, cluster_pb2, shard_pb2, weights_pb2, inference_pb2)
TYPES: list[Descriptor] = [message for module in MODULES for message in module.DESCRIPTOR.message_types_by_name.values()]
FEW = 3
F = FieldDescriptor
MOST = {F.CPPTYPE_UINT32: 2**32 - 1, F.CPPTYPE_UINT64: 2**64 - 1}
LONG = 2**17
"""Longer texts and lists than this are not made: what is allowed to be longer is allowed to be so long, too."""


def _entry_of(field: FieldDescriptor) -> dict[str, FieldDescriptor]:
    """Of a map: its `key` and `value`."""
    assert field.message_type is not None
    return dict(field.message_type.fields_by_name)


def owner_of(field: FieldDescriptor) -> Descriptor:
    assert field.containing_type is not None
    return field.containing_type


def within(rule: Rule, field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of one entry that the rule allows."""
    match rule:
        case Whole(most):
            return st.integers(0, min(most, MOST.get(field.cpp_type, most))) | st.just(most)
        case Real(low, high, is_sometimes_nan):
            width = 32 if field.cpp_type == F.CPPTYPE_FLOAT else 64
            numbers = st.floats(-100.0 if low < -100 else low, min(high, 100.0), width=64) | st.sampled_from([0.0])
            exact = numbers if width == 64 else st.sampled_from([max(low, 0.0), min(high, 1.0)])
            return exact | st.just(float("nan")) if is_sometimes_nan else exact
        case Text(most):
            return st.text(max_size=min(most, 20))
        case Name(most):
            return st.text(st.characters(categories=["L", "N"]), max_size=min(most, 20)) | st.just("x" * most)
        case Data(most):
            return st.binary(max_size=20 if most is None else min(most, 20))
    raise AssertionError(f"no values for {rule}")


def beyond(rule: Rule, field: FieldDescriptor) -> list[Any]:
    """Values of one entry that the field can hold and the rule does not allow."""
    match rule:
        case Whole(most):
            return [value for value in (most + 1, MOST[field.cpp_type]) if most < value <= MOST[field.cpp_type]]
        case Real(low, high, is_sometimes_nan):
            ends = [high + max(1.0, abs(high)), math.inf]
            if low > -math.inf:
                ends += [low - max(1.0, abs(low)), -math.inf]
            return ends if is_sometimes_nan else [*ends, float("nan")]
        case Text(most):
            return ["x" * (most + 1)] if most < LONG else []
        case Name(most):
            return ["x" * (most + 1), "a\nb", "\x1b[31m", "\x00", "a\u2028b"]
        case Data(most):
            return [bytes(most + 1)] if most is not None and most < LONG else []
    raise AssertionError(f"no values for {rule}")


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor) -> Message:
    """In range."""
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if draw(st.booleans()):
            put(message, field, draw(_contents(field)))
    return message


def _contents(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    rule = rule_of(field)
    if isinstance(rule, Pairs):
        entry = _entry_of(field)
        return st.dictionaries(within(rule.key, entry["key"]), within(rule.value, entry["value"]), max_size=FEW)
    if field.enum_type is not None:
        one: st.SearchStrategy[Any] = st.sampled_from(sorted(field.enum_type.values_by_number))
    elif field.message_type is not None:
        one = messages(field.message_type)
    elif rule is None:
        one = st.booleans()
    else:
        each = rule.each if isinstance(rule, Several) else rule
        assert each is not None
        one = within(each, field)
    return st.lists(one, max_size=FEW) if field.is_repeated else one


def put(message: Message, field: FieldDescriptor, value: Any) -> None:
    if isinstance(value, dict):
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


class Wrong(NamedTuple):
    """A field, and what it cannot hold."""

    field: FieldDescriptor
    value: Any

    def __str__(self) -> str:
        return f"{owner_of(self.field).name}.{self.field.name} = {str(self.value)[:20]!r}"


def wrong_values(kind: Descriptor) -> Iterator[Wrong]:
    """Of every field of this type all that there are."""
    for field in kind.fields:
        rule = rule_of(field)
        if field.enum_type is not None:
            yield Wrong(field, max(field.enum_type.values_by_number) + 1)
        elif isinstance(rule, Pairs):
            entry = _entry_of(field)
            yield from (Wrong(field, {key: 0.0}) for key in beyond(rule.key, entry["key"]))
            yield from (Wrong(field, {1: value}) for value in beyond(rule.value, entry["value"]))
        elif isinstance(rule, Several):
            yield from (Wrong(field, [value]) for value in (beyond(rule.each, field) if rule.each else []))
            if rule.most < LONG:
                yield Wrong(field, [_any_of(field, rule)] * (rule.most + 1))
        elif rule is not None:
            yield from (Wrong(field, value) for value in beyond(rule, field))


def _any_of(field: FieldDescriptor, rule: Several) -> Any:
    if field.message_type is not None:
        return GetMessageClass(field.message_type)()
    return {F.CPPTYPE_STRING: "", F.CPPTYPE_DOUBLE: 0.0}.get(field.cpp_type, 0)
