"""Text that comes from elsewhere, fit for people's eyes: names and reasons of other machines, paths, answers of a model.

On a terminal it must not act: control characters, which begin escape sequences, are shown as `\\x1b`; bytes that are no UTF-8, which Python
keeps in paths and host names as lone surrogates, as `\\xff`.
"""

import re
from typing import TypeVar

from google.protobuf.message import Message

AnyMessage = TypeVar("AnyMessage", bound=Message)

_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FIRST_BYTE, _LAST_BYTE, _BYTES_FROM = "\udc80", "\udcff", 0xDC00


def on_one_line(text: str) -> str:
    """Nothing but printable characters: also no line ends, and none that change the direction or the width of what follows."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def on_lines(text: str) -> str:
    """Running text: line ends and tabs stay, and all that is no control character."""
    return _ACTING.sub(lambda found: _escaped(found[0]), text)


def message_on_one_line(message: AnyMessage) -> AnyMessage:
    """A copy with all its texts, and those of the messages within, as `on_one_line` gives them."""
    copy = type(message)()
    copy.CopyFrom(message)
    _clean(copy)
    return copy


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8, as all that is sent."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def escaped_for(error: UnicodeError) -> tuple[str, int]:
    """Error handler of `codecs`: what a terminal's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c) or _escaped(c) for c in error.object[error.start : error.end]), error.end


_PLAIN = {"·": "|", "…": "...", "–": "-", "×": "x", "↔": "<->", "→": "->"}
"""What our own sentences use."""


def _escaped(character: str) -> str:
    if _FIRST_BYTE <= character <= _LAST_BYTE:
        return f"\\x{ord(character) - _BYTES_FROM:02x}"
    return character.encode("unicode_escape").decode()


def _clean(message: Message) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                _clean(inner)
        elif field.type == field.TYPE_STRING and field.is_repeated:
            value[:] = [on_one_line(text) for text in value]
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, on_one_line(value))
