"""What a tokenizer's text model is given: stretches of text, and where they stand between special tokens."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol


class TextPlace(IntEnum):
    """BEGIN: of the whole text. BEHIND_SPECIAL: right behind a special token. WITHIN: behind other text, where it was only cut."""

    BEGIN = 0
    BEHIND_SPECIAL = 1
    WITHIN = 2


class TextPiece(NamedTuple):
    text: str
    place: TextPlace


class TextModel(Protocol):
    """Ids of text without special tokens, piece after piece, found without the GIL. UnencodableText."""

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]: ...
