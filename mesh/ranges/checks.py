"""Messages against the rules of their fields.

The rules of a type are compiled once, into one expression over a message: what is in range, as nearly all is, costs microseconds.
If something is not, the field is looked for afterwards.
"""

from collections.abc import Callable, Mapping
from functools import cache
from keyword import iskeyword
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from dairllm.mesh.ranges.rules import Rule
from dairllm.mesh.ranges.table import RULES

PACKAGE = "dairllm.v1"
_MOST_SHOWN = 60
_WITHOUT_RULE = (FieldDescriptor.CPPTYPE_BOOL, FieldDescriptor.CPPTYPE_ENUM, FieldDescriptor.CPPTYPE_MESSAGE)

IsInRange: TypeAlias = Callable[[Any], bool]
"""Of a message, or of what stands in one of its fields."""


class OutOfRange(NamedTuple):
    """field: its name within its message. words: one sentence that names it, its value and what was expected."""

    field: str
    words: str


def out_of_range(message: Message) -> OutOfRange | None:
    """The first field that is out of its range, also of messages within; None if there is none, as in messages of other protocols."""
    return None if is_in_range(message.DESCRIPTOR)(message) else _complaint(message)


def rule_of(field: FieldDescriptor) -> Rule | None:
    """None for flags, enums and single messages. KeyError if the table has no row for a field that needs one."""
    rows = RULES.get(_owner_of(field), {})
    if field.name in rows or field.is_repeated or field.cpp_type not in _WITHOUT_RULE:
        return rows[field.name]
    return None


def _owner_of(field: FieldDescriptor) -> str:
    """The name of its message."""
    return str(field.full_name).split(".")[-2]


@cache
def is_in_range(message: Descriptor) -> IsInRange:
    """Messages do not hold themselves, not even indirectly: so what comes in is as deep as its description."""
    if message.file.package != PACKAGE:
        return lambda message: True
    names: dict[str, Any] = {}
    conditions = [_condition(field, _reading(field), names) for field in message.fields]
    return _compiled("m", " and ".join(condition for condition in conditions if condition != "True") or "True", names)


def _reading(field: FieldDescriptor) -> str:
    return f"getattr(m, {field.name!r})" if iskeyword(field.name) else f"m.{field.name}"


def _condition(field: FieldDescriptor, value: str, names: dict[str, Any]) -> str:
    """names: what the expression needs besides the message."""
    rule = rule_of(field)
    condition = "True" if rule is None else rule.condition(value)
    if field.enum_type is not None:
        names[f"known_{field.name}"] = _numbers_of(field.enum_type)
        return f"{value} in known_{field.name}"
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return condition
    names[f"is_{field.name}"] = is_in_range(field.message_type)
    if rule is not None:
        return f"(not (all_of := {value}) or ({rule.condition('all_of')} and all(map(is_{field.name}, all_of))))"
    return f"(not m.HasField({field.name!r}) or is_{field.name}({value}))"


def _compiled(argument: str, expression: str, names: Mapping[str, Any]) -> IsInRange:
    """The expression is made of the table and of descriptions, never of what came in."""
    function: IsInRange = eval(f"lambda {argument}: {expression}", dict(names))
    return function


def _numbers_of(enum: EnumDescriptor) -> frozenset[int]:
    return frozenset(enum.values_by_number)


# What is wrong


def _complaint(message: Message) -> OutOfRange:
    for field, value in message.ListFields():
        if not _is_field_in_range(field, value):
            within = [] if field.message_type is None else list(value) if field.is_repeated else [value]
            wrong = next((one for one in within if isinstance(one, Message) and not is_in_range(one.DESCRIPTOR)(one)), None)
            return _complaint(wrong) if wrong is not None else _words_on(field, value)
    raise AssertionError("some field is out of its range")


def _is_field_in_range(field: FieldDescriptor, value: Any) -> bool:
    if field.message_type is not None and not field.is_repeated:
        return is_in_range(field.message_type)(value)
    names: dict[str, Any] = {}
    return _compiled("value", _condition(field, "value", names), names)(value)


def _words_on(field: FieldDescriptor, value: Any) -> OutOfRange:
    rule = rule_of(field)
    expected = f"one of the values of {field.enum_type.name}" if field.enum_type else rule.expected if rule else "something else"
    return OutOfRange(field.name, f"{_owner_of(field)}.{field.name} is {_shown(value)}; expected {expected}")


def _shown(value: Any) -> str:
    """Of a stranger's value as much as fits into a sentence."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes long"
    if isinstance(value, str):
        return f"{value[:_MOST_SHOWN]!a} ({len(value)} characters)" if len(value) > _MOST_SHOWN else ascii(value)
    if isinstance(value, int | float):
        return repr(value)
    begin = str(dict(value) if hasattr(value, "items") else list(value[:_MOST_SHOWN]))
    return f"{begin[:_MOST_SHOWN]!a} ({len(value)} entries)"
