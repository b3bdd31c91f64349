"""Text to token ids and back, from the vocabulary in a GGUF file.

Text is first cut at the special tokens that may be recognised, then each piece goes through the vocabulary's model: byte-level BPE
(`gpt2`) or SentencePiece BPE (`llama`). Control tokens are kept out of that model, so that text can
never become a control token by merging: only `parse_special` makes one.
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from dairllm.model_files.byte_level_bpe import ByteLevelBpe
from dairllm.model_files.containers import Container
from dairllm.model_files.control_texts import END_OF_GENERATION_TEXTS
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.pretokenizers import find_word_rules
from dairllm.model_files.sentencepiece_bpe import SPACE_MARK, read_sentencepiece
from dairllm.model_files.special_texts import SpecialTexts
from dairllm.model_files.text_cuts import TextCuts
from dairllm.model_files.vocabulary import TokenKind, Vocabulary, read_vocabulary

_HIDDEN_KINDS = frozenset((TokenKind.UNKNOWN, TokenKind.CONTROL))
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
STEP_CHARACTERS = 64 << 10


class _TextModel(Protocol):
    """Ids of text without special tokens, piece after piece, found without the GIL. prefix: belongs before each stretch of such text."""

    prefix: str

    def encode(self, pieces: Sequence[str]) -> list[int]: ...


class _Recognised:
    """The special tokens that text is cut at."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids
        self.texts = SpecialTexts(ids)


