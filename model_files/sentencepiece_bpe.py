"""SentencePiece's BPE, the tokenizer of Llama 1 and 2, Mistral 7B and TinyLlama, by the `sentencepiece` library.

Not by the `tokenizers` library: its BPE orders merges by pair, SentencePiece by the score of the result and then by position, and no
list of pairs gives the latter when a token can be made from two different pairs (Kudo and Richardson 2018, `bpe_model.cc`).

The library reads a model only in its own format, a protobuf message (sentencepiece_model.proto). Its generated Python code demands one
version of protobuf, so the few fields are written here.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence

from dairllm.model_files.containers import Container
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.vocabulary import TokenKind, Vocabulary

SPACE_MARK = "\u2581"
_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6
_BPE = 2
NUM_BYTES = 256


class SentencePieceBpe:
    """Merges characters into the pieces of a scored vocabulary; characters without a piece become byte tokens.

    prefix: what a text begins with, also behind a special token.
    """

    def __init__(self, piece_ids: Mapping[str, int], scores: Sequence[float], byte_ids: Sequence[int], prefix: str = "") -> None:
        """`scores` by token id; `byte_ids` the 256 byte tokens in order."""
        from sentencepiece import SentencePieceProcessor  # few models need it

        byte_texts = [f"<0x{byte:02X}>" for byte in range(NUM_BYTES)]
        pieces = {text: token_id for text, token_id in piece_ids.items() if text and text not in byte_texts}
        unknown = "<unk>"
        while unknown in pieces:
            unknown = f"<{unknown}>"
        model = [_piece(unknown, 0.0, _UNKNOWN), *(_piece(text, 0.0, _BYTE) for text in byte_texts)]
        model += [_piece(text, scores[token_id], _NORMAL) for text, token_id in pieces.items()]
        self._ids = [-1, *byte_ids, *pieces.values()]
        self._processor = SentencePieceProcessor(model_proto=b"".join([*model, _trainer_spec(unknown), _normalizer_spec()]))
        self.prefix = prefix

    def encode(self, pieces: Sequence[str]) -> list[int]:
        marked = [piece.replace(" ", SPACE_MARK) for piece in pieces]
        return [self._ids[index] for ids in self._processor.encode(marked, out_type=int, num_threads=1) for index in ids]


def read_sentencepiece(gguf: Container, vocabulary: Vocabulary) -> SentencePieceBpe:
    scores = gguf.array("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(vocabulary.texts):
        raise CorruptModelFile(f"{gguf.path} needs one score per token in tokenizer.ggml.scores, {len(vocabulary.texts)} of them")
    bytes_by_text = vocabulary.ids_of_kind(TokenKind.BYTE)
    byte_ids = [bytes_by_text[text] for byte in range(NUM_BYTES) if (text := f"<0x{byte:02X}>") in bytes_by_text]
    if len(byte_ids) < NUM_BYTES:
        raise UnsupportedModel(f"{gguf.path} has a SentencePiece vocabulary without all 256 byte tokens, which is not supported")
    pieces = vocabulary.ids_of_kind(TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED)
    prefix = " " if gguf.boolean("tokenizer.ggml.add_space_prefix", True) else ""
    return SentencePieceBpe(pieces, scores.astype(float).tolist(), byte_ids, prefix)


def _piece(text: str, score: float, kind: int) -> bytes:
    return _field(1, _field(1, text.encode()) + _tag(2, 5) + struct.pack("<f", score) + _number(3, kind))


def _trainer_spec(unknown: str) -> bytes:
    return _field(2, _number(3, _BPE) + _number(35, True) + _field(45, unknown.encode()))


def _normalizer_spec() -> bytes:
    """It leaves texts as they are: no prefix, all spaces kept, none marked."""
    return _field(3, _field(1, b"identity") + b"".join(_number(field, False) for field in (3, 4, 5)))


def _field(number: int, data: bytes) -> bytes:
    return _tag(number, 2) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _tag(field, 0) + _varint(value)


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    """https://protobuf.dev/programming-guides/encoding/#varints"""
    return bytes(_varint_bytes(value))


def _varint_bytes(value: int) -> Iterable[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
