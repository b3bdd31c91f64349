"""What pydantic finds wrong with a body, in one sentence that names the field, its value and what was expected."""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from dairllm.coordinator.http.bodies.fields import HALF_CHARACTER, UNSUPPORTED
from dairllm.mesh.errors import InvalidRequest, Unsupported

SHOWN_CHARACTERS = 40
_KEY = "[key]"
"""pydantic's mark of an error in the key of an object."""
TAG_BEGIN = "<"
"""Names of the forms that a value may have begin so: they are in pydantic's paths, but not in the body."""


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


def body_error(error: ValidationError) -> InvalidRequest | Unsupported:
    """The first thing that is not supported, else the first that is wrong."""
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] == UNSUPPORTED), found[0])
    return _tell(first["loc"], first["type"], first["input"], first["msg"])


def _tell(location: Sequence[int | str], kind: str, value: object, words: str) -> InvalidRequest | Unsupported:
    if location[-1] == _KEY:
        name = _name(location[:-2])
        return InvalidRequest(f"{name} has the key {show(value)}; expected {words}", name)
    name = _name(location)
    if value is None and isinstance(location[-1], str):
        return InvalidRequest(f"{name} is missing; expected {words}", name)
    if kind == HALF_CHARACTER:
        return InvalidRequest(f"{name} has half a surrogate pair at character {words}; expected Unicode text", name)
    if kind == UNSUPPORTED:
        return Unsupported(f"{name} is {show(value)}, but it is not supported here; expected {words}", name)
    return refuse(name, value, words)


def _name(location: Sequence[int | str]) -> str:
    """messages[0].content for ("messages", 0, "content")."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if not _is_tag(part)]
    return "".join(parts).removeprefix(".")


def _is_tag(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith(TAG_BEGIN)
