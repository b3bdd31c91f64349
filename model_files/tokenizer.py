"""Text to token ids and back, from the vocabulary in a GGUF file.

Text is first cut at the special tokens that may be recognised, then each piece goes through the vocabulary's model: byte-level BPE
(`gpt2`, by the `tokenizers` library) or SentencePiece BPE (`llama`). Control tokens are kept out of that model, so that text can
never become a control token by merging: only `parse_special` makes one.
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import tokenizers
from tokenizers.models import BPE

from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.gguf_file import GgufFile
from dairllm.model_files.pretokenizers import find_word_rules, make_pre_tokenizer
from dairllm.model_files.sentencepiece_bpe import SPACE_MARK, SentencePieceBpe


class TokenKind(IntEnum):
    """`tokenizer.ggml.token_type` (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Tokens that end a turn in the chat formats of published models; files name only one of them as `eos_token_id`.
END_OF_GENERATION_TEXTS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<end_of_turn>",
        "<EOT>",
        "<｜end▁of▁sentence｜>",
    )
)
_HIDDEN_KINDS = frozenset((TokenKind.UNKNOWN, TokenKind.CONTROL))
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
MAX_TOKEN_BYTES = 65_536


class _TextModel(Protocol):
    """Ids of text without special tokens. `after_special`: it begins the text or follows a special token."""

    def encode(self, text: str, after_special: bool) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The token table of a file. `kinds` and `texts` by id."""

    texts: list[str]
    kinds: list[TokenKind]

    def ids_of_kind(self, *kinds: TokenKind) -> dict[str, int]:
        """Ids by text; of equal texts the lowest id."""
        found: dict[str, int] = {}
        for token_id, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)):
            if kind in kinds:
                found.setdefault(text, token_id)
        return found


class Tokenizer:
    """Encodes and decodes; made with `load_tokenizer`. Immutable, safe to use from several threads.

    `bos_id` and `eos_id` are None where the file names none; `end_of_generation_ids` are all tokens that end an answer.
    """

    def __init__(self, gguf: GgufFile) -> None:
        self._vocabulary = _read_vocabulary(gguf)
        self.vocab_size = len(self._vocabulary.texts)
        kind, pre = gguf.text("tokenizer.ggml.model"), gguf.text("tokenizer.ggml.pre", "default")
        self._text_model = _make_text_model(gguf, self._vocabulary, kind, pre)
        self._token_bytes = _spm_token_bytes(self._vocabulary) if kind == "llama" else _bpe_token_bytes(self._vocabulary)
        self.bos_id, self.eos_id = self._special_id(gguf, "bos"), self._special_id(gguf, "eos")
        self.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token", kind == "llama" or find_word_rules(pre).add_bos)
        self.add_eos = gguf.boolean("tokenizer.ggml.add_eos_token", False)
        self.end_of_generation_ids = self._find_end_of_generation_ids(gguf)
        self._parsed_always = self._vocabulary.ids_of_kind(TokenKind.USER_DEFINED)
        self._parsed_special = self._vocabulary.ids_of_kind(TokenKind.USER_DEFINED, TokenKind.CONTROL, TokenKind.UNKNOWN)
        self._pattern_always, self._pattern_special = _any_of(self._parsed_always), _any_of(self._parsed_special)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Ids of `text`. Lone surrogates, which are not characters, count as U+FFFD.

        `add_special` adds the begin and end tokens that the file asks for. `parse_special` turns the texts of control tokens into these
        tokens; without it they are ordinary text.
        """
        pattern, ids = self._patterns(parse_special)
        encoded = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        after_special = True
        for piece in pattern.split(_without_surrogates(text)) if ids else [_without_surrogates(text)]:
            token_id = ids.get(piece)
            if token_id is not None:
                encoded.append(token_id)
                after_special = True
            elif piece:
                encoded += self._text_model.encode(piece, after_special)
                after_special = False
        if add_special and self.add_eos and self.eos_id is not None:
            encoded.append(self.eos_id)
        return encoded

    def encode_prompt(self, rendered: str) -> list[int]:
        """Ids of a rendered chat template: special tokens parsed, the begin token added unless the template wrote it."""
        encoded = self.encode(rendered, add_special=False, parse_special=True)
        if self.add_bos and self.bos_id is not None and encoded[:1] != [self.bos_id]:
            return [self.bos_id, *encoded]
        return encoded

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """Text of the ids, nothing stripped; bytes that are not UTF-8 become U+FFFD. ValueError for an id outside the vocabulary."""
        return b"".join(self.shown_bytes(token_id, skip_special) for token_id in ids).decode(errors="replace")

    def token_text(self, token_id: int) -> bytes:
        """The bytes that a token stands for, maybe part of a character; of a control token its name. ValueError as `decode`."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary; expected 0 to {self.vocab_size - 1}")
        return self._token_bytes[token_id]

    def shown_bytes(self, token_id: int, skip_special: bool) -> bytes:
        """`token_text`, or nothing for a control token that is to be skipped."""
        data = self.token_text(token_id)
        return b"" if skip_special and self._vocabulary.kinds[token_id] in _HIDDEN_KINDS else data

    def special_text(self, token_id: int | None) -> str:
        """Text of a begin or end token for a chat template; empty for None."""
        return "" if token_id is None else self._vocabulary.texts[token_id]

    def _patterns(self, parse_special: bool) -> tuple[re.Pattern[str], dict[str, int]]:
        if parse_special:
            return self._pattern_special, self._parsed_special
        return self._pattern_always, self._parsed_always

    def _special_id(self, gguf: GgufFile, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in gguf.metadata:
            return None
        token_id = gguf.integer(key)
        if not 0 <= token_id < self.vocab_size:
            raise CorruptModelFile(f"{gguf.path} has {key} {token_id}; expected an id from 0 to {self.vocab_size - 1}")
        return token_id

    def _find_end_of_generation_ids(self, gguf: GgufFile) -> frozenset[int]:
        named = {self._special_id(gguf, name) for name in ("eos", "eot", "eom")}
        special = self._vocabulary.ids_of_kind(TokenKind.CONTROL, TokenKind.USER_DEFINED)
        return frozenset(token_id for token_id in named if token_id is not None) | {
            special[text] for text in END_OF_GENERATION_TEXTS if text in special
        }


class StreamDecoder:
    """Decodes token by token and never gives out half a character.

    What `push` and `flush` return, put together, is `decode` of all the ids. Bytes that cannot become a character any more come
    out as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, maybe none."""
        return self._decoder.decode(self._tokenizer.shown_bytes(token_id, self._skip_special))

    def flush(self) -> str:
        """What is left of an unfinished character; the decoder can be used again afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def load_tokenizer(gguf: GgufFile) -> Tokenizer:
    """The tokenizer of a file; UnsupportedModel if it has none or its kind is not known exactly, CorruptModelFile if it is damaged."""
    if "tokenizer.ggml.tokens" not in gguf.metadata:
        raise UnsupportedModel(f"{gguf.path.name} has no tokenizer; the model takes and gives token ids")
    return Tokenizer(gguf)


