"""Tokenizers of distributed-llama (`.t`, https://github.com/b4rtaz/distributed-llama, src/tokenizer.cpp and converter/tokenizer-writer.py).

Layout: i32 magic, i32 size of the header, pairs of i32 key and value, the chat template, i32 ids of end tokens, then f32 score, u32 length
and bytes of each token. Ids below that of the begin token are text, the others special tokens. Text is merged from single bytes: of all
neighbours whose bytes together are a token those with the highest score, the leftmost of equals. No rules cut it into words.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dairllm.model_files.containers.regular_files import read_whole
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.sentencepiece_model import SentencePieceModel
from dairllm.model_files.text_cuts import TextCuts
from dairllm.model_files.text_pieces import TextPiece
from dairllm.model_files.token_bytes import NUM_BYTES, byte_characters
from dairllm.model_files.tokenizer import SpecialTokens, TokenizerParts
from dairllm.model_files.vocabulary import MAX_TOKEN_BYTES, TokenKind, Vocabulary, checked_vocabulary

MAGIC, OLD_MAGIC = 0x567124, 0x567123
MAX_FILE_BYTES = 128 << 20
MAX_HEADER_BYTES = 4096
_TOKEN_BYTES = 600
"""What a token takes, with all that is made of it."""
MOST_BYTES_PER_BYTE, SPARE_BYTES = 8, 128 << 20
"""As in `tokenizer_json`."""
_KEYS = ("version", "tokens", "longest", "bos", "eos", "pad", "chat_eos", "template", "chat_stop", "ends", "add_bos")
"""By number."""
_CHARACTERS = str.maketrans({chr(byte): character for byte, character in enumerate(byte_characters())})


class _File(NamedTuple):
    numbers: Mapping[str, int]
    template: str
    ends: tuple[int, ...]
    tokens: list[bytes]
    scores: list[float]


class _ByteModel:
    """Merges bytes, each as a character."""

    def __init__(self, model: SentencePieceModel) -> None:
        self._model = model

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        return self._model.encode([TextPiece(_characters(piece.text.encode()), piece.place) for piece in pieces])


def _characters(data: bytes) -> str:
    return data.decode("latin-1").translate(_CHARACTERS)


def read_distributed_llama_tokenizer(path: Path) -> TokenizerParts:
    """UnsupportedModel for another version, CorruptModelFile if it is damaged."""
    file = _Reader(path).read()
    vocabulary = _vocabulary(path, file)
    # Of equal ones the last: vocabularies out of SentencePiece have first the bytes and then the pieces.
    ids = {text: token_id for token_id, text in enumerate(vocabulary.texts) if vocabulary.kinds[token_id] is TokenKind.NORMAL}
    missing = [byte for byte, character in enumerate(byte_characters()) if character not in ids]
    if missing:
        raise CorruptModelFile(f"{path} has no token for the byte {missing[0]} among its texts; expected one for each of {NUM_BYTES}")
    model = SentencePieceModel(ids, file.scores, [ids[character] for character in byte_characters()])
    bos_id = file.numbers["bos"]
    special = SpecialTokens(
        bos_id=bos_id,
        eos_id=file.ends[0] if file.ends else None,
        ends=vocabulary.ends_of_generation(file.ends),
        before=(bos_id,) if file.numbers["add_bos"] else (),
        shown=vocabulary.shown_texts(),
    )
    cuts = TextCuts(whole=(data.decode("latin-1") for data in file.tokens), ascii_only=True)
    doubt = f"{path.name} does not say how text is cut into words; it is merged as a whole, and answers may be worse for it"
    return TokenizerParts(vocabulary, file.tokens, _ByteModel(model), cuts, special, (doubt,))


def read_chat_template(path: Path) -> str:
    """Empty if there is none."""
    return _Reader(path).read().template


def _vocabulary(path: Path, file: _File) -> Vocabulary:
    bos_id = file.numbers["bos"]
    texts = [_characters(data) for data in file.tokens[:bos_id]]
    texts += [data.decode(errors="replace") for data in file.tokens[bos_id:]]
    kinds = [TokenKind.NORMAL] * bos_id + [TokenKind.CONTROL] * (len(texts) - bos_id)
    return checked_vocabulary(path, texts, kinds, set(texts[:bos_id]))


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = read_whole(path, MAX_FILE_BYTES)
        self._position = 0

    def read(self) -> _File:
        numbers = self._header()
        template = self._take(numbers["template"], "the chat template")
        self._take(numbers["chat_stop"], "the stop text")
        ends = [numbers[name] for name in ("eos", "chat_eos") if numbers[name] >= 0]
        ends += struct.unpack(f"<{numbers['ends']}i", self._take(4 * numbers["ends"], "the end tokens"))
        tokens, scores = self._tokens(numbers["tokens"])
        outside = [token_id for token_id in ends if not 0 <= token_id < len(tokens)]
        if outside:
            raise self._corrupt(f"an end token has the id {outside[0]}; expected 0 to {len(tokens) - 1}")
        try:
            return _File(numbers, template.decode(), tuple(dict.fromkeys(ends)), tokens, scores)
        except UnicodeDecodeError as error:
            raise self._corrupt("its chat template is not UTF-8") from error

    def _header(self) -> Mapping[str, int]:
        magic, size = struct.unpack("<ii", self._take(8, "the header"))
        if magic == OLD_MAGIC:
            raise UnsupportedModel(f"{self._path} is of an old version of distributed-llama; expected a file of version 0.7 or later")
        if magic != MAGIC:
            raise self._corrupt(f"it begins with {magic:#x}; expected {MAGIC:#x}")
        if not 8 <= size <= MAX_HEADER_BYTES or size % 8:
            raise self._corrupt(f"its header has {size} bytes; expected pairs of numbers")
        found = struct.unpack(f"<{(size - 8) // 4}i", self._take(size - 8, "the header"))
        pairs = dict(zip(found[::2], found[1::2], strict=True))
        unknown = [key for key in pairs if not 0 <= key < len(_KEYS)]
        if unknown:
            raise self._corrupt(f"its header has the key {unknown[0]}; expected 0 to {len(_KEYS) - 1}")
        absent = {"eos": -1, "chat_eos": -1, "pad": -1, "bos": -1, "version": -1, "tokens": 0}
        numbers = dict.fromkeys(_KEYS, 0) | absent | {_KEYS[key]: value for key, value in pairs.items()}
        self._check(numbers)
        return numbers

    def _check(self, numbers: Mapping[str, int]) -> None:
        if numbers["version"] != 1:
            raise UnsupportedModel(f"{self._path} has version {numbers['version']}; expected 1")
        most = min(len(self._data) // 9, (MOST_BYTES_PER_BYTE * len(self._data) + SPARE_BYTES) // _TOKEN_BYTES)
        ranges = {"tokens": (1, most), "bos": (0, numbers["tokens"] - 1), "add_bos": (0, 1)}
        ranges |= dict.fromkeys(("template", "chat_stop", "ends"), (0, len(self._data)))
        for name, (lowest, highest) in ranges.items():
            if not lowest <= numbers[name] <= highest:
                raise self._corrupt(f"its header has {name} {numbers[name]}; expected {lowest} to {highest}")

    def _tokens(self, count: int) -> tuple[list[bytes], list[float]]:
        tokens: list[bytes] = []
        scores: list[float] = []
        for index in range(count):
            score, length = struct.unpack("<fI", self._take(8, f"token {index}"))
            if not 1 <= length <= MAX_TOKEN_BYTES or not math.isfinite(score):
                raise self._corrupt(f"token {index} has {length} bytes and the score {score}; expected 1 to {MAX_TOKEN_BYTES} and a number")
            tokens.append(self._take(length, f"token {index}"))
            scores.append(score)
        if self._position != len(self._data):
            raise self._corrupt(f"its tokens end at byte {self._position}, but the file ends at byte {len(self._data)}")
        return tokens, scores

    def _take(self, count: int, thing: str) -> bytes:
        begin, self._position = self._position, self._position + count
        if self._position > len(self._data):
            raise self._corrupt(f"{thing} at byte {begin} needs {count} bytes, but the file ends at byte {len(self._data)}")
        return self._data[begin : self._position]

    def _corrupt(self, sentence: str) -> CorruptModelFile:
        return CorruptModelFile(f"{self._path} is not a sound distributed-llama tokenizer: {sentence}")