class Tokenizer:
    """Encodes and decodes; made with `load_tokenizer`. Immutable, safe to use from several threads.

    `bos_id` and `eos_id` are None where the file names none; `end_of_generation_ids` are all tokens that end an answer;
    `longest_token_bytes` bounds what one token can stand for. doubts: what is odd about the file, as sentences.
    """

    def __init__(self, gguf: Container) -> None:
        self._vocabulary = vocabulary = read_vocabulary(gguf)
        self.vocab_size = len(vocabulary.texts)
        kind, pre = gguf.text("tokenizer.ggml.model"), gguf.text("tokenizer.ggml.pre", "default")
        self._text_model = _make_text_model(gguf, vocabulary, kind, pre)
        self._cuts = TextCuts(text.replace(SPACE_MARK, " ") for text in (vocabulary.texts if kind == "llama" else ()))
        self._token_bytes = _spm_token_bytes(vocabulary) if kind == "llama" else _bpe_token_bytes(vocabulary)
        self.longest_token_bytes = max(map(len, self._token_bytes))
        self.bos_id, self.eos_id = self._special_id(gguf, "bos"), self._special_id(gguf, "eos")
        self.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token", kind == "llama" or find_word_rules(pre).add_bos)
        self.add_eos = gguf.boolean("tokenizer.ggml.add_eos_token", False)
        self.end_of_generation_ids = self._find_end_of_generation_ids(gguf)
        self._always = _Recognised(vocabulary.ids_of_kind(TokenKind.USER_DEFINED))
        self._special = _Recognised(vocabulary.ids_of_kind(TokenKind.USER_DEFINED, TokenKind.CONTROL, TokenKind.UNKNOWN))
        self.doubts = tuple(_doubts(gguf, vocabulary, kind))

    @property
    def control_texts(self) -> frozenset[str]:
        """Texts that must not become tokens when a client writes them into a message."""
        return self._special.texts.texts - self._always.texts.texts

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Ids of `text`. Lone surrogates, which are not characters, count as U+FFFD. TextTooLong: see `text_cuts`.

        `add_special` adds the begin and end tokens that the file asks for, the begin token unless the text begins with it. `parse_special`
        turns the texts of control tokens into these tokens; without it they are ordinary text.
        """
        return [token_id for ids in self.encode_in_steps(text, add_special=add_special, parse_special=parse_special) for token_id in ids]

    def encode_in_steps(self, text: str, *, add_special: bool, parse_special: bool) -> Iterator[list[int]]:
        """`encode`, of about STEP_CHARACTERS at a time: memory grows with the ids only, and who has had enough of them stops."""
        return self._encode(_without_surrogates(text), self._special if parse_special else self._always, add_special, add_special)

    def encode_prompt(self, rendered: str) -> list[int]:
        """Ids of what a chat template rendered with marks: special tokens parsed, the begin token added unless the template wrote it."""
        return [token_id for ids in self.encode_prompt_in_steps(rendered) for token_id in ids]

    def encode_prompt_in_steps(self, rendered: str) -> Iterator[list[int]]:
        """`encode_prompt`, as `encode_in_steps`."""
        return self._encode(rendered, self._special, add_bos=True, add_eos=False)

    def _encode(self, text: str, recognised: _Recognised, add_bos: bool, add_eos: bool) -> Iterator[list[int]]:
        steps = self._encode_pieces(recognised.texts.split(text), recognised.ids)
        first = next(steps, [])
        begin = [self.bos_id] if add_bos and self.add_bos and self.bos_id is not None else []
        yield first if first[:1] == begin else [*begin, *first]
        yield from steps
        if add_eos and self.add_eos and self.eos_id is not None:
            yield [self.eos_id]

    def _encode_pieces(self, pieces: Iterable[str], special_ids: dict[str, int]) -> Iterator[list[int]]:
        """pieces: plain ones and special texts by turns."""
        step = _Step(self._text_model)
        for index, piece in enumerate(pieces):
            if index % 2:
                step.add_special(special_ids[piece])
            elif piece:
                for part in self._cuts.pieces(self._text_model.prefix + _without_surrogates(piece)):
                    step.add_text(part)
                    if step.is_full:
                        yield step.take()
            if step.is_full:
                yield step.take()
        yield step.take()

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

    def _special_id(self, gguf: Container, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in gguf.metadata:
            return None
        token_id = gguf.integer(key)
        if not 0 <= token_id < self.vocab_size:
            raise CorruptModelFile(f"{gguf.path} has {key} {token_id}; expected an id from 0 to {self.vocab_size - 1}")
        return token_id

    def _find_end_of_generation_ids(self, gguf: Container) -> frozenset[int]:
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


def load_tokenizer(gguf: Container) -> Tokenizer:
    """The tokenizer of a file; UnsupportedModel if it has none or its kind is not known exactly, CorruptModelFile if it is damaged."""
    if "tokenizer.ggml.tokens" not in gguf.metadata:
        raise UnsupportedModel(f"{gguf.path.name} has no tokenizer; the model takes and gives token ids")
    return Tokenizer(gguf)


class _Step:
    """Collects what is encoded together."""

    def __init__(self, model: _TextModel) -> None:
        self._model = model
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._size = 0

    def add_text(self, piece: str) -> None:
        self._pieces.append(piece)
        self._size += len(piece)

    def add_special(self, token_id: int) -> None:
        self._encode()
        self._ids.append(token_id)
        self._size += 1

    @property
    def is_full(self) -> bool:
        return self._size >= STEP_CHARACTERS

    def take(self) -> list[int]:
        self._encode()
        ids, self._ids, self._size = self._ids, [], 0
        return ids

    def _encode(self) -> None:
        if self._pieces:
            self._ids += self._model.encode(self._pieces)
            self._pieces = []


def _make_text_model(gguf: Container, vocabulary: Vocabulary, kind: str, pre: str) -> _TextModel:
    if kind == "gpt2":
        return ByteLevelBpe(gguf, vocabulary, pre)
    if kind == "llama":
        return read_sentencepiece(gguf, vocabulary)
    raise UnsupportedModel(f"tokenizer model {kind[:60]!r} is not supported; expected 'gpt2' or 'llama'")


def _doubts(gguf: Container, vocabulary: Vocabulary, kind: str) -> Iterator[str]:
    if vocabulary.retyped:
        texts = ", ".join(sorted(set(vocabulary.retyped)))
        yield f"{gguf.path.name} types {texts} as ordinary text; control tokens in the chat formats of published models, they count as such"
    if kind == "gpt2" and "tokenizer.ggml.pre" not in gguf.metadata:
        yield f"{gguf.path.name} does not name its pre-tokenizer; words are cut by the rules of 'default', and answers may be worse for it"


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


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