class _ByteLevelBpe:
    def __init__(self, gguf: GgufFile, vocabulary: Vocabulary, pre: str) -> None:
        rules = find_word_rules(pre)
        ids = vocabulary.ids_of_kind(TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED, TokenKind.BYTE)
        model = BPE(vocab=ids, merges=_merges_within(ids, gguf), ignore_merges=rules.whole_words)
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = make_pre_tokenizer(rules)

    def encode(self, text: str, after_special: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class _SentencePiece:
    def __init__(self, gguf: GgufFile, vocabulary: Vocabulary) -> None:
        scores = gguf.array("tokenizer.ggml.scores")
        if scores is None or len(scores) != len(vocabulary.texts):
            raise CorruptModelFile(f"{gguf.path} needs one score per token in tokenizer.ggml.scores, {len(vocabulary.texts)} of them")
        bytes_by_text = vocabulary.ids_of_kind(TokenKind.BYTE)
        byte_ids = [bytes_by_text.get(f"<0x{byte:02X}>") for byte in range(256)]
        if None in byte_ids:
            raise UnsupportedModel(f"{gguf.path} has a SentencePiece vocabulary without all 256 byte tokens, which is not supported")
        pieces = vocabulary.ids_of_kind(TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED)
        self._bpe = SentencePieceBpe(pieces, scores.astype(float).tolist(), [byte_id for byte_id in byte_ids if byte_id is not None])
        self._add_space = gguf.boolean("tokenizer.ggml.add_space_prefix", True)

    def encode(self, text: str, after_special: bool) -> list[int]:
        prefix = " " if self._add_space and after_special else ""
        return self._bpe.encode((prefix + text).replace(" ", SPACE_MARK))


def _make_text_model(gguf: GgufFile, vocabulary: Vocabulary, kind: str, pre: str) -> _TextModel:
    if kind == "gpt2":
        return _ByteLevelBpe(gguf, vocabulary, pre)
    if kind == "llama":
        return _SentencePiece(gguf, vocabulary)
    raise UnsupportedModel(f"tokenizer model {kind[:60]!r} is not supported; expected 'gpt2' or 'llama'")


def _read_vocabulary(gguf: GgufFile) -> Vocabulary:
    texts = gguf.texts("tokenizer.ggml.tokens")
    numbers = gguf.array("tokenizer.ggml.token_type")
    kinds = [TokenKind.NORMAL] * len(texts) if numbers is None else _token_kinds(gguf, numbers.tolist())
    if not texts or len(kinds) != len(texts):
        raise CorruptModelFile(f"{gguf.path} has {len(texts)} tokens and {len(kinds)} token types; expected as many, and at least one")
    if max(map(len, texts)) > MAX_TOKEN_BYTES:
        raise CorruptModelFile(f"{gguf.path} has a token of {max(map(len, texts))} characters; expected at most {MAX_TOKEN_BYTES}")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and len(texts) > embedding.dimensions[-1]:
        raise CorruptModelFile(f"{gguf.path} has {len(texts)} tokens, but token_embd.weight has only {embedding.dimensions[-1]} rows")
    return Vocabulary(texts, kinds)


def _token_kinds(gguf: GgufFile, numbers: Sequence[int]) -> list[TokenKind]:
    by_number = {int(kind): kind for kind in TokenKind}
    unknown = set(numbers) - by_number.keys()
    if unknown:
        raise CorruptModelFile(f"{gguf.path} has the token type {min(unknown)}; expected 1 to 6")
    return [by_number[number] for number in numbers]


def _merges_within(ids: dict[str, int], gguf: GgufFile) -> list[tuple[str, str]]:
    """Merges as pairs, without those that involve a control token: text must not become one."""
    control = {text for text in gguf.texts("tokenizer.ggml.tokens") if text not in ids}
    merges: list[tuple[str, str]] = []
    for merge in gguf.texts("tokenizer.ggml.merges"):
        # From 1: the left part may itself be a space in vocabularies that are not byte level at heart.
        cut = merge.find(" ", 1)
        if cut < 1:
            raise CorruptModelFile(f"{gguf.path} has the merge {merge[:60]!r}; expected two parts with a space between them")
        left, right = merge[:cut], merge[cut + 1 :]
        if left in ids and right in ids and left + right in ids:
            merges.append((left, right))
        elif not {left, right, left + right} & control:
            raise CorruptModelFile(f"{gguf.path} has the merge {merge[:60]!r}, whose parts or result are not tokens")
    return merges


def _byte_of_character() -> dict[str, int]:
    """GPT-2's mapping of bytes to printable characters (openai/gpt-2, encoder.py), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _bpe_token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    byte_of = _byte_of_character()

    def token_bytes(text: str, kind: TokenKind) -> bytes:
        if kind is not TokenKind.NORMAL or not all(character in byte_of for character in text):
            return text.encode()
        return bytes(byte_of[character] for character in text)

    return [token_bytes(text, kind) for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True)]


def _spm_token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    def token_bytes(text: str, kind: TokenKind) -> bytes:
        if kind is TokenKind.BYTE and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return text.encode() if kind in _HIDDEN_KINDS else text.replace(SPACE_MARK, " ").encode()

    return [token_bytes(text, kind) for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True)]


def _any_of(ids: dict[str, int]) -> re.Pattern[str]:
    """Matches, and keeps when splitting, any of the texts, the longest first."""
    return re.compile("(" + "|".join(re.escape(text) for text in sorted(ids, key=len, reverse=True) if text) + ")")


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
