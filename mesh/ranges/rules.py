"""What a range can be. Each rule says of a value whether it is within, and in words what is."""

import math
from dataclasses import dataclass
from typing import Protocol


class Rule(Protocol):
    @property
    def expected(self) -> str:
        """What is in range, as the end of 'expected …'."""
        ...

    def condition(self, value: str) -> str:
        """A Python expression that is true of what is in range. value: an expression that costs something: it stands there once."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from 0 to `most`."""

    most: int

    @property
    def expected(self) -> str:
        return f"a whole number up to {self.most}"

    def condition(self, value: str) -> str:
        return f"{value} <= {self.most}"


ANY_32 = Whole(2**32 - 1)


@dataclass(frozen=True, slots=True)
class Real:
    """A number in [low, high]. is_sometimes_nan: NaN says that there is none."""

    low: float
    high: float
    is_sometimes_nan: bool = False

    @property
    def expected(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"

    def condition(self, value: str) -> str:
        lowest = "" if self.low == -math.inf else f"{self.low} <= "
        within = f"{lowest}(v := {value}) <= {self.high}"
        return f"({within} or v != v)" if self.is_sometimes_nan else within


@dataclass(frozen=True, slots=True)
class Text:
    """At most `most` characters, of any kind."""

    most: int

    @property
    def expected(self) -> str:
        return f"at most {self.most} characters"

    def condition(self, value: str) -> str:
        return f"len({value}) <= {self.most}"


@dataclass(frozen=True, slots=True)
class Name:
    """At most `most` printable characters: no line breaks, no escape sequences."""

    most: int

    @property
    def expected(self) -> str:
        return f"at most {self.most} printable characters"

    def condition(self, value: str) -> str:
        return f"len(v := {value}) <= {self.most} and v.isprintable()"


@dataclass(frozen=True, slots=True)
class Data:
    """At most `most` bytes; None: whatever fits into a message, which costs nothing to check."""

    most: int | None

    @property
    def expected(self) -> str:
        return f"at most {self.most} bytes"

    def condition(self, value: str) -> str:
        return "True" if self.most is None else f"len({value}) <= {self.most}"


@dataclass(frozen=True, slots=True)
class Several:
    """At most `most` of what the rule allows; messages have rules of their own."""

    most: int
    each: Rule | None = None

    @property
    def expected(self) -> str:
        return f"at most {self.most} entries" + (f", each of them {self.each.expected}" if self.each else "")

    def condition(self, value: str) -> str:
        if self.each is None or self.each == ANY_32:
            return f"len({value}) <= {self.most}"
        each = self.each.condition("max(v)") if isinstance(self.each, Whole) else f"all({self.each.condition('one')} for one in v)"
        return f"(not (v := {value}) or (len(v) <= {self.most} and {each}))"


@dataclass(frozen=True, slots=True)
class Pairs:
    """A mapping of at most `most` keys."""

    most: int
    key: Rule
    value: Rule

    @property
    def expected(self) -> str:
        return f"at most {self.most} entries, the keys {self.key.expected}, the values {self.value.expected}"

    def condition(self, value: str) -> str:
        each = f"{self.key.condition('key')} and {self.value.condition('one')}"
        return f"(not (v := {value}) or (len(v) <= {self.most} and all({each} for key, one in v.items())))"
