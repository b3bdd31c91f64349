"""The token table of a model: texts and kinds."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from dairllm.model_files.control_texts import CONTROL_TEXTS, END_OF_GENERATION_TEXTS, MESSAGE_TEXTS, NO_END_BESIDE
from dairllm.model_files.errors import CorruptModelFile

MAX_TOKEN_BYTES = 65_536


class TokenKind(IntEnum):
    """`tokenizer.ggml.token_type` (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


CONTROL_KINDS = frozenset((TokenKind.UNKNOWN, TokenKind.CONTROL))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`kinds` and `texts` by id. retyped: texts that count as control tokens although the file types them otherwise."""

    texts: Sequence[str]
    kinds: Sequence[TokenKind]
    retyped: tuple[str, ...] = ()

    def ids_of_kind(self, *kinds: TokenKind) -> dict[str, int]:
        """Ids by text; of equal texts the lowest id."""
        found: dict[str, int] = {}
        for token_id, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)):
            if kind in kinds:
                found.setdefault(text, token_id)
        return found

    def ends_of_generation(self, named: Iterable[int | None]) -> frozenset[int]:
        """The tokens that end an answer: those that the file names, and those that do in the formats of published models."""
        special = self.ids_of_kind(TokenKind.CONTROL, TokenKind.USER_DEFINED)
        ends = {text for text in END_OF_GENERATION_TEXTS if text in special}
        ends -= {text for text, others in NO_END_BESIDE.items() if others <= special.keys()}
        return frozenset(token_id for token_id in named if token_id is not None) | {special[text] for text in ends}

    def shown_texts(self) -> frozenset[str]:
        """Control tokens without which an answer could not be read: they stand between the messages that it consists of."""
        return MESSAGE_TEXTS if NO_END_BESIDE["<|end|>"] <= self.ids_of_kind(TokenKind.CONTROL).keys() else frozenset()


def checked_vocabulary(name: object, texts: Sequence[str], kinds: list[TokenKind], merged: Collection[str]) -> Vocabulary:
    """name: of the file, for errors. merged: what merges make. CorruptModelFile if the table is damaged."""
    if not texts or len(kinds) != len(texts):
        raise CorruptModelFile(f"{name} has {len(texts)} tokens and {len(kinds)} token types; expected as many, and at least one")
    if max(map(len, texts)) > MAX_TOKEN_BYTES:
        raise CorruptModelFile(f"{name} has a token of {max(map(len, texts))} characters; expected at most {MAX_TOKEN_BYTES}")
    mistyped = [
        token_id
        for token_id, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        # What merges make out of letters is text: the strike-through tags of HTML, say.
        if text in CONTROL_TEXTS and kind not in CONTROL_KINDS and text not in merged
    ]
    for token_id in mistyped:
        kinds[token_id] = TokenKind.CONTROL
    return Vocabulary(texts, kinds, tuple(texts[token_id] for token_id in mistyped))
