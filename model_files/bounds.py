"""Ranges of the fields of a description, checked whenever one is made: from a file, from a message, in code.

A field names its range where it stands (`within`, `one_of`, `text`), and `check_fields` applies them all.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, get_args, get_type_hints

from dairllm.model_files.errors import CorruptModelFile

MAX_NAME_CHARACTERS = 256
_RANGE = "range"
_SHOWN_CHARACTERS = 60


class Range(NamedTuple):
    lowest: float
    highest: float

    def describe(self, kind: type) -> str:
        noun = "an integer" if kind is int else "a number"
        return f"{noun} from {self.lowest:g} to {self.highest:g}" if kind is float else f"{noun} from {self.lowest} to {self.highest}"


class Choice(NamedTuple):
    names: tuple[str, ...]


class Length(NamedTuple):
    """Of a text, in characters."""

    lowest: int
    highest: int


def within(lowest: float, highest: float, **default: Any) -> Any:
    """A field of int or float, as its type says, both ends included. None passes where the type allows it."""
    return dataclasses.field(metadata={_RANGE: Range(lowest, highest)}, **default)


def one_of(*names: str, **default: Any) -> Any:
    """A field that names a kind."""
    return dataclasses.field(metadata={_RANGE: Choice(names)}, **default)


def text(lowest: int = 1, highest: int = MAX_NAME_CHARACTERS) -> Any:
    return dataclasses.field(metadata={_RANGE: Length(lowest, highest)})


def check_fields(value: Any) -> None:
    """Raise CorruptModelFile, in one sentence, unless every field with a range, and every bool, is what its declaration says."""
    cls: Any = type(value)
    for name, check in _checks_of(cls).items():
        check.require(name, getattr(value, name))


def types_of(cls: type) -> Mapping[str, tuple[Any, ...]]:
    """The types that each field of a dataclass may have: several of a union."""
    return {name: get_args(hint) if _is_union(hint) else (hint,) for name, hint in get_type_hints(cls).items()}


class _Check(NamedTuple):
    types: tuple[Any, ...]
    range: Range | Choice | Length | None

    def require(self, name: str, value: object) -> None:
        if value is None and type(None) in self.types:
            return
        kind = self.types[0]
        match self.range:
            case Range(lowest, highest):
                if not isinstance(value, (int, float)) or type(value) is not kind or not lowest <= value <= highest:
                    raise CorruptModelFile(f"{name} is {_shown(value)}; expected {self.range.describe(kind)}")
            case Choice(names):
                if value not in names:
                    raise CorruptModelFile(f"{name} is {_shown(value)}; expected one of {', '.join(names)}")
            case Length(shortest, longest):
                if not isinstance(value, str) or not shortest <= len(value) <= longest:
                    raise CorruptModelFile(f"{name} is {_shown(value)}; expected {shortest} to {longest} characters")
            case None:
                if type(value) is not bool:
                    raise CorruptModelFile(f"{name} is {_shown(value)}; expected true or false")


@cache
def _checks_of(cls: Any) -> Mapping[str, _Check]:
    types = types_of(cls)
    checks = {field.name: _Check(types[field.name], field.metadata.get(_RANGE)) for field in dataclasses.fields(cls)}
    return {name: check for name, check in checks.items() if check.range is not None or check.types == (bool,)}


def _is_union(hint: object) -> bool:
    return type(None) in get_args(hint) or (bool(get_args(hint)) and all(isinstance(arg, type) for arg in get_args(hint)))


def _shown(value: object) -> str:
    return repr(value)[:_SHOWN_CHARACTERS]
