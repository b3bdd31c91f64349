"""The bytes that tokens stand for."""

import re
from collections.abc import Mapping

SPACE_MARK = "\u2581"
NUM_BYTES = 256
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte (openai/gpt-2, encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(NUM_BYTES) if byte not in printable)
    stand_in = {byte: chr(NUM_BYTES + index) for index, byte in enumerate(others)}
    return [stand_in.get(byte, chr(byte)) for byte in range(NUM_BYTES)]


_BYTE_OF: Mapping[str, int] = {character: byte for byte, character in enumerate(byte_characters())}


def byte_level_bytes(text: str) -> bytes:
    """Of a token of a byte-level vocabulary; one with other characters stands for itself."""
    if not all(character in _BYTE_OF for character in text):
        return text.encode()
    return bytes(_BYTE_OF[character] for character in text)


def byte_token(byte: int) -> str:
    """The token by which SentencePiece writes a byte that no piece has."""
    return f"<0x{byte:02X}>"


def byte_of_token(text: str) -> bytes | None:
    """None for what is no byte token."""
    match = _BYTE_TOKEN.fullmatch(text)
    return None if match is None else bytes([int(match[1], 16)])
