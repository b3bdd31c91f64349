"""Typed reading of a JSON object: whatever is wrong is told in one sentence that names the field, its value and what was expected.

null counts as absent everywhere, as in OpenAI's API. Unknown fields are ignored.
"""

import json
import math
from collections.abc import Mapping, Sequence

from dairllm.mesh.errors import InvalidRequest

SHOWN_CHARACTERS = 40


def show(value: object) -> str:
    """A value as a message shows it: JSON, shortened."""
    match value:
        case str():
            shown = value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…"
            return json.dumps(shown, ensure_ascii=True)
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case bool() | None:
            return json.dumps(value)
        case _:
            text = str(value)
            return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def refuse(name: str, value: object, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is {show(value)}; expected {expected}", name)


def parse_json_object(data: bytes) -> "Fields":
    """The body of a request; InvalidRequest unless it is a JSON object in UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body has an invalid byte at offset {error.start}; expected JSON in UTF-8") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}; expected a JSON object") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply; expected a JSON object") from error
    except ValueError as error:  # a number of thousands of digits
        raise InvalidRequest("the body has a number that is too long; expected a JSON object") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is {show(value)}; expected a JSON object")
    return Fields(value)


def _refuse_constant(name: str) -> object:
    raise InvalidRequest(f"the body has {name}, which is not JSON; expected a number")


def as_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise refuse(name, value, "a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} has half a surrogate pair at character {error.start}; expected Unicode text", name) from error
    return value


def as_whole_number(name: str, value: object, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise refuse(name, value, f"a whole number from {lowest} to {highest}")
    return value


def as_number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise refuse(name, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise refuse(name, value, "a finite number")
    return number


def as_list(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise refuse(name, value, "a list")
    return value


class Fields:
    """A JSON object. `path` is put before the names in messages."""

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self._values = values
        self._path = path

    def name(self, field: str) -> str:
        return f"{self._path}{field}"

    def get(self, field: str) -> object:
        return self._values.get(field)

    def is_set(self, field: str) -> bool:
        return self._values.get(field) is not None

    def require(self, field: str, expected: str) -> object:
        value = self.get(field)
        if value is None:
            raise InvalidRequest(f"{self.name(field)} is missing; expected {expected}", self.name(field))
        return value

    def text(self, field: str) -> str | None:
        value = self.get(field)
        return None if value is None else as_text(self.name(field), value)

    def flag(self, field: str) -> bool:
        """false if absent."""
        value = self.get(field)
        if value is not None and not isinstance(value, bool):
            raise refuse(self.name(field), value, "true or false")
        return bool(value)

    def whole_number(self, field: str, lowest: int, highest: int) -> int | None:
        value = self.get(field)
        return None if value is None else as_whole_number(self.name(field), value, lowest, highest)

    def number(self, field: str, default: float) -> float:
        value = self.get(field)
        return default if value is None else as_number(self.name(field), value)

    def nested(self, field: str) -> "Fields":
        """An empty one if absent."""
        value = self.get(field)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise refuse(self.name(field), value, "an object")
        return Fields(value, f"{self.name(field)}.")

    def items(self) -> Sequence[tuple[str, object]]:
        return list(self._values.items())
