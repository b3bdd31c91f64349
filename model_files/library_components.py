"""Normalisers, pre-tokenizers and decoders as tokenizer.json describes them: checked before the `tokenizers` library makes them.

Format: https://github.com/huggingface/tokenizers/tree/main/tokenizers/src (`normalizers`, `pre_tokenizers`, `decoders`).
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.text_cuts import MAX_PIECE_CHARACTERS, TextCuts, word_ends
from dairllm.model_files.text_pieces import TextPlace
from dairllm.model_files.token_bytes import byte_level_bytes, byte_of_token

Component = Mapping[str, Any]

MAX_PATTERN_CHARACTERS = 4096
MAX_DEPTH = 8
MAX_PARTS = 64
MAX_LOOKED_AHEAD = 4096
"""Characters without a cut, for patterns that look further than to the next character."""
_LOOKAROUND, _BEFORE_A_WORD = re.compile(r"\(\?<?[=!]"), r"(?!\S)"
_PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
"""What a sequence of each kind calls its parts."""
_KNOWN = {
    "normalizer": (
        *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents", "Replace", "Prepend", "Precompiled"),
        *("ByteLevel", "BertNormalizer"),
    ),
    "pre_tokenizer": (
        *("ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"),
        *("CharDelimiterSplit", "UnicodeScripts"),
    ),
    "decoder": ("ByteLevel", "Replace", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "Strip"),
}
_SPACES_ONLY = frozenset(("Replace", "Prepend", "Metaspace", "Split"))
"""They change no character but spaces, unless they have a pattern."""


def parts_of(path: object, name: str, value: object) -> list[Component]:
    """The parts of a component, one after the other; name: of _PARTS. CorruptModelFile, UnsupportedModel by the name of the part."""
    parts = [] if value is None else list(_flat(path, name, value, 0))
    if len(parts) > MAX_PARTS:
        raise CorruptModelFile(f"{path} has a {name} of {len(parts)} parts; expected at most {MAX_PARTS}")
    for part in parts:
        if part.get("type") not in _KNOWN[name]:
            raise UnsupportedModel(f"{path} has a {name} of type {part.get('type')!r:.60}, which is not supported")
        pattern = str(part.get("pattern", ""))
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            raise CorruptModelFile(f"{path} has a pattern of {len(pattern)} characters; expected at most {MAX_PATTERN_CHARACTERS}")
        if part["type"] == "Precompiled":
            check_character_map(path, part.get("precompiled_charsmap"))
    return parts


def _flat(path: object, name: str, value: object, depth: int) -> Iterator[Component]:
    if not isinstance(value, dict) or depth > MAX_DEPTH:
        raise CorruptModelFile(f"{path} has {value!r:.60} as {name}; expected an object")
    if value.get("type") != "Sequence":
        yield value
        return
    inner = value.get(_PARTS[name])
    if not isinstance(inner, list):
        raise CorruptModelFile(f"{path} has a sequence as {name} that has no list of parts")
    for one in inner:
        yield from _flat(path, name, one, depth + 1)


def component_at(name: str, parts: Sequence[Component], place: TextPlace) -> Component | None:
    """The component of these parts as it is at this place: without what it adds where a text begins."""
    kept = [changed for part in parts if (changed := _part_at(part, place)) is not None]
    return {"type": "Sequence", _PARTS[name]: kept} if kept else None


def _part_at(part: Component, place: TextPlace) -> Component | None:
    match part["type"]:
        case "Metaspace" if place is TextPlace.WITHIN or (place is TextPlace.BEHIND_SPECIAL and part.get("prepend_scheme") == "first"):
            return {**part, "prepend_scheme": "never", "add_prefix_space": False}
        case "ByteLevel" if place is TextPlace.WITHIN and "add_prefix_space" in part:
            return {**part, "add_prefix_space": False}
        case "Prepend" if place is TextPlace.WITHIN:
            return None
    return part


def bytes_of_tokens(path: object, decoder: Sequence[Component], is_byte_level: bool) -> Callable[[str], bytes]:
    """What tokens stand for. is_byte_level: the pre-tokenizer maps bytes to characters."""
    kinds = [part["type"] for part in decoder]
    if kinds == ["ByteLevel"] or (not kinds and is_byte_level):
        return byte_level_bytes
    replaced: list[tuple[str, str]] = []
    for part in decoder:
        match part:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                replaced.append((old, new))
            case {"type": "Metaspace", "replacement": str(old)} | {"type": "BPEDecoder", "suffix": str(old)} if old:
                replaced.append((old, " "))
            case {"type": "ByteFallback" | "Fuse" | "Strip"}:
                pass
            case _:
                raise UnsupportedModel(f"{path} has a decoder with {part!r:.120}, which is not supported")
    return _BytesOfToken(tuple(replaced), "ByteFallback" in kinds)


@dataclass(frozen=True, slots=True)
class _BytesOfToken:
    replaced: tuple[tuple[str, str], ...]
    has_byte_tokens: bool

    def __call__(self, text: str) -> bytes:
        if self.has_byte_tokens and (byte := byte_of_token(text)) is not None:
            return byte
        for old, new in self.replaced:
            text = text.replace(old, new)
        return text.encode()


def find_cuts(by_place: Mapping[TextPlace, tokenizers.Tokenizer], parts: Sequence[Component], token_bytes: Sequence[bytes]) -> TextCuts:
    """Words begin anew at a cut, or, if spaces are all that the file changes, no token holds both sides of it."""
    ends = word_ends(_words_by(by_place[TextPlace.BEGIN]), _words_by(by_place[TextPlace.WITHIN]))
    whole = (data.decode(errors="replace") for data in token_bytes) if all(map(_changes_spaces_only, parts)) else None
    return TextCuts(ends, whole, most_characters=MAX_LOOKED_AHEAD if any(map(_looks_far, parts)) else MAX_PIECE_CHARACTERS)


def _looks_far(part: Component) -> bool:
    """It has a pattern that may look at all that follows from each character: that takes the square of the length."""
    return _LOOKAROUND.search(str(part.get("pattern")).replace(_BEFORE_A_WORD, "").replace(repr(_BEFORE_A_WORD)[1:-1], "")) is not None


def _changes_spaces_only(part: Component) -> bool:
    """It changes no other character, and looks at no neighbours."""
    pattern = part.get("pattern")
    return part["type"] in _SPACES_ONLY and (not isinstance(pattern, dict) or "String" in pattern)


def _words_by(library: tokenizers.Tokenizer) -> Callable[[str], list[str]]:
    def words(text: str) -> list[str]:
        normal = text if library.normalizer is None else library.normalizer.normalize_str(text)
        if library.pre_tokenizer is None:
            return [normal]
        return [word for word, _ in library.pre_tokenizer.pre_tokenize_str(normal)]

    return words


def check_character_map(path: object, text: object) -> None:
    """SentencePiece's normalisation in base64: the size of a tree, the tree in a double array of u32 units, and texts that end with zeros.

    Of a unit bit 8 says that a value follows, bits 10 to 30 are an offset, bit 9 that it counts by 256
    (https://github.com/s-yata/darts-clone). The library follows offsets without a look at the array's end.
    """
    try:
        data = base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except binascii.Error as error:
        raise CorruptModelFile(f"{path} has a character map that is not base64") from error
    size = int.from_bytes(data[:4], "little")
    if size % 4 or not 1024 <= size <= len(data) - 4:
        raise CorruptModelFile(f"{path} has a character map of {len(data)} bytes with a tree of {size}; expected it to fit")
    if not _stays_inside(np.frombuffer(data, "<u4", size // 4, 4), np.frombuffer(data, np.uint8, -1, 4 + size)):
        raise CorruptModelFile(f"{path} has a character map that points outside itself")


def _stays_inside(units: Any, texts: Any) -> bool:
    """units: u32. texts: their bytes, UTF-8 with zeros between."""
    followed = (units >> 31) == 0
    shift = (units & 512) >> 6
    targets = np.arange(len(units), dtype=np.int64) ^ ((units >> 10).astype(np.int64) << shift.astype(np.int64))
    if (targets[followed] | 255).max(initial=0) >= len(units) or len(texts) == 0 or texts[-1] != 0:
        return False
    values = units[targets[followed & ((units & 256) != 0)]] & 0x7FFFFFFF
    try:
        texts.tobytes().decode()
    except UnicodeDecodeError:
        return False
    # A value must not be the middle of a character.
    return bool(values.max(initial=0) < len(texts) and ((texts[values] & 0xC0) != 0x80).all())
