"""SentencePiece's BPE, the tokenizer of Llama 1 and 2, Mistral 7B, Gemma and TinyLlama, by the `sentencepiece` library.

Not by the `tokenizers` library: its BPE orders merges by pair, SentencePiece by the score of the result and then by position, and no
list of pairs gives the latter when a token can be made from two different pairs (Kudo and Richardson 2018, `bpe_model.cc`).

The library reads a model only in its own format, a protobuf message (sentencepiece_model.proto). Its generated Python code demands one
version of protobuf, so the few fields are written here.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence

from dairllm.model_files.text_pieces import TextPiece, TextPlace
from dairllm.model_files.token_bytes import NUM_BYTES, SPACE_MARK, byte_token

_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6
_BPE = 2


class SentencePieceModel:
    """Merges characters into the pieces of a scored vocabulary; characters without a piece become byte tokens.

    prefix: what a text begins with, also behind a special token.
    """

    def __init__(self, piece_ids: Mapping[str, int], scores: Sequence[float], byte_ids: Sequence[int], prefix: str = "") -> None:
        """`scores` by token id; `byte_ids` the 256 byte tokens in order."""
        from sentencepiece import SentencePieceProcessor  # few models need it

        byte_texts = [byte_token(byte) for byte in range(NUM_BYTES)]
        pieces = {text: token_id for text, token_id in piece_ids.items() if text and text not in byte_texts}
        unknown = "<unk>"
        while unknown in pieces:
            unknown = f"<{unknown}>"
        model = [_piece(unknown, 0.0, _UNKNOWN), *(_piece(text, 0.0, _BYTE) for text in byte_texts)]
        model += [_piece(text, scores[token_id], _NORMAL) for text, token_id in pieces.items()]
        self._ids = [-1, *byte_ids, *pieces.values()]
        self._processor = SentencePieceProcessor(model_proto=b"".join([*model, _trainer_spec(unknown), _normalizer_spec()]))
        self._prefix = prefix

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        marked = [self._marked(piece) for piece in pieces]
        return [self._ids[index] for ids in self._processor.encode(marked, out_type=int, num_threads=1) for index in ids]

    def _marked(self, piece: TextPiece) -> str:
        text = piece.text if piece.place is TextPlace.WITHIN else self._prefix + piece.text
        return text.replace(" ", SPACE_MARK)


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
