"""The token table of a GGUF file: texts and kinds."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from dairllm.model_files.containers import Container
from dairllm.model_files.control_texts import CONTROL_TEXTS
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


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`kinds` and `texts` by id. retyped: texts that count as control tokens although the file types them otherwise."""

    texts: list[str]
    kinds: list[TokenKind]
    retyped: tuple[str, ...] = ()

    def ids_of_kind(self, *kinds: TokenKind) -> dict[str, int]:
        """Ids by text; of equal texts the lowest id."""
        found: dict[str, int] = {}
        for token_id, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)):
            if kind in kinds:
                found.setdefault(text, token_id)
        return found


def read_vocabulary(gguf: Container) -> Vocabulary:
    """CorruptModelFile if the table is damaged."""
    texts = gguf.texts("tokenizer.ggml.tokens")
    numbers = gguf.array("tokenizer.ggml.token_type")
    kinds = [TokenKind.NORMAL] * len(texts) if numbers is None else _token_kinds(gguf, numbers.tolist())
    if not texts or len(kinds) != len(texts):
        raise CorruptModelFile(f"{gguf.path} has {len(texts)} tokens and {len(kinds)} token types; expected as many, and at least one")
    if max(map(len, texts)) > MAX_TOKEN_BYTES:
        raise CorruptModelFile(f"{gguf.path} has a token of {max(map(len, texts))} characters; expected at most {MAX_TOKEN_BYTES}")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and len(texts) > embedding.shape[0]:
        raise CorruptModelFile(f"{gguf.path} has {len(texts)} tokens, but token_embd.weight has only {embedding.shape[0]} rows")
    mistyped = _mistyped_ids(gguf, texts, kinds)
    for token_id in mistyped:
        kinds[token_id] = TokenKind.CONTROL
    return Vocabulary(texts, kinds, tuple(texts[token_id] for token_id in mistyped))


def _token_kinds(gguf: Container, numbers: Sequence[int]) -> list[TokenKind]:
    by_number = {int(kind): kind for kind in TokenKind}
    unknown = set(numbers) - by_number.keys()
    if unknown:
        raise CorruptModelFile(f"{gguf.path} has the token type {min(unknown)}; expected 1 to 6")
    return [by_number[number] for number in numbers]


def _mistyped_ids(gguf: Container, texts: Sequence[str], kinds: Sequence[TokenKind]) -> list[int]:
    """Control tokens that the file types as text. What merges make out of letters is text: the strike-through tags of HTML, say."""
    ids = [
        index for index, text in enumerate(texts) if text in CONTROL_TEXTS and kinds[index] not in (TokenKind.CONTROL, TokenKind.UNKNOWN)
    ]
    if not ids:
        return []
    merged = {merge.replace(" ", "", 1) for merge in gguf.texts("tokenizer.ggml.merges", [])}
    return [token_id for token_id in ids if texts[token_id] not in merged]
